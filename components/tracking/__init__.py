"""MLflow: runs and their values, the model registry, provenance, and the ledger of promotions.

This package sets MLflow's environment before it imports mlflow, which reads part of it during its import. Other
packages therefore import mlflow from `components.tracking.client`. `address`, `ledger` and `provenance` do not import
mlflow, which takes seconds and is not installed in the data image.
"""

import os

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # MLflow's default, 7 retries of 2 minutes each, reports an unreachable server after a quarter of an hour.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    # For small requests; `client.uploading` raises it for files.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # MLflow's own S3 client: not all compatible servers know the checksums that newer clients send.
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}.items():
    os.environ.setdefault(_name, _value)
