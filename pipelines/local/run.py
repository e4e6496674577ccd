"""Run the pipeline here, through Kubeflow's local runner, as processes of this Python environment or as containers."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

from bebygan.errors import BebyganError, Preempted
from bebygan.files import lock, whole_folder
from components.artifacts import read_verdict
from components.cli import FAILURE_FILE
from components.job import Job, inputs_of
from components.progress import WATCHER
from components.stores import absolute
from components.tracking.client import service_errors
from components.tracking.runs import PIPELINE, step_run

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parents[2]
# Tasks import this checkout's packages, also if the working folder contains others of the same names.
_SAME_PACKAGES = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
    "PYTHONSAFEPATH": "1",
}


@dataclass(frozen=True)
class Outcome:
    """What a run left behind."""

    report: Path
    """Folder that the evaluate step wrote."""
    registration: Path
    """Folder that the register step wrote."""


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which the tasks inherit, and put back what was there."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _ask_processes_to_stop() -> int:
    asked = 0
    for process in psutil.Process().children(recursive=True):
        # It may end at this moment.
        with suppress(psutil.NoSuchProcess):
            # A shell between us and the task waits for it, and must live to tell its exit code.
            if not process.children():
                process.terminate()
                asked += 1
    return asked


@contextmanager
def _stop_requests_passed_on(ask_to_stop: Callable[[], int]) -> Iterator[Callable[[], bool]]:
    """Pass SIGTERM on to the running task, whose end then ends the run, and yield whether it came.

    Args:
        ask_to_stop: asks the running task, and returns how many there were.
    """
    requested = threading.Event()

    def pass_on(*_: object) -> None:
        requested.set()
        if not ask_to_stop():
            # No task runs yet, or no more: the next one will be asked.
            signal.alarm(1)

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield requested.is_set
    finally:
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watcher(scratch: Path, *, containers: bool) -> Iterator[str]:
    """Yield a path that tasks write to what is meant for a person: it comes out of our standard error.

    The runner pipes what tasks print into its own log, and gives them no other open file. Containers see no terminal.
    """
    if sys.stderr.isatty() and not containers:
        yield os.ttyname(sys.stderr.fileno())
        return
    path = scratch / "watcher"
    os.mkfifo(path)

    def copy() -> None:
        with path.open() as lines:
            for line in lines:
                print(line, end="", file=sys.stderr, flush=True)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    # Our own end keeps the pipe open from the first task to the last.
    try:
        with path.open("w"):
            yield str(path)
    finally:
        reader.join()


def _failure_of_task(path: Path, log: Path, *, stopped: bool) -> Exception:
    """Return what the failed task left for us; where it left nothing, it met a bug, and its log tells."""
    if not path.exists():
        if stopped:
            return Preempted("stopped on request; run again to go on")
        return RuntimeError(f"a step failed unexpectedly; the end of {log} says how")
    failure = json.loads(path.read_text())
    kinds = {kind.exit_code: kind for kind in BebyganError.__subclasses__()}
    return kinds[failure["exit_code"]](failure["message"])


@contextmanager
def _log_of_this_run(path: Path) -> Iterator[TextIO]:
    """Yield the log, empty unless another run under way writes to it: each holds a lock on it."""
    # NFS shares a lock only with who may read.
    with path.open("a+") as log:
        if lock(log):
            log.truncate(0)
        lock(log, shared=True, wait=True)
        yield log


def _remove_unused(outputs_of_tasks: Path, used: Collection[Path]) -> None:
    """Remove what earlier runs left and this one did not take from the cache: else the disk fills, run by run.

    Args:
        outputs_of_tasks: a folder for each run, and in it one for each task.
        used: folders of tasks that stay.
    """
    for run_folder in outputs_of_tasks.iterdir():
        try:
            for task in run_folder.iterdir():
                if task not in used:
                    shutil.rmtree(task)
            if not any(run_folder.iterdir()):
                run_folder.rmdir()
        except OSError as error:
            _log.warning("warning: what an earlier run left in %s cannot be removed: %s", run_folder, error.strerror)


def run(
    job: Job,
    workspace: Path,
    remote: str,
    ledger: str,
    *,
    reason: str,
    containers: bool = False,
    network: str | None = None,
) -> Outcome:
    """Run all steps of a job, tracked as one parent run in MLflow.

    A run that ends well removes from the workspace what earlier ones left there and it did not use, unless another run
    is under way.

    Args:
        job: what to run.
        workspace: existing folder for the steps' outputs, caches and checkpoints.
        remote: DVC remote that the data version is pushed to; empty to push nowhere.
        ledger: folder or s3:// prefix where each move of the champion is entered; empty for none.
        reason: why; logged.
        containers: whether each task gets a container of its own, rather than a process.
        network: that containers are in; None for the least that will do.

    Raises:
        BebyganError: the one that a step failed with.
        RuntimeError: a step met a bug; says where its log is.
    """
    # Kubeflow takes seconds to import: not before it is needed.
    from kfp import local  # noqa: PLC0415

    from pipelines.local.containers import ask_containers_to_stop, in_containers  # noqa: PLC0415
    from pipelines.retrain import retrain  # noqa: PLC0415

    workspace = workspace.resolve()
    remote, ledger = absolute(remote), absolute(ledger)
    log, outputs_of_tasks = workspace / "run.log", workspace / "pipeline"
    # A Docker engine would make it root's.
    outputs_of_tasks.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _watcher(Path(scratch), containers=containers) as watcher,
        step_run(PIPELINE, job.params, tags={**job.tags, "reason": reason}) as parent,
    ):
        failure = Path(scratch) / "failure.json"
        inherited = {
            "BEBYGAN_PARENT_RUN": parent.run_id,
            FAILURE_FILE: str(failure),
            WATCHER: watcher,
            **_SAME_PACKAGES,
        }
        with (
            _environment(inherited),
            _stop_requests_passed_on(ask_containers_to_stop if containers else _ask_processes_to_stop) as stopped,
            _log_of_this_run(log) as lines,
            redirect_stdout(lines),
            in_containers(job, [workspace, Path(scratch)], [remote, ledger], network)
            if containers
            else nullcontext(local.SubprocessRunner(use_venv=False)) as runner,
        ):
            local.init(
                runner,
                pipeline_root=str(outputs_of_tasks),
                workspace_root=None,
                enable_caching=True,
                cache_root=str(workspace / "cache"),
            )
            try:
                finished = retrain(
                    source=job.source,
                    source_version=job.source_version,
                    code_version=job.code_version,
                    remote=remote,
                    ledger=ledger,
                    checkpoints=str(workspace / "checkpoints"),
                    **inputs_of(job.params),
                )
            except RuntimeError as error:
                raise _failure_of_task(failure, log, stopped=stopped()) from error
            outputs = {name: Path(artifact.path) for name, artifact in finished.outputs.items()}
            if lock(lines):
                # No other run is under way.
                _remove_unused(outputs_of_tasks, {path.parent for path in outputs.values()})
        verdict = read_verdict(outputs["evaluation"])
        with service_errors("tagging the run"):
            parent.client.set_tag(parent.run_id, "data_version", verdict.data_version)
    return Outcome(outputs["evaluation"], outputs["registration"])


def publish(outcome: Outcome, workspace: Path) -> Path:
    """Copy the report of a run to where the newest one is always found, and return its page."""
    target = workspace / "report"
    with whole_folder(target) as folder:
        shutil.copytree(outcome.report, folder, dirs_exist_ok=True)
    return target / "report.html"
