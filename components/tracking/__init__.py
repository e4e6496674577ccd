"""MLflow: runs and their values, the model registry, provenance, and the ledger of promotions.

Importing any module of this package sets MLflow's environment first: MLflow reads part of it when it is imported. Other
packages therefore import mlflow from `components.tracking.client`. `address`, `ledger` and `provenance` do not import
mlflow, which takes seconds and is not installed in the data image.
"""

import os

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's own 7 retries of 2 minutes each hide for a quarter of an hour that the server is unreachable.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # For questions; `client.uploading` gives files more.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}.items():
    os.environ.setdefault(_name, _value)
