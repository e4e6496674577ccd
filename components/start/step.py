"""Start the retraining pipeline on the server whose task we are, once for one cause."""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime

from bebygan.errors import ServiceError
from components.progress import say
from components.start.kubeflow_client import Kubeflow, Run, connect

PIPELINE = "bebygan-retrain"
_OF_THIS_RUN = ("reason", "force")
"""Inputs that say why a run was started, and nothing about what it makes."""


def identity(inputs: Mapping[str, object]) -> str:
    """Return a hash of the inputs that decide what a run makes."""
    told = {name: value for name, value in inputs.items() if name not in _OF_THIS_RUN}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _alike(kubeflow: Kubeflow, pipeline: str, inputs: Mapping[str, str]) -> list[Run]:
    """Return the runs of the same inputs that have not ended, the oldest first."""
    wanted = identity(inputs)
    found = [run for run in kubeflow.alive_runs() if run.pipeline_id == pipeline and identity(run.parameters) == wanted]
    return sorted(found, key=lambda run: (run.created_at, run.id))


def start(inputs: Mapping[str, str], *, experiment: str, version: str, service_account: str, reason: str) -> str:
    """Start a run, unless one of the same inputs has not ended yet.

    Photographs that arrive while it trains are seen by the next look after its end.

    Args:
        inputs: of the retraining pipeline.
        experiment: Kubeflow's experiment for it.
        version: name of the pipeline's version; empty for the newest one.
        service_account: of its pods.
        reason: why; logged by the run.

    Returns:
        The id of the run that is now under way.

    Raises:
        ServiceError: the server is away or refuses, or knows no such pipeline or version.
    """
    kubeflow = connect()
    pipeline = kubeflow.find_pipeline(PIPELINE)
    version_id = pipeline and kubeflow.find_version(pipeline, version or None)
    if not pipeline or not version_id:
        raise ServiceError(
            f"Kubeflow's {kubeflow.host} has no pipeline {PIPELINE}{f' in version {version}' if version else ''}: "
            "upload it with `bebygan schedule apply`"
        )
    if alike := _alike(kubeflow, pipeline, inputs):
        say(f"not started: the run {alike[0].id} of the same inputs has not ended")
        return alike[0].id
    started = kubeflow.create_run(
        name=f"{PIPELINE} {datetime.now(UTC):%Y-%m-%d %H:%M}",
        description=reason,
        experiment_id=kubeflow.experiment(experiment),
        pipeline_id=pipeline,
        version_id=version_id,
        parameters={**inputs, "reason": reason},
        service_account=service_account,
    )
    # Two who looked at once both found none, and both started one. Each stops all but the oldest.
    oldest, *younger = _alike(kubeflow, pipeline, inputs) or [kubeflow.run(started)]
    for run in younger:
        kubeflow.terminate(run.id)
    if oldest.id != started:
        say(f"not started: the run {oldest.id} of the same inputs was quicker")
        return oldest.id
    say(f"started the run {started}")
    return started
