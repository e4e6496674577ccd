"""Logs a run as a training does, reads as evaluate does, and tries what this account may not do."""

import sys
from pathlib import Path

from components.config import load_params
from components.tracking.client import MlflowClient, MlflowException
from components.tracking.registry import all_versions, champion
from components.tracking.runs import step_run

with step_run("train", load_params(Path("params.yaml")).train) as run:
    run(1, {"pixel": 0.5})
    run.artifacts(Path(sys.argv[1]), "evaluation")
client = MlflowClient()
refused = 0
for attempt in (
    lambda: client.set_registered_model_alias("bebygan", "champion", "1"),
    lambda: client.delete_registered_model_alias("bebygan", "champion"),
    lambda: client.create_model_version("bebygan", "mlflow-artifacts:/1/x", run.run_id),
    lambda: client.delete_model_version("bebygan", "1"),
    lambda: client.set_registered_model_tag("bebygan", "ledger_head", "x"),
    lambda: client.delete_experiment(client.get_run(run.run_id).info.experiment_id),
):
    try:
        attempt()
    except MlflowException as error:
        refused += "Permission denied" in str(error)
logged = client.get_run(run.run_id)
reigning = champion("bebygan")
print(f"{logged.info.status} {logged.data.metrics}, {refused} attempts refused")
print(f"version {reigning and reigning.version} of {len(all_versions('bebygan'))} reigns")
