"""Run the pipeline on this machine with KFP's local runner, as processes or as containers.

KFP takes seconds to import: import this module only to run the pipeline.
"""

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
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TextIO

import psutil
from kfp import local

from bebygan.errors import ConfigError, Preempted, error_of, without_password
from bebygan.files import files_in, lock, whole_folder
from components.cli import FAILURE_FILE, RUNNER
from components.job import Job
from components.outputs import DIGEST, damaged, record_digest
from components.progress import WATCHER, say
from components.stores import absolute
from components.stores.data_version import push
from components.tracking.killed import end_runs_of_tasks, process_tag
from components.tracking.runs import PIPELINE, UNSENT, StepRun, step_run
from pipelines.retrain import retrain_here

_log = logging.getLogger(__name__)
_ROOT = Path(__file__).resolve().parents[2]
# Tasks import the packages of this checkout, even if the working folder contains others of the same names.
_SAME_PACKAGES = {
    "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
    "PYTHONSAFEPATH": "1",
}


class Outcome(NamedTuple):
    """Output folders of a run."""

    report: Path
    """Of the evaluate step."""
    registration: Path
    """Of the register step."""
    docs: Path | None = None
    """Of the ingest step; None if they are lost."""


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables, which the tasks inherit, and restore them afterwards."""
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
        # The process may have ended since.
        with suppress(psutil.NoSuchProcess):
            # The shell around a task must not end: it returns the exit code of the task.
            if not process.children():
                process.terminate()
                asked += 1
    return asked


@contextmanager
def _stop_requests_passed_on(ask_to_stop: Callable[[], int]) -> Iterator[Callable[[], bool]]:
    """Forward SIGTERM and Ctrl-C to the running task; a second Ctrl-C ends the run at once.

    Args:
        ask_to_stop: asks the running tasks to stop and returns their number.

    Yields:
        Function that returns whether a request came.
    """
    requested = threading.Event()

    def pass_on(number: int, _: object) -> None:
        if number == signal.SIGINT and requested.is_set():
            raise KeyboardInterrupt
        if not requested.is_set():
            # `say` would keep the pipe of the tasks' messages open.
            text = "stopping: finished steps are kept, a training saves a checkpoint; run again to continue"
            print(text, file=sys.stderr, flush=True)
        requested.set()
        if not ask_to_stop():
            # Between two tasks: try again for the next one.
            signal.alarm(1)

    if threading.current_thread() is not threading.main_thread():
        yield requested.is_set
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield requested.is_set
    finally:
        signal.alarm(0)
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _watcher(scratch: Path, *, containers: bool) -> Iterator[str]:
    """Yield a path to which tasks write messages for the user, which appear on our standard error.

    The runner redirects the output of tasks to its log. Containers have no access to the terminal.
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
    # This writer keeps the pipe open between two tasks.
    try:
        with path.open("w"):
            yield str(path)
    finally:
        reader.join()


def _failure_of_task(path: Path, log: Path, *, stopped: bool) -> Exception:
    """Return the error of the failed task.

    Args:
        path: see `components.cli.FAILURE_FILE`; missing or empty after an unexpected exception.
        log: the log of the run, with the traceback.
        stopped: whether the run received a stop request.
    """
    failure = json.loads((path.read_text() if path.exists() else "") or "{}")
    if "exit_code" in failure:
        return error_of(failure["exit_code"], failure["message"])
    if stopped:
        return Preempted("stopped on request; run again to continue")
    step, limit = failure.get("step"), Path(f"{path}.memory")
    if step and limit.exists():
        return ConfigError(
            f"{step} ran out of memory ({int(limit.read_text()) >> 20} MiB): lower its batch, crop or shards"
        )
    if step:
        # As after a stop request, the same command resumes.
        return Preempted(
            f"{step} was killed, perhaps because memory ran out (SIGKILL): run again; finished steps are kept, a "
            "training continues from its last checkpoint"
        )
    return RuntimeError(f"a step failed unexpectedly; the end of {log} shows how")


def _end_runs_of_killed_tasks(parent: StepRun) -> None:
    end_runs_of_tasks(parent.client, parent.run_id)


@contextmanager
def _log_of_this_run(path: Path) -> Iterator[TextIO]:
    """Yield the log with a lock on it; truncate it unless another run has a lock."""
    # NFS grants a shared lock only on files opened for reading.
    with path.open("a+") as log:
        if lock(log):
            log.truncate(0)
        lock(log, shared=True, wait=True)
        yield log


def _remove_unused(outputs_of_tasks: Path, used: Collection[Path]) -> None:
    """Remove the outputs of earlier runs, except those that this run took from the cache.

    Args:
        outputs_of_tasks: contains a folder per run, which contains a folder per task.
        used: folders of tasks to keep.
    """
    for run_folder in outputs_of_tasks.iterdir():
        try:
            for task in run_folder.iterdir():
                if task not in used:
                    shutil.rmtree(task)
            if not any(run_folder.iterdir()):
                run_folder.rmdir()
        except OSError as error:
            _log.warning("warning: cannot remove outputs of an earlier run in %s: %s", run_folder, error.strerror)


