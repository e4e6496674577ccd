"""Runs whose process was killed: real processes, and MLflow's embedded store."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.tracking.client import mlflow_client
from components.tracking.killed import end_killed_runs, process_tag
from components.tracking.runs import step_run

ROOT = Path(__file__).parents[3]
_RUNS = """
import sys
from components.tracking.killed import process_tag
from components.tracking.runs import step_run
with step_run("retrain", {}, tags=process_tag()) as run:
    print(run.run_id, flush=True)
    sys.stdin.read()
"""


def _start() -> tuple["subprocess.Popen[str]", str]:
    """Start a process that tracks a run of the whole pipeline until its input ends."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", _RUNS], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout
    return process, process.stdout.readline().strip()


def _status(run: str) -> str:
    return str(mlflow_client().get_run(run).info.status)


@pytest.mark.usefixtures("mlflow_store")
def test_the_run_of_a_killed_process_is_ended_and_those_of_others_go_on() -> None:
    (killed, run_of_killed), (alive, run_of_alive) = _start(), _start()
    client = mlflow_client()
    experiment = client.get_run(run_of_killed).info.experiment_id
    task = client.create_run(experiment, tags={"mlflow.parentRunId": run_of_killed}).info.run_id
    boot, *others = process_tag()["process"].split()
    elsewhere, by_hand = (
        client.create_run(experiment, tags={"step": "retrain", **tags}).info.run_id
        for tags in ({"process": " ".join([boot[::-1], *others[:1], "999999999", "1"])}, {})
    )
    killed.kill()
    # It stays a zombie until this process asks for its exit code.
    os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
    assert _status(run_of_killed) == "RUNNING"
    end_killed_runs()
    assert [_status(run) for run in (run_of_killed, task)] == ["KILLED", "KILLED"]
    assert [_status(run) for run in (run_of_alive, elsewhere, by_hand)] == ["RUNNING"] * 3
    for process in (killed, alive):
        process.communicate("")
    assert _status(run_of_alive) == "FINISHED"


@pytest.mark.usefixtures("mlflow_store")
def test_a_process_with_the_number_of_a_killed_one_does_not_keep_its_run() -> None:
    own = process_tag()["process"].rpartition(" ")[0]
    with step_run("retrain", {}, tags={"process": f"{own} 1"}) as earlier, step_run("retrain", {}, tags=process_tag()):
        end_killed_runs()
        own_runs = mlflow_client().search_runs(["1"], "attributes.status = 'RUNNING'")
        assert len(own_runs) == 1
        assert _status(earlier.run_id) == "KILLED"
