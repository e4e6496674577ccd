"""Runs in MLflow whose process was killed (SIGKILL): nobody else ends them."""

import logging
import os
from pathlib import Path

from bebygan.errors import ServiceError
from components.tracking.client import MlflowClient, service_errors, tracker
from components.tracking.runs import PARENT, PIPELINE, experiment_id

_PROCESS = "process"
"""Tag of a run of the whole pipeline: boot of the machine, PID namespace, PID, and start of the process in ticks."""
_log = logging.getLogger(__name__)


def _identity(pid: int) -> str | None:
    """Return what no other process has, on any machine, at any time; None if the process has ended."""
    try:
        state, *values = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return None
    # A killed process stays until its parent asks for its exit code.
    return None if state in "ZX" else f"{boot} {namespace} {pid} {values[18]}"


def _has_ended(process: str) -> bool:
    pid = int(process.split()[2])
    if Path(f"/proc/{pid}").exists():
        return _identity(pid) != process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    # The system hides processes of other users.
    return False


def process_tag() -> dict[str, str]:
    """Return the tag by which `end_killed_runs` knows the process of a run; {} on systems without /proc."""
    own = _identity(os.getpid())
    return {_PROCESS: own} if own else {}


def end_runs_of_tasks(client: MlflowClient, pipeline_run: str) -> None:
    """End the runs of the tasks of a pipeline that still count as running; warn if the server fails."""
    wanted = f"tags.`{PARENT}` = '{pipeline_run}' and attributes.status = 'RUNNING'"
    try:
        with service_errors("ending the runs of killed tasks"):
            experiment = client.get_run(pipeline_run).info.experiment_id
            for run in client.search_runs([experiment], wanted):
                client.set_terminated(run.info.run_id, "KILLED")
    except ServiceError as error:
        _log.warning("warning: %s", error)


def end_killed_runs() -> None:
    """End the runs of the whole pipeline whose process on this machine has ended without ending them.

    Runs of other machines and containers stay as they are. A failure of the server is a warning.
    """
    if (own := _identity(os.getpid())) is None:
        return
    here = " ".join(own.split()[:2])
    wanted = f"tags.step = '{PIPELINE}' and attributes.status = 'RUNNING' and tags.{_PROCESS} LIKE '{here} %'"
    try:
        with tracker("ending the runs of killed processes") as client:
            for run in client.search_runs([experiment_id(client)], wanted):
                run_id, ended = run.info.run_id, _has_ended(run.data.tags[_PROCESS])
                # It may have ended its run after the search.
                if ended and client.get_run(run_id).info.status == "RUNNING":
                    end_runs_of_tasks(client, run_id)
                    client.set_terminated(run_id, "KILLED")
    except ServiceError as error:
        _log.warning("warning: %s", error)
