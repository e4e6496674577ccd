"""Runs in MLflow: one for each step, linked to the run of the pipeline, with parameters, provenance and values.

See `components.tracking.address` for the store. The artifacts of an SQLite database are in mlartifacts beside it.
A step uses the run that MLFLOW_RUN_ID names (Kubeflow's MLflow plugin creates one for each task). Otherwise it creates
one in the experiment of MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME, as a child of BEBYGAN_PARENT_RUN, or of the run
that the first task of the same Kubeflow run (KFP_RUN_ID) opened. Values that the server does not receive stay in the
folder BEBYGAN_UNTRACKED, by default workspace/untracked.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from tenacity import Retrying

from bebygan.errors import Preempted, ServiceError, without_password
from bebygan.imaging import Image
from components.checkout import PARAMS_VARIABLE
from components.config import PARAMS_FILE, flatten, load_params, plain, to_yaml
from components.stores.retries import IN_BACKGROUND
from components.tracking.address import WORKSPACE, database_file, tracking_uri
from components.tracking.artifact_places import artifacts_beside
from components.tracking.client import service_errors, tracker, uploading
from components.tracking.delivery import Delivery
from components.tracking.presentation import about_pipeline, about_step, add_data, log_dataset, run_name
from components.tracking.provenance import UNKNOWN, provenance
from components.tracking.repro import running_repro

EXPERIMENT = "bebygan"
PIPELINE = "retrain"
"""Tag `step` of a run of the whole pipeline, whose children are the runs of its steps."""
PARENT = "mlflow.parentRunId"
UNSENT = "BEBYGAN_UNTRACKED"
"""Environment variable: folder for values and pictures that the server did not receive."""
PARAMETERS = "params.yaml"
"""Artifact of a run of the whole pipeline: its parameters, whose SHA-256 is the tag `params_hash`."""
PREFLIGHT_PASSED = {"preflight": "passed"}
"""Tag of a run of the whole pipeline that got everything it needs: if it fails after that, the job itself failed."""
_SECONDS_BETWEEN_MACHINE_READINGS = 10.0
_SECONDS_TO_FINISH = 60.0
_SECONDS_WHEN_STOPPED = 5.0
"""A process that is asked to stop has 25 to 30 seconds in all."""
_log = logging.getLogger(__name__)


def _machine(run_id: str) -> Callable[[], dict[str, float]]:
    """Return a function that reads the machine's load, memory and GPUs since the last reading."""
    # Not started: its own thread stops forever if the server is unreachable once.
    monitor: Any = SystemMetricsMonitor(run_id)  # type: ignore[no-untyped-call]

    def read() -> dict[str, float]:
        monitor.collect_metrics()
        found = {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
        for each in monitor.monitors:
            each.clear_metrics()
        return found

    # A reading covers the time since the one before.
    read()
    return read


@dataclass
class StepRun:
    """The run of a step. Call it with an iteration and its values or pictures; a thread sends them.

    A server that becomes unreachable never stops the step: see `Delivery`.
    """

    client: MlflowClient
    run_id: str
    pipeline_run: str | None
    """Id of the run of the whole pipeline."""
    _delivery: Delivery
    _machine: Callable[[], dict[str, float]] | None
    """Reads values of the machine, which are logged with those of the step."""
    _machine_read: float = -math.inf

    def __call__(self, iteration: int, values: Mapping[str, float | Image]) -> None:
        """Log values and pictures (H, W, 3) of an iteration; returns at once."""
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
        """Store the files of a folder with the run, below `under`; warn if the server fails."""
        try:
            with service_errors("storing files"), uploading():
                self.client.log_artifacts(self.run_id, str(folder), under)
        except ServiceError as error:
            _log.warning("warning: %s. The step continues without them", error)

    def describe(self, tags: Mapping[str, str]) -> None:
        """Tag this run and the run of the whole pipeline; warn if the server fails."""
        try:
            with service_errors("tagging the run"):
                for run_id in filter(None, (self.run_id, self.pipeline_run)):
                    for name, value in tags.items():
                        self.client.set_tag(run_id, name, value)
        except ServiceError as error:
            _log.warning("warning: %s. The step continues without them", error)

    def summarise(self, values: Mapping[str, float], page: Path) -> None:
        """Log values, and a page below `report`, with the run of the whole pipeline; warn if the server fails."""
        if not self.pipeline_run:
            return
        now = time.time_ns() // 1_000_000
        try:
            with service_errors("storing the report"), uploading():
                self.client.log_batch(
                    self.pipeline_run, [Metric(name, value, now, 0) for name, value in values.items()]
                )
                self.client.log_artifact(self.pipeline_run, str(page), "report")
        except ServiceError as error:
            _log.warning("warning: %s. The step continues without it", error)


def experiment_id(client: MlflowClient) -> str:
    """Return the id of the experiment; create it if it is missing."""
    if chosen := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return chosen
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    if experiment := client.get_experiment_by_name(name):
        return str(experiment.experiment_id)
    database = database_file(tracking_uri())
    artifacts = artifacts_beside(database) if database else None
    try:
        return str(client.create_experiment(name, artifact_location=artifacts))
    except MlflowException:
        # Another step may have created it since.
        if experiment := client.get_experiment_by_name(name):
            return str(experiment.experiment_id)
        raise


def _pipeline_run(client: MlflowClient) -> str | None:
    """Return the id of the run of the whole pipeline that this process belongs to, or None before it is opened."""
    if parent := os.environ.get("BEBYGAN_PARENT_RUN"):
        return parent
    if own := os.environ.get("MLFLOW_RUN_ID"):
        # Kubeflow's plugin creates a run for the pipeline, with a child for each task.
        found = client.get_run(own).data.tags.get(PARENT)
        return str(found) if found else None
    if kubeflow := os.environ.get("KFP_RUN_ID"):
        wanted = f"tags.kfp_run_id = '{kubeflow}' and tags.step = '{PIPELINE}'"
        opened = client.search_runs([experiment_id(client)], wanted, max_results=1)
        return str(opened[0].info.run_id) if opened else None
    return None


def _run_of_repro(client: MlflowClient, repro: str) -> str:
    """Return the id of the run of the whole pipeline that `dvc repro` is; the first stage that is tracked opens it."""
    wanted = f"tags.dvc_repro = '{repro}'"
    if opened := client.search_runs([experiment_id(client)], wanted, max_results=1):
        client.update_run(opened[0].info.run_id, "RUNNING")
        return str(opened[0].info.run_id)
    params = load_params(Path(os.environ.get(PARAMS_VARIABLE) or PARAMS_FILE))
    return _begin_pipeline(client, None, params, {**provenance(params), "dvc_repro": repro, "reason": "of `dvc repro`"})


def _end_run_of_stage(client: MlflowClient, parent: str, status: str) -> None:
    """End the run of `dvc repro`, which the next stage continues; warn if the server fails."""
    try:
        with service_errors("ending the run of dvc repro"):
            client.set_terminated(parent, status)
    except ServiceError as error:
        _log.warning("warning: %s. It is shown as running", error)


def _adopted(client: MlflowClient, step: str) -> str | None:
    """Return MLFLOW_RUN_ID, unless another step wrote to that run: a shell may still have it."""
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if run_id and (other := client.get_run(run_id).data.tags.get("step", step)) != step:
        _log.warning("warning: MLFLOW_RUN_ID names a run of %s: %s gets a run of its own", other, step)
        return None
    return run_id


def _begin(client: MlflowClient, run_id: str | None, step: str, params: object, facts: Mapping[str, str]) -> str:
    """Start the run with this id, or a new one if None; tag it, log its parameters, and return its id."""
    if not run_id:
        known = facts["data_version"] if facts["data_version"] != UNKNOWN else None
        run_id = str(client.create_run(experiment_id(client), run_name=run_name(step, known)).info.run_id)
    client.update_run(run_id, "RUNNING")
    values = [Param(name, str(value)) for name, value in flatten(plain(params))]
    tags = [RunTag(name, value) for name, value in {"step": step, **facts}.items()]
    client.log_batch(run_id, params=values, tags=tags)
    return run_id


def _begin_pipeline(client: MlflowClient, run_id: str | None, params: object, facts: Mapping[str, str]) -> str:
    """Start the run of the whole pipeline as `_begin` does; describe it and store its parameters as a file."""
    about = about_pipeline(facts.get("reason", "it was asked for"), facts.get("source", UNKNOWN))
    run_id = _begin(client, run_id, PIPELINE, params, {**facts, **about})
    try:
        with service_errors("storing the parameters"), uploading():
            client.log_text(run_id, to_yaml(params), PARAMETERS)
    except ServiceError as error:
        _log.warning("warning: %s. The run continues without them", error)
    return run_id


def _describe_data(client: MlflowClient, run_id: str, parent: str | None, step: str, data_version: str) -> None:
    """Log the photographs as inputs of a step's run and of that of the whole pipeline; warn if the server fails."""
    try:
        with service_errors("logging the dataset"):
            source = add_data(client, parent, data_version) if parent else UNKNOWN
            log_dataset(client, run_id, data_version, source, step)
    except ServiceError as error:
        _log.warning("warning: %s. The step continues without it", error)


def check_tracker() -> str:
    """Check that the tracking server answers, has our experiment and stores files; return its address without password.

    Raises:
        ServiceError: the server or its store of files is unreachable or refuses.
    """
    with tracker("asking for the experiment") as client:
        experiment = client.get_experiment(experiment_id(client))
    with service_errors("storing a file"), tempfile.TemporaryDirectory() as scratch, uploading():
        file = Path(scratch) / "preflight"
        file.touch()
        # Always the same name: the user may lack the permission to delete files.
        store: Any = get_artifact_repository(experiment.artifact_location)
        store.log_artifact(str(file))
    return without_password(tracking_uri())


def open_pipeline_run(params: object, tags: Mapping[str, str]) -> str:
    """Open the run of the whole pipeline, or update it if this task was retried, and return its id.

    The tasks of the pipeline find it by KFP_RUN_ID. `close_pipeline_run` ends it.

    Args:
        params: of the pipeline; logged, and hashed into the provenance.
        tags: more facts.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    with tracker("opening the run of the pipeline") as client:
        return _begin_pipeline(client, _pipeline_run(client), params, {**provenance(params), **tags})


def tag_pipeline_run(tags: Mapping[str, str]) -> str | None:
    """Tag the run of the whole pipeline and return its id.

    Return None if the pipeline had nothing to do and opened no run.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    with tracker("tagging the run of the pipeline") as client:
        run_id = _pipeline_run(client)
        if run_id is None or "fingerprint" not in client.get_run(run_id).data.tags:
            return None
        for name, value in tags.items():
            client.set_tag(run_id, name, value)
    return run_id


def close_pipeline_run(status: str, tags: Mapping[str, str]) -> str | None:
    """End the run of the whole pipeline as FINISHED, FAILED or KILLED, and tag it; see `tag_pipeline_run`."""
    run_id = tag_pipeline_run(tags)
    if run_id:
        with tracker("ending the run of the pipeline") as client:
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
    retrying: Retrying = IN_BACKGROUND,
) -> Iterator[StepRun]:
    """Track a step: its run ends as FINISHED, FAILED, or, after a stop request, KILLED.

    Args:
        step: name of the step, and of a new run.
        params: of the step; logged, and hashed into the provenance.
        data_version: of the photographs.
        tags: more facts.
        machine: whether to log load and memory of the machine and its GPUs with the values, as `system/...`.
        retrying: see `Delivery`.

    Raises:
        ServiceError: at the start, if the server is unreachable or refuses.
    """
    with tracker("starting a run") as client:
        parent, adopted = _pipeline_run(client), _adopted(client, step)
        repro = running_repro() if not parent and step != PIPELINE else None
        parent = _run_of_repro(client, repro) if repro else parent
        facts = {**provenance(params, data_version), **about_step(step), **(tags or {})}
        if parent and not adopted:
            facts[PARENT] = parent
        if step == PIPELINE:
            run_id = _begin_pipeline(client, adopted, params, facts)
        else:
            run_id = _begin(client, adopted, step, params, facts)
    if data_version:
        _describe_data(client, run_id, parent, step, data_version)
    spools = Path(os.environ.get(UNSENT) or WORKSPACE / "untracked")
    delivery = Delivery(client, run_id, spools, retrying)
    run = StepRun(client, run_id, parent, delivery, _machine(run_id) if machine else None)
    status, seconds = "FAILED", _SECONDS_TO_FINISH
    try:
        yield run
        status = "FINISHED"
    except (Preempted, KeyboardInterrupt):
        status, seconds = "KILLED", _SECONDS_WHEN_STOPPED
        raise
    finally:
        delivery.close(status, seconds)
        if parent and repro:
            _end_run_of_stage(client, parent, status)


