"""Logs of a run's tasks, read from their pods through the Kubernetes API."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from kubernetes import client, config  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError, LocationValueError

from bebygan.errors import ConfigError, ServiceError
from pipelines.kubeflow import client as kfp
from pipelines.kubeflow.client import RUN_LABEL, TASK_LABEL, Kubeflow, Run, connect, status_of
from pipelines.kubeflow.runs import retrying_outages, watch


@dataclass
class _Pods:
    """The pods of a run."""

    core: client.CoreV1Api
    host: str
    namespace: str
    run_id: str

    def _ask(self, doing: str, call: Callable[..., Any], **named: Any) -> Any:
        try:
            return call(namespace=self.namespace, _request_timeout=(5, 30), **named)
        except (client.ApiException, HTTPError, OSError) as error:
            refused = f"{error.status} {error.reason}" if isinstance(error, client.ApiException) else ""
            cause = refused or kfp.reason_of(error)
            where = f"Kubernetes' {self.host}, namespace {self.namespace}"
            raise ServiceError(f"{doing} failed at {where} ({cause})") from error

    def list(self) -> list[client.V1Pod]:
        """Return the pods with a task's label, or all pods of the run if no pod has one; oldest first."""
        call = self.core.list_namespaced_pod
        pods = self._ask("listing pods", call, label_selector=f"{RUN_LABEL}={self.run_id}").items
        pods = [pod for pod in pods if TASK_LABEL in pod.metadata.labels] or pods
        return sorted(pods, key=lambda pod: (pod.metadata.creation_timestamp, pod.metadata.name))

    def log(self, pod: str) -> str:
        """Return a pod's log; empty if the pod has not started or no longer exists."""
        # Without this option the client parses a log that is JSON.
        raw = {"container": "main", "_preload_content": False}
        try:
            answer = self._ask(f"reading the log of {pod}", self.core.read_namespaced_pod_log, name=pod, **raw)
        except ServiceError as error:
            if status_of(error) in (400, 404):
                return ""
            raise
        return str(answer.data.decode(errors="replace"))


def _pods(kubeflow: Kubeflow, run_id: str) -> _Pods:
    """Connect to the cluster of the kubeconfig, else to that of the pod in which this runs."""
    settings, kubeconfig = client.Configuration(), os.environ.get("KUBECONFIG")
    own = None
    try:
        try:
            config.load_kube_config(kubeconfig, client_configuration=settings)
            own = config.list_kube_config_contexts(kubeconfig)[1]["context"].get("namespace")
        except config.ConfigException:
            config.load_incluster_config(settings)
            own = kfp.NAMESPACE_FILE.read_text().strip()
    except (config.ConfigException, OSError, ValueError, LocationValueError) as error:
        raise ServiceError("the logs of the pods cannot be read: there is no usable kubeconfig") from error
    settings.retries = False
    namespace = kubeflow.namespace or os.environ.get("KFP_NAMESPACE") or own or "kubeflow"
    return _Pods(client.CoreV1Api(client.ApiClient(settings)), settings.host, namespace, run_id)


def _show(
    pods: _Pods, runs: Iterator[Run], ask: Callable[..., Any], only: str | None, *, follow: bool
) -> Iterator[str]:
    read: Counter[str] = Counter()
    """Characters that were read of each pod's log."""
    complete: set[str] = set()
    """Pods that have ended and were read."""
    headings: dict[str, str] = {}
    """Last heading of each task."""
    current, known = "", set()
    for run in runs:
        tasks = {task.name: task for task in run.tasks}
        for pod in ask(pods.list):
            name, id_ = pod.metadata.name, pod.metadata.uid
            task = pod.metadata.labels.get(TASK_LABEL, name)
            known.add(task)
            if only not in (None, task):
                continue
            ended = pod.status.phase in ("Succeeded", "Failed") or not run.alive
            text = "" if id_ in complete else ask(pods.log, name)[read[id_] :]
            if follow and not ended:
                # The last line is incomplete.
                text = text[: text.rfind("\n") + 1]
            read[id_] += len(text)
            if ended:
                complete.add(id_)
            state, error = (tasks[task].state, tasks[task].error) if task in tasks else (pod.status.phase, "")
            heading = f"== {task} ({state.lower()}){f': {error}' if error else ''}"
            if (text and current != heading) or (error and headings.get(task) != heading):
                current = headings[task] = heading
                yield heading
            if text:
                yield text.removesuffix("\n")
    if only and known and only not in known:
        raise ConfigError(f"the run {run.id} has no task {only}; it has {', '.join(sorted(known))}")
    if not headings:
        failed = "".join(f"; {task.name} failed: {task.error}" for task in run.tasks if task.error)
        raise ServiceError(f"no pod of the run {run.id} ({run.state.lower()}) has a log{failed}")


def logs(kubeflow: Kubeflow, run_id: str, only: str | None = None, *, follow: bool = False) -> Iterator[str]:
    """Yield the logs of a run's tasks, or of one, below headings with a task's name and state.

    With `follow`, yield new lines until the run ends.

    Raises:
        ConfigError: the run has no such task.
        ServiceError: a server is unreachable or rejects the request, or there is no log; names other ways to find it.
    """
    run = kubeflow.run(run_id)
    runs = watch(kubeflow, run_id) if follow else iter([run])
    namespace = kubeflow.namespace or os.environ.get("KFP_NAMESPACE")
    try:
        pods = _pods(kubeflow, run_id)
        namespace = pods.namespace
        ask = retrying_outages(kubeflow.patience) if follow else lambda call, *arguments: call(*arguments)
        yield from _show(pods, runs, ask, only, follow=follow)
    except ServiceError as error:
        labels = f"{RUN_LABEL}={run_id}" + (f",{TASK_LABEL}={only}" if only else "")
        where = f" --namespace {namespace}" if namespace else ""
        raise ServiceError(
            f"{error}; see {kubeflow.page(run_id)}, or while its pods exist: "
            f"`kubectl logs{where} --selector {labels} --container main --prefix --tail -1`"
        ) from error


def show(options: argparse.Namespace) -> None:
    """Print the logs of a run."""
    try:
        for text in logs(connect(), options.run_id, options.task, follow=options.follow):
            print(text, flush=True)
    except BrokenPipeError:
        # The reader, such as `| head`, has ended, and the interpreter's last flush must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
