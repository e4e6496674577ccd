"""Runs on a cluster: start one, wait for it, list them, read their logs."""

import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from bebygan.errors import ConfigError, ServiceError
from components.config import Params
from components.job import inputs_of
from pipelines.kubeflow.client import Kubeflow, Run, Task, status_of
from pipelines.kubeflow.resources import load_cluster
from pipelines.kubeflow.schedule_file import SERVICE_ACCOUNT, retrain_package
from pipelines.kubeflow.schedules import upload

_SECONDS_BETWEEN_LOOKS = 10.0
_SECONDS_OF_ABSENCE = 600.0
"""For how long a server that has answered may be away: an upgrade, or another machine for it."""
_TEMPLATES = ("retry-system-container-impl-", "system-container-impl-", "")
"""Argo's templates of the pods that do a task's work, a part of their names; older versions leave it out."""
_EXECUTOR = re.compile(r"(?P<task>.+)\.executor(\((?P<attempt>\d+)\))?")
"""Path of a node that does a task's work; with retries there is one below it for each attempt."""
_log = logging.getLogger(__name__)
T = TypeVar("T")


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
        service_account=SERVICE_ACCOUNT,
    )


def _patiently(ask: Callable[[], T]) -> T:
    """Return what `ask` returns, as soon as a server that is away for a while is there again.

    Raises:
        ServiceError: it stays away, or refuses.
    """
    started, warned = time.monotonic(), False
    while True:
        try:
            return ask()
        except ServiceError as error:
            if status_of(error) in (400, 401, 403, 404) or time.monotonic() - started > _SECONDS_OF_ABSENCE:
                raise
            if not warned:
                _log.warning("warning: %s; trying on", error)
                warned = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _looks(kubeflow: Kubeflow, run_id: str) -> Iterator[Run]:
    """Yield a run now and then, until it has ended."""
    run = kubeflow.run(run_id)
    yield run
    while run.alive:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        run = _patiently(partial(kubeflow.run, run_id))
        yield run


def _node(workflow: str, path: str) -> str:
    """Return the id that Argo gives to a node: the workflow's name, and the 32 bits of FNV-1a of the node's path."""
    digest = 0x811C9DC5
    for byte in path.encode():
        digest = (digest ^ byte) * 0x01000193 % 2**32
    return f"{workflow}-{digest}"


def _work(run: Run) -> list[tuple[Task, list[str]]]:
    """Return a run's tasks as they began, each with the ids of those nodes of Argo that do its work, an attempt each.

    What Kubeflow tells is flat: the names of all nodes, and the ids of what comes after each, which may be a part of
    it or the next task. But a node's id is a hash of its path, such as workflow.root.train.executor(0), so that the
    paths can be found by trying the names.
    """
    ids = {child for task in run.tasks for child in task.children}
    tasks = {task.name: task for task in run.tasks}
    workflow = min(ids, default="").rpartition("-")[0]
    paths = [workflow]
    # It grows meanwhile.
    for path in paths:
        longer = (f"{path}.{name}" for name in tasks)
        paths += [each for each in longer if _node(workflow, each) in ids]
    attempts: dict[str, dict[int, str]] = defaultdict(dict)
    for path in paths:
        if match := _EXECUTOR.fullmatch(path):
            name = match["task"].rpartition(".")[2]
            attempts[name][int(match["attempt"] or -1)] = _node(workflow, path)
    found = [
        # Where there are several attempts, the node above them has no pod.
        (tasks[name], [nodes[number] for number in sorted(nodes) if number >= 0 or len(nodes) == 1])
        for name, nodes in attempts.items()
    ]
    return sorted(found, key=lambda each: (str(each[0].started_at), each[0].name))


def wait(kubeflow: Kubeflow, run_id: str, tell: Callable[[str], None]) -> Run:
    """Wait until a run ends, and tell when a task changes its state.

    Raises:
        ServiceError: the server stays away, or the run ends otherwise than well; names the tasks that failed.
    """
    known: dict[str, str] = {}
    for run in _looks(kubeflow, run_id):
        tasks = [task for task, _ in _work(run)]
        for task in tasks:
            if known.get(task.id) != task.state:
                known[task.id] = task.state
                tell(f"{task.name} {task.state.lower()}")
    if run.state not in ("SUCCEEDED", "SKIPPED"):
        failed = [f"{task.name}{f': {task.error}' if task.error else ''}" for task in tasks if task.state == "FAILED"]
        raise ServiceError(
            f"the run {run_id} ended {run.state.lower()} ({'; '.join(failed) or run.error or 'no task failed'}): "
            f"`bebygan logs {run_id}` shows what it printed"
        )
    return run


def _printed(kubeflow: Kubeflow, run: Run, node: str) -> str:
    """Return what the pod of a node printed, as far as the server still has it."""
    workflow, _, digest = node.rpartition("-")
    for template in _TEMPLATES:
        log = _patiently(partial(kubeflow.log, run.id, f"{workflow}-{template}{digest}"))
        if log is not None:
            return log
    return ""


def _heading(task: Task) -> str:
    return f"== {task.name} ({task.state.lower()}){f': {task.error}' if task.error else ''}"


def logs(kubeflow: Kubeflow, run_id: str, only: str | None = None, *, follow: bool = False) -> Iterator[str]:
    """Yield the logs of a run's tasks, below lines that name the task and its state.

    Args:
        kubeflow: the server.
        run_id: the run.
        only: name of the one task to show; None shows all.
        follow: go on with what is printed until the run ends, line by line.

    Raises:
        ConfigError: there is no such task.
        ServiceError: the server is away or refuses, or has no log any more.
    """
    shown: Counter[str] = Counter()
    """Characters of each node's log."""
    told: dict[str, str] = {}
    """Last heading of each task."""
    over: set[str] = set()
    """Tasks of which there will be no more."""
    current = ""
    for run in _looks(kubeflow, run_id) if follow else [kubeflow.run(run_id)]:
        work = _work(run)
        for task, nodes in work:
            if task.name in over or only not in (None, task.name):
                continue
            fresh = ""
            for node in nodes:
                new = _printed(kubeflow, run, node)[shown[node] :]
                # The rest of a line is yet to come.
                new = new[: new.rfind("\n") + 1] if follow and run.alive and task.alive else new
                shown[node] += len(new)
                fresh += new
            if (fresh and current != task.name) or ((fresh or task.error) and told.get(task.name) != _heading(task)):
                current, told[task.name] = task.name, _heading(task)
                yield told[task.name]
            if fresh:
                yield fresh.removesuffix("\n")
            if not task.alive:
                over.add(task.name)
    names = sorted(task.name for task, _ in work)
    if only and only not in names:
        raise ConfigError(f"the run {run_id} has no task {only}; it has {', '.join(names) or 'none yet'}")
    if not told:
        namespace = f" --namespace {kubeflow.namespace}" if kubeflow.namespace else ""
        kubectl = f"kubectl logs{namespace} --selector pipeline/runid={run_id} --container main --prefix --tail -1"
        raise ServiceError(
            f"Kubeflow's {kubeflow.host} has no log of the run {run_id} ({run.state.lower()}): while its pods are "
            f"there, `{kubectl}` shows it"
        )
