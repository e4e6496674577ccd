"""Runs in MLflow: one for each step, linked to the run of the pipeline, with parameters, provenance and values.

MLFLOW_TRACKING_URI names the server; without it runs are kept in workspace/mlflow.db. An SQLite store has its
artifacts beside it, in mlartifacts.
A run that MLFLOW_RUN_ID names is adopted (Kubeflow Pipelines with its MLflow plugin makes one for each task); else a
new one is created in the experiment that MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME names, as a child of
BEBYGAN_PARENT_RUN, or of the run that the first task of the same Kubeflow run (KFP_RUN_ID) opened.
What the server does not take waits in the folder BEBYGAN_UNTRACKED, else in workspace/untracked.

mlflow takes seconds to import, and reads its environment while it does: import it through `mlflow_client` only.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from bebygan.errors import Preempted, ServiceError
from bebygan.imaging import Image
from components.config import flatten, plain
from components.tracking.delivery import Delivery, spool_of
from components.tracking.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "bebygan"
PIPELINE = "retrain"
"""Tag `step` of a run of the whole pipeline, whose children are the runs of its steps."""
PARENT = "mlflow.parentRunId"
WORKSPACE = Path("workspace")
_SECONDS_BETWEEN_MACHINE_READINGS = 10.0
_SECONDS_TO_FINISH = 60.0
_SECONDS_WHEN_STOPPED = 5.0
"""Of the 25 to 30 seconds that are given to a process that is asked to stop."""
_log = logging.getLogger(__name__)


def tracking_uri() -> str:
    """Return where runs are kept, and make the folder for the embedded store."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    WORKSPACE.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{(WORKSPACE / 'mlflow.db').resolve()}"


def mlflow_client() -> "MlflowClient":
    """Import mlflow, quiet and impatient, and return a client of the tracking server and model registry."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # Its own 7 tries of 2 minutes each would hide for a quarter of an hour that the server is away.
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: PLC0415

    for noisy in ("alembic", "mlflow", "urllib3.connectionpool"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def _reason(error: BaseException) -> str:
    """Say the operating system's reason if there is one behind an error, else the error's own, in one line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split())[:300]


def without_password(uri: str) -> str:
    """Return an address without the password that may stand in it."""
    scheme, mark, rest = uri.partition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def _raised_by_mlflow() -> tuple[type[Exception], ...]:
    from boto3.exceptions import Boto3Error  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from mlflow.exceptions import MlflowException  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    # Where a server has clients bring their files to its bucket themselves, boto3's own errors come through.
    return MlflowException, SQLAlchemyError, OSError, Boto3Error, BotoCoreError, ClientError


@contextmanager
def service_errors(doing: str) -> Iterator[None]:
    """Turn what mlflow raises into one line.

    Raises:
        ServiceError: the server, or the bucket of its artifacts, is away or refuses.
    """
    try:
        yield
    except _raised_by_mlflow() as error:
        reason = _reason(error)
        cure = "see that it runs and lets you in"
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            cure = "name the certificate of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH"
        raise ServiceError(
            f"{doing} failed at MLflow's {without_password(tracking_uri())} ({reason}): {cure}, or correct "
            "MLFLOW_TRACKING_URI"
        ) from error


