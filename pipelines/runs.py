"""Runs on a cluster: start one, wait for it, list them, read their logs."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bebygan.errors import ConfigError, ServiceError
from components.common.config import Params
from components.common.job import inputs_of
from components.common.kubeflow import Kubeflow, Run, Task
from pipelines.cluster import load_cluster
from pipelines.declared import SERVICE_ACCOUNTS, retrain_package
from pipelines.schedules import upload

_SECONDS_BETWEEN_LOOKS = 10.0
_DRIVER = "-driver"
"""End of the names of those nodes that only prepare a task."""
_TEMPLATE = "system-container-impl"
"""Argo's template of the pods that do a task's work; from Argo 3.4 on it is a part of their names."""


def submit(
    kubeflow: Kubeflow,
    cluster: Path,
    params: Params,
    *,
    places: Mapping[str, str],
    experiment: str,
    force: str,
    reason: str,
) -> str:
    """Start the retraining pipeline now, uploaded when it is not there, and return the run's id.

    Args:
        kubeflow: the server.
        cluster: file with images and machines.
        params: parameters of the run.
        places: source, remote, checkpoints, ledger.
        experiment: Kubeflow's experiment.
        force: auto or always, see `pipelines.retrain`.
        reason: logged by the run.

    Raises:
        ConfigError: the cluster's settings are wrong.
        ServiceError: the server is away or refuses.
    """
    package = retrain_package(load_cluster(cluster))
    parameters = {**places, **inputs_of(params), "force": force, "reason": reason}
    package.check(parameters)
    pipeline_id, version_id = upload(kubeflow, package)
    return kubeflow.create_run(
        name=f"{package.pipeline} {time.strftime('%Y-%m-%d %H:%M', time.gmtime())}",
        description=reason,
        experiment_id=kubeflow.experiment(experiment),
        pipeline_id=pipeline_id,
        version_id=version_id,
        parameters=parameters,
        service_account=SERVICE_ACCOUNTS["retrain"],
    )


def wait(kubeflow: Kubeflow, run_id: str, tell: Callable[[str], None]) -> Run:
    """Wait until a run ends, and tell when a task changes its state.

    Raises:
        ServiceError: the server stays away, or the run ends otherwise than well; names the tasks that failed.
    """
    known: dict[str, str] = {}
    while True:
        run = kubeflow.run(run_id)
        for task in run.tasks:
            if not task.name.endswith(_DRIVER) and known.get(task.id) != task.state:
                known[task.id] = task.state
                tell(f"{task.name} {task.state.lower()}")
        if not run.alive:
            break
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    if run.state not in ("SUCCEEDED", "SKIPPED"):
        failed = [f"{task.name}: {task.error}" for task in run.tasks if task.state == "FAILED" and task.error]
        raise ServiceError(
            f"the run {run_id} ended {run.state.lower()} ({'; '.join(failed) or run.error or 'no task failed'}): "
            f"`bebygan logs {run_id}` shows what it printed"
        )
    return run


def _nodes(run: Run, task: Task) -> list[str]:
    """Return the nodes that do a task's work: its own, or where Kubeflow tells of them, those of its attempts."""
    known = {each.pod: each for each in run.tasks if each.pod}
    nodes = list(task.children) or [task.pod]
    while any(known[node].children for node in nodes if node in known):
        nodes = [inner for node in nodes for inner in (known[node].children if node in known else ()) or (node,)]
    return nodes


def _log(kubeflow: Kubeflow, run: Run, task: Task) -> str:
    """Return what all pods of a task printed, as far as the server still has it."""
    found = []
    for node in _nodes(run, task):
        workflow, _, number = node.rpartition("-")
        logs = (kubeflow.log(run.id, pod) for pod in (f"{workflow}-{_TEMPLATE}-{number}", node) if workflow)
        found.append(next((log for log in logs if log is not None), ""))
    return "".join(found)


def logs(kubeflow: Kubeflow, run_id: str, only: str | None = None) -> Iterator[str]:
    """Yield the logs of a run's tasks, each below a line that names the task and its state.

    Args:
        kubeflow: the server.
        run_id: the run.
        only: name of the one task to show; None shows all.

    Raises:
        ConfigError: there is no such task.
        ServiceError: the server is away or refuses, or has no log any more.
    """
    run = kubeflow.run(run_id)
    tasks = [task for task in run.tasks if not task.name.endswith(_DRIVER)]
    chosen = [task for task in tasks if only in (None, task.name)]
    if only and not chosen:
        names = sorted({task.name for task in tasks})
        raise ConfigError(f"the run {run_id} has no task {only}; it has {', '.join(names) or 'none yet'}")
    silent = True
    for task in chosen:
        log = _log(kubeflow, run, task)
        if log or task.error:
            silent = False
            yield f"== {task.name} ({task.state.lower()}){f': {task.error}' if task.error else ''}"
        if log:
            yield log.removesuffix("\n")
    if silent:
        namespace = f" --namespace {kubeflow.namespace}" if kubeflow.namespace else ""
        kubectl = f"kubectl logs{namespace} --selector pipeline/runid={run_id} --container main --prefix --tail -1"
        raise ServiceError(
            f"Kubeflow's {kubeflow.host} has no log of the run {run_id} ({run.state.lower()}): while its pods are "
            f"there, `{kubectl}` shows it"
        )