def _check_cache(cache: Path, outputs_of_tasks: Path, *, bypass: bool) -> None:
    """Remove damaged outputs and cache entries, so that their tasks run again; with `bypass` all entries.

    Entries of a workspace that was copied or moved are removed, too: they name the outputs of the original.

    KFP runs a task again if its cache has no entry, or if an output that the entry names is missing.
    """
    for output in damaged(outputs_of_tasks.glob(f"*/*/*{DIGEST}")):
        say(f"{output} is damaged: {output.parent.name} makes it again")
        shutil.rmtree(output)
    for entry in damaged(cache.glob(f"*{DIGEST}")):
        say(f"{entry} is damaged: its step runs again")
        entry.unlink()
    inside = json.dumps(f"{outputs_of_tasks}{os.sep}")[1:-1]
    for entry in cache.glob("*.json"):
        if bypass or inside not in entry.read_text(errors="replace"):
            entry.unlink(missing_ok=True)


def run(
    job: Job,
    workspace: Path,
    remote: str,
    ledger: str,
    *,
    reason: str,
    force: bool = False,
    containers: ModuleType | None = None,
    network: str | None = None,
) -> Outcome:
    """Run all steps of a job, tracked as one parent run in MLflow.

    A successful run removes outputs of earlier runs that it did not use, unless another run is in progress.

    Args:
        job: what to run.
        workspace: existing folder for outputs, caches and checkpoints.
        remote: DVC remote for the data version; empty for none.
        ledger: folder or s3:// prefix of the ledger; empty for none.
        reason: why the run starts; logged.
        force: use no outputs of earlier runs.
        containers: `pipelines.local.containers` to run each task in a container; None runs processes.
        network: network of the containers; None for the least that is needed.

    Raises:
        BebyganError: the one that a step failed with.
        RuntimeError: a step failed unexpectedly; names its log.
    """
    workspace = workspace.resolve()
    remote, ledger = absolute(remote), absolute(ledger)
    log, outputs_of_tasks, cache = workspace / "run.log", workspace / "pipeline", workspace / "cache"
    tags = {**job.tags, **process_tag(), "reason": reason, "remote": without_password(remote)}
    unsent = {UNSENT: os.environ.get(UNSENT) or str(workspace / "untracked")}
    # If Docker created it, it would belong to root.
    outputs_of_tasks.mkdir(exist_ok=True)
    _check_cache(cache, outputs_of_tasks, bypass=force)
    with (
        tempfile.TemporaryDirectory() as scratch,
        _watcher(Path(scratch), containers=containers is not None) as watcher,
        _environment(unsent),
        step_run(PIPELINE, job.params, tags=tags) as parent,
    ):
        failure = Path(scratch) / "failure.json"
        ask_to_stop = containers.ask_containers_to_stop if containers else _ask_processes_to_stop
        inherited = {"BEBYGAN_PARENT_RUN": parent.run_id, FAILURE_FILE: str(failure), WATCHER: watcher}
        if not containers:
            inherited[RUNNER] = str(os.getpid())
        with (
            _environment(inherited | _SAME_PACKAGES),
            _stop_requests_passed_on(ask_to_stop) as stopped,
            _log_of_this_run(log) as lines,
            redirect_stdout(lines),
            containers.in_containers(job, [workspace, Path(scratch)], [remote, ledger], network)
            if containers
            else nullcontext(local.SubprocessRunner(use_venv=False)) as runner,
        ):
            local.init(
                runner,
                pipeline_root=str(outputs_of_tasks),
                workspace_root=None,
                enable_caching=True,
                cache_root=str(cache),
            )
            finished = None
            # KFP's error names only the failed task; the failure file has the reason.
            with suppress(RuntimeError):
                finished = retrain_here(job, remote=remote, ledger=ledger, checkpoints=str(workspace / "checkpoints"))()
            for entry in cache.glob("*.json"):
                record_digest(entry)
            # KFP may take a failed container for a success: see `pipelines.local.containers`.
            if finished is None or failure.exists():
                _end_runs_of_killed_tasks(parent)
                raise _failure_of_task(failure, log, stopped=stopped())
            outputs = {name: Path(artifact.path) for name, artifact in finished.outputs.items()}
            if lock(lines):
                _remove_unused(outputs_of_tasks, {path.parent for path in outputs.values()})
        if remote and outputs["dataset"].parents[1] != outputs["registration"].parents[1]:
            # Taken from the cache: the remote may have lost objects since ingest pushed them.
            push(outputs["dataset"], remote)
    return Outcome(outputs["evaluation"], outputs["registration"], outputs["docs"])


def publish(outcome: Outcome, workspace: Path) -> Path:
    """Replace report and Data Docs in the workspace by those of a run, and return the page of the report."""
    for name, source in (("report", outcome.report), ("data-docs", outcome.docs)):
        if source:
            with whole_folder(workspace / name) as folder:
                # copytree hides the error of a full disk.
                for path in files_in(source):
                    copy = folder / path.relative_to(source)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
    return workspace / "report" / "report.html"