def _machine(run_id: str) -> Callable[[], dict[str, float]]:
    """Return what reads the machine's load, memory and GPUs since the last reading."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor  # noqa: PLC0415

    # Not started: its own thread would stop for good when the server is away once.
    monitor: Any = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]

    def read() -> dict[str, float]:
        monitor.collect_metrics()
        found = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for each in monitor.monitors:
            each.clear_metrics()
        return found

    # The first reading only begins the time that the load is told of.
    read()
    return read


class StepRun:
    """A run under way. Call it with an iteration and its values or pictures; a thread of its own sends them.

    A server that goes away later never stops the step: see `Delivery`.

    Args:
        client: of the server.
        run_id: of the run.
        spool: see `Delivery`.
        pipeline_run: id of the run of the whole pipeline.
        machine: whether load and memory of the machine, and of its GPUs, come along with the values, as `system/...`.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        spool: Path,
        pipeline_run: str | None = None,
        *,
        machine: bool = False,
    ) -> None:
        self.run_id = run_id
        self.pipeline_run = pipeline_run
        self.client = client
        self._delivery = Delivery(client, run_id, spool, service_errors)
        self._machine = _machine(run_id) if machine else None
        self._machine_read = -math.inf

    def __call__(self, iteration: int, values: Mapping[str, float | Image]) -> None:
        """Log values, and pictures (H, W, 3), of an iteration; returns at once."""
        from mlflow.entities import Metric  # noqa: PLC0415

        now = time.time_ns() // 1_000_000
        numbers = {name: value for name, value in values.items() if not isinstance(value, np.ndarray)}
        due = time.monotonic() - self._machine_read >= _SECONDS_BETWEEN_MACHINE_READINGS
        if self._machine and numbers and due:
            self._machine_read = time.monotonic()
            numbers |= self._machine()
        self._delivery.put([Metric(name, float(value), now, iteration) for name, value in numbers.items()])
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                self._delivery.put_picture(f"{name}-{iteration:08d}.png", value)

    def artifacts(self, folder: Path, under: str) -> None:
        """Store the files of a folder with the run, below `under`; a server that does not take them is only told of."""
        try:
            with service_errors("storing files"):
                self.client.log_artifacts(self.run_id, str(folder), under)
        except ServiceError as error:
            _log.warning("warning: %s. The step goes on without them", error)

    def close(self, status: str, seconds: float) -> None:
        """Wait until all values are sent, for so long at most, and end the run."""
        self._delivery.close(status, seconds)


def _experiment(client: "MlflowClient") -> str:
    """Return the id of the experiment, made when it is missing."""
    if chosen := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return chosen
    from mlflow.exceptions import MlflowException  # noqa: PLC0415

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    _, sqlite, database = tracking_uri().partition("sqlite:///")
    artifacts = Path(database).resolve().with_name("mlartifacts").as_uri() if sqlite else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        # Another step may have been quicker.
        if experiment := client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        raise


