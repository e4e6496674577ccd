"""Reports on the pods of a TrainJob: the log of node 0, why pods do not start, and which container failed."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from signal import SIGTERM
from typing import Any

from kubernetes import client  # type: ignore[import-untyped]
from kubernetes.client.exceptions import ApiException  # type: ignore[import-untyped]
from urllib3.exceptions import HTTPError

from bebygan.errors import BebyganError, ConfigError, Preempted, ServiceError, error_of
from components.train.cluster_api import ClusterApi, one_line
from components.train.trainjob import CONTAINER

_INDEX = "batch.kubernetes.io/job-completion-index"
"""Label of a pod: the rank of its node."""
_SECONDS_READ_AGAIN = 5
"""Lines of stdout and stderr are not stored strictly in the order of their times."""
_TRIES_AT_THE_END = 5
"""To read the rest of the log after the training has ended."""
_LAST_LINES = 200
"""Lines at the end of a log that may contain the error line; torchrun prints more after it."""
_OUT_OF_MEMORY = 137
_STOPPED = (Preempted.exit_code, 128 + SIGTERM)
"""Exit codes of nodes that stopped because another one had failed."""
_Lines = Counter[tuple[datetime, str]]


def _copy_log(api: ClusterApi, pod: str, read: _Lines, log: Callable[[str], None], *, follow: bool) -> bool:
    """Print the lines of a pod's log that have not been read; return whether this reached its end."""
    since = max(when for when, _ in read) - timedelta(seconds=_SECONDS_READ_AGAIN) if read else None
    for old in [each for each in read if since and each[0] < since - timedelta(seconds=2)]:
        # The server returns no line before `since`, which it rounds to seconds.
        del read[old]
    again = Counter(read)
    try:
        for line in api.log(pod, since, follow=follow):
            time_of_line, _, text = line.partition(" ")
            try:
                when = datetime.fromisoformat(time_of_line)
            except ValueError:
                # Messages of the node have no time.
                log(line)
                continue
            if again[when, text]:
                again[when, text] -= 1
            else:
                read[when, text] += 1
                log(text)
    except (HTTPError, OSError):
        return False
    except ApiException as error:
        return bool(error.status == 404)
    return True


def _trouble(pod: client.V1Pod) -> str | None:
    """Return why a pod does not start, if its status has a reason."""
    for condition in pod.status.conditions or ():
        if condition.type == "PodScheduled" and condition.status == "False":
            return f"cannot be scheduled ({condition.reason}: {one_line(condition.message)})"
    for status in pod.status.container_statuses or ():
        waiting = status.state and status.state.waiting
        if waiting and waiting.reason not in (None, "ContainerCreating", "PodInitializing"):
            return f"does not start ({waiting.reason}: {one_line(waiting.message)})"
    return None


def _describe_command(api: ClusterApi, name: str) -> str:
    """Return the commands that show why a TrainJob has no pods: Kubernetes reports a refused pod on its Job."""
    kubectl = f"kubectl -n {api.namespace} describe"
    return f"{kubectl} job {name}-{CONTAINER}-0; {kubectl} trainjob,jobset {name}"


def _follow(api: ClusterApi, name: str, log: Callable[[str], None], ended: threading.Event) -> None:
    """Print the log of node 0, pod after pod, until the TrainJob has ended and the log is complete.

    Report for the pods of all nodes why they do not start: the others wait for them.
    """
    reads: dict[str, _Lines] = {}
    done: set[str] = set()
    reported: dict[str, str] = {}
    tries, started = _TRIES_AT_THE_END, time.monotonic()
    while tries:
        # Read before the request: a training that has ended writes no more lines.
        last = ended.is_set()
        unread = False
        pods = api.pods(name)
        if not pods and time.monotonic() - started > api.patience.first_pod and not reported:
            reported[name] = f"no pod yet; to see why: {_describe_command(api, name)}"
            log(reported[name])
        for pod in pods:
            key, pod_name, phase = pod.metadata.uid, pod.metadata.name, pod.status.phase
            if key in done:
                continue
            if phase == "Pending":
                trouble = _trouble(pod)
                if trouble and reported.get(key) != trouble:
                    log(f"pod {pod_name} {trouble}")
                    reported[key] = trouble
                continue
            if pod.metadata.labels[_INDEX] != "0":
                continue
            finished = phase in ("Succeeded", "Failed")
            if key not in reads:
                log(f"log of pod {pod_name}:")
            whole = _copy_log(api, pod_name, reads.setdefault(key, Counter()), log, follow=not finished and not last)
            if whole and finished:
                done.add(key)
            unread = unread or not whole
        if last and not unread:
            return
        tries -= last
        time.sleep(api.patience.between_looks) if last else ended.wait(api.patience.between_looks)


@contextmanager
def log_of_node_zero(api: ClusterApi, name: str, log: Callable[[str], None]) -> Iterator[None]:
    """Print the log of node 0 during the body, and the rest of it afterwards."""
    ended = threading.Event()

    def follow() -> None:
        try:
            _follow(api, name, log, ended)
        except (BebyganError, ApiException) as error:
            # A failure here must not fail the training.
            log(f"the log cannot be shown: {one_line(error)}")

    # A daemon: a dead connection must not keep the process alive.
    reader = threading.Thread(target=follow, name="log of node 0", daemon=True)
    reader.start()
    yield
    ended.set()
    reader.join(2 * api.patience.silence)


def _failed_container(pods: list[client.V1Pod]) -> tuple[str, int, str] | None:
    """Return pod, exit code and reason of the container that failed first, except those stopped by another failure."""
    failed = [
        (end.exit_code in _STOPPED, end.finished_at, pod.metadata.name, end.exit_code, end.reason or "Error")
        for pod in pods
        for status in pod.status.container_statuses or ()
        # Kubernetes gives code 137 and no time to a container that it lost with its machine.
        if status.name == CONTAINER and (end := status.state and status.state.terminated) and end.exit_code
        if end.finished_at
    ]
    return min(failed)[2:] if failed else None


def _error_line(api: ClusterApi, pod: str) -> str:
    """Return the error line of a pod's log, or its last line."""
    try:
        lines = [line.partition(" ")[2] for line in api.log(pod, None, follow=False, last=_LAST_LINES)]
    except (ServiceError, ApiException, HTTPError, OSError) as error:
        return f"its log cannot be read ({one_line(error)})"
    found = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()] or [""]
    return one_line(found[-1].removeprefix("error: "))


def failure_of(api: ClusterApi, name: str, condition: Mapping[str, Any]) -> Exception:
    """Return the error of a failed TrainJob, with the error line of the container that failed."""
    what = f"TrainJob {api.namespace}/{name} failed ({condition['reason']}: {one_line(condition['message'])})"
    if condition["reason"] == "DeadlineExceeded":
        return ConfigError(f"{what}: it took longer than its hours; allow more and run again to resume it")
    container = _failed_container(api.pods(name))
    if container is None:
        return ServiceError(f"{what}; for details: {_describe_command(api, name)}")
    pod, code, reason = container
    what = (
        f"{what}; pod {pod} ended with exit code {code}: {_error_line(api, pod)}; for details: "
        f"kubectl -n {api.namespace} describe trainjob {name}"
    )
    if reason == "OOMKilled" or code == _OUT_OF_MEMORY:
        return ConfigError(f"{what}; it exceeded its memory limit: allow more, or lower train.batch")
    return error_of(code, what)
