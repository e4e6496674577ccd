"""Watch and list runs on a cluster."""

import argparse
import logging
import time
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from itertools import islice

from tabulate import tabulate
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_fixed

from bebygan.errors import ServiceError
from components.progress import printable
from pipelines.kubeflow.client import Kubeflow, Patience, Run, connect, status_of

_log = logging.getLogger(__name__)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, ServiceError) and status_of(error) not in (400, 401, 403, 404)


def _warn_once(state: RetryCallState) -> None:
    if state.attempt_number == 1 and state.outcome:
        _log.warning("warning: %s; trying again", state.outcome.exception())


def retrying_outages(patience: Patience) -> Retrying:
    """Return a policy that repeats a call while the server is unreachable."""
    return Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_fixed(patience.poll),
        stop=stop_after_delay(patience.outage),
        before_sleep=_warn_once,
        reraise=True,
    )


def watch(kubeflow: Kubeflow, run_id: str) -> Iterator[Run]:
    """Yield a run at intervals, until it has ended.

    Raises:
        ServiceError: the server rejects the request, or stays unreachable.
    """
    yield (run := kubeflow.run(run_id))
    while run.alive:
        time.sleep(kubeflow.patience.poll)
        yield (run := retrying_outages(kubeflow.patience)(kubeflow.run, run_id))


def wait(kubeflow: Kubeflow, run_id: str, tasks: Collection[str], report: Callable[[str], None]) -> None:
    """Wait until a run ends, and report one line whenever one of the tasks changes its state.

    Raises:
        ServiceError: the server stays unreachable, or the run does not succeed; names the failed tasks.
    """
    states: dict[str, str] = {}
    for run in watch(kubeflow, run_id):
        for task in run.tasks:
            if task.name in tasks and states.get(task.name) != task.state:
                states[task.name] = task.state
                report(f"{task.name} {task.state.lower()}")
    if run.state not in ("SUCCEEDED", "SKIPPED"):
        failed = [task for task in run.tasks if task.name in tasks and task.state == "FAILED"]
        reasons = "; ".join(f"{task.name}: {task.error}" if task.error else task.name for task in failed)
        raise ServiceError(
            f"the run {run_id} ended {run.state.lower()} ({reasons or run.error or 'no task failed'}): "
            f"`bebygan logs {run_id}` shows its logs"
        )


def age(moment: datetime) -> str:
    """Return the time since a moment in its largest unit, such as "3 h"."""
    seconds = max(int((datetime.now(UTC) - moment).total_seconds()), 0)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def runs(options: argparse.Namespace) -> None:
    """Print the newest runs."""
    rows = [
        (run.id, printable(run.name), run.state.lower(), age(run.created_at), printable(run.error))
        for run in islice(connect().runs(), options.number)
    ]
    headers = ("ID", "NAME", "STATE", "AGE", "ERROR")
    print(tabulate(rows, headers, tablefmt="plain", disable_numparse=True) if rows else "there are no runs")