def _describe(client: "MlflowClient", run_id: str, params: object, facts: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag  # noqa: PLC0415

    values = [Param(name, str(value)) for name, value in flatten(plain(params))]
    client.log_batch(run_id, params=values, tags=[RunTag(name, value) for name, value in facts.items()])


def _pipeline_run(client: "MlflowClient") -> str | None:
    """Return the id of the run of the whole pipeline that this process works for, or None when there is none yet."""
    if parent := os.environ.get("BEBYGAN_PARENT_RUN"):
        return parent
    if own := os.environ.get("MLFLOW_RUN_ID"):
        # Kubeflow's plugin nests the runs of tasks in one that it made for the pipeline.
        found = client.get_run(own).data.tags.get(PARENT)
        return str(found) if found else None
    if kubeflow := os.environ.get("KFP_RUN_ID"):
        wanted = f"tags.kfp_run_id = '{kubeflow}' and tags.step = '{PIPELINE}'"
        opened = client.search_runs([_experiment(client)], wanted, max_results=1)
        return str(opened[0].info.run_id) if opened else None
    return None


def _begin(client: "MlflowClient", step: str, params: object, facts: Mapping[str, str]) -> tuple[str, str | None]:
    """Adopt or create a run, log its parameters and facts, and return its id and that of the pipeline's run."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    parent = _pipeline_run(client)
    if run_id:
        client.update_run(run_id, "RUNNING")
    else:
        tags = {PARENT: parent} if parent else {}
        run_id = str(client.create_run(_experiment(client), run_name=step, tags=tags).info.run_id)
    _describe(client, run_id, params, facts)
    return run_id, parent


def check_tracker() -> str:
    """Make sure that the tracking server answers, has our experiment, and takes files for it: it stores them elsewhere.

    Returns:
        Its address without a password.

    Raises:
        ServiceError: the server or its store of files is away or refuses.
    """
    client = mlflow_client()
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository  # noqa: PLC0415

    with service_errors("asking for the experiment"):
        experiment = client.get_experiment(_experiment(client))
    with service_errors("storing a file"), tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "preflight"
        file.touch()
        # Written over each time: who may write there may not always remove.
        store: Any = get_artifact_repository(experiment.artifact_location)
        store.log_artifact(str(file))
    return without_password(tracking_uri())


def open_pipeline_run(params: object, tags: Mapping[str, str]) -> str:
    """Open the run of the whole pipeline, which its tasks find by KFP_RUN_ID, or describe the one that is there.

    A task that is tried again finds the one it opened before.

    Args:
        params: of the pipeline; logged, and hashed into the provenance.
        tags: more facts.

    Returns:
        Its id. `close_pipeline_run` ends it.

    Raises:
        ServiceError: the server is away or refuses.
    """
    client = mlflow_client()
    facts = {"step": PIPELINE, **provenance(params), **tags}
    with service_errors("opening the run of the pipeline"):
        run_id = _pipeline_run(client)
        if run_id is None:
            run_id = str(client.create_run(_experiment(client), run_name=PIPELINE).info.run_id)
        client.update_run(run_id, "RUNNING")
        _describe(client, run_id, params, facts)
    return run_id


def close_pipeline_run(status: str, tags: Mapping[str, str]) -> str | None:
    """End the run of the whole pipeline as FINISHED, FAILED or KILLED, and tag it.

    Returns:
        Its id; None when none was opened, as where there was nothing to do.

    Raises:
        ServiceError: the server is away or refuses.
    """
    client = mlflow_client()
    with service_errors("ending the run of the pipeline"):
        run_id = _pipeline_run(client)
        if run_id is None or "fingerprint" not in client.get_run(run_id).data.tags:
            return None
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, status)
    return run_id


@contextmanager
def step_run(
    step: str,
    params: object,
    data_version: str | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    machine: bool = False,
) -> Iterator[StepRun]:
    """Track a step: its run ends FINISHED, FAILED, or KILLED when it was asked to stop.

    Args:
        step: name of the step, and of a new run.
        params: what the step was given; logged, and hashed into the provenance.
        data_version: of the photographs.
        tags: more facts.
        machine: see `StepRun`.

    Raises:
        ServiceError: at the start, when the server is away or refuses. Later nothing of it stops the step.
    """
    client = mlflow_client()
    facts = {"step": step, **provenance(params, data_version), **(tags or {})}
    with service_errors("starting a run"):
        run_id, parent = _begin(client, step, params, facts)
    spools = Path(os.environ.get("BEBYGAN_UNTRACKED") or WORKSPACE / "untracked")
    run = StepRun(client, run_id, spool_of(spools, run_id), parent, machine=machine)
    status, seconds = "FAILED", _SECONDS_TO_FINISH
    try:
        yield run
        status = "FINISHED"
    except (Preempted, KeyboardInterrupt):
        status, seconds = "KILLED", _SECONDS_WHEN_STOPPED
        raise
    finally:
        run.close(status, seconds)


def ended_runs(fingerprint: str, status: Literal["FINISHED", "FAILED"], also_in: Collection[str] = ()) -> list[str]:
    """Return the ids of runs with this tag `fingerprint` that ended so, the newest first; of many only some.

    Args:
        fingerprint: of the job.
        status: how they ended.
        also_in: ids of experiments to look in, beside our own.

    Raises:
        ServiceError: the server is away or refuses.
    """
    client = mlflow_client()
    with service_errors("looking for earlier runs"):
        wanted = f"tags.fingerprint = '{fingerprint}' and attributes.status = '{status}'"
        found = client.search_runs(sorted({_experiment(client), *also_in}), wanted, max_results=10)
    return [str(run.info.run_id) for run in found]