def fetch_artifacts(pipeline_run: str, step: str, name: str, folder: Path) -> Path | None:
    """Fetch the files that a step of a pipeline's run stored under a name into a folder; return their folder.

    Return None if no run of the step is known.

    Raises:
        ServiceError: the server is unreachable or refuses, or the files are gone.
    """
    with tracker(f"fetching {name} of run {pipeline_run}") as client:
        experiment = client.get_run(pipeline_run).info.experiment_id
        wanted = f"tags.`{PARENT}` = '{pipeline_run}' and tags.step = '{step}'"
        found = client.search_runs([experiment], wanted, max_results=1)
        return Path(client.download_artifacts(found[0].info.run_id, name, str(folder))) if found else None


def ended_runs(
    tags: Mapping[str, str], status: Literal["FINISHED", "FAILED"], also_in: Collection[str] = ()
) -> list[str]:
    """Return the ids of the ten newest runs that have all of these tags and this status, newest first.

    Args:
        tags: of the runs.
        status: of the runs.
        also_in: ids of more experiments to search.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    with tracker("looking for earlier runs") as client:
        wanted = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        wanted = f"{wanted} and attributes.status = '{status}'"
        found = client.search_runs(sorted({experiment_id(client), *also_in}), wanted, max_results=10)
    return [str(run.info.run_id) for run in found]
