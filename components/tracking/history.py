"""Reading what earlier runs recorded in MLflow."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from components.tracking.client import tracker
from components.tracking.runs import PARENT


@dataclass(frozen=True, kw_only=True)
class EarlierRun:
    """A run in MLflow."""

    run_id: str
    experiment_id: str
    step: str
    """Name of the step, or that of the whole pipeline."""
    status: str
    started: datetime.datetime
    """UTC."""
    params: Mapping[str, str]
    tags: Mapping[str, str]


def _as_earlier(run: Run) -> EarlierRun:
    return EarlierRun(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        step=run.data.tags.get("step", "unknown"),
        status=run.info.status,
        started=datetime.datetime.fromtimestamp(run.info.start_time / 1000, datetime.UTC),
        params=dict(run.data.params),
        tags=dict(run.data.tags),
    )


def earlier_run(run_id: str | None) -> EarlierRun | None:
    """Return the run with this id, or None if MLflow does not know it.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    if not run_id or run_id == "none":
        return None
    with tracker(f"asking for run {run_id}") as client:
        try:
            return _as_earlier(client.get_run(run_id))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def steps_of(pipeline: EarlierRun) -> list[EarlierRun]:
    """Return the runs of the steps of a pipeline's run, oldest first.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    with tracker(f"asking for the steps of run {pipeline.run_id}") as client:
        wanted = f"tags.`{PARENT}` = '{pipeline.run_id}'"
        found = client.search_runs([pipeline.experiment_id], wanted, order_by=["attributes.start_time ASC"])
    return [_as_earlier(run) for run in found]
