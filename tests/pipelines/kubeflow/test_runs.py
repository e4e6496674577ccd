"""Runs on a stand-in server: watched until they end, and listed."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bebygan.errors import ServiceError
from pipelines import cli
from pipelines.kubeflow.resources import TASKS
from pipelines.kubeflow.runs import age, wait
from tests.standins.kubeflow import Standin, connect

START = Callable[[], str]


def details(state: str, error: str = "") -> dict[str, Any]:
    """Return the nodes of a run as the server lists them: the tasks, and nodes that Kubeflow adds."""
    names = ["bebygan-retrain-x7k2p", "root", "root-driver", "train-driver", "train", "executor", "notify"]
    tasks = [{"task_id": name, "display_name": name, "state": "SUCCEEDED"} for name in names]
    tasks[4] |= {"state": state} | ({"error": {"message": error}} if error else {})
    return {"task_details": tasks}


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED", "CANCELED"])
def test_waiting_for_a_run_succeeds_or_fails_as_the_run_does(
    kubeflow_server: Standin, start: START, state: str
) -> None:
    looks = []

    def go_on(request: str) -> None:
        if re.match(r"GET /apis/v2beta1/runs/", request):
            looks.append(request)
            now = "RUNNING" if len(looks) < 3 else state
            [row] = kubeflow_server.runs()
            row |= {"state": now, "run_details": details(now, "exit code 3" if state == "FAILED" else "")}

    kubeflow_server.before = go_on
    run, lines = start(), list[str]()
    if state == "SUCCEEDED":
        wait(connect(), run, TASKS, lines.append)
    else:
        with pytest.raises(ServiceError) as caught:
            wait(connect(), run, TASKS, lines.append)
        assert str(caught.value).startswith(f"the run {run} ended {state.lower()} (")
        assert f"`bebygan logs {run}`" in str(caught.value)
        assert ("(train: exit code 3)" in str(caught.value)) == (state == "FAILED")
    assert len(looks) == 3
    assert lines == ["train running", "notify succeeded", f"train {state.lower()}"]


def test_waiting_continues_through_an_outage_of_the_server(
    kubeflow_server: Standin, start: START, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    def be_away(request: str) -> None:
        if request.startswith("GET /apis/v2beta1/runs/"):
            looks.append(request)
            kubeflow_server.dies_at = 0 if 3 < len(looks) < 12 else None
            if len(looks) == 12:
                kubeflow_server.finish(kubeflow_server.runs()[0]["run_id"])

    kubeflow_server.before = be_away
    wait(connect(), start(), TASKS, print)
    assert len(looks) == 12
    assert [record.message.endswith("; trying again") for record in caplog.records] == [True]


def test_waiting_fails_if_the_token_expires(
    kubeflow_server: Standin, start: START, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "ours")
    looks = []

    def expire(request: str) -> None:
        if request.startswith("GET /apis/v2beta1/runs/"):
            looks.append(request)
            kubeflow_server.token = "another" if len(looks) > 2 else None

    kubeflow_server.before = expire
    with pytest.raises(ServiceError, match=r"reading the run .* \(401 .*renew KFP_TOKEN"):
        wait(connect(), start(), TASKS, print)
    assert len(looks) == 3


def test_runs_are_listed_newest_first(
    kubeflow_server: Standin, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == "there are no runs\n"
    kubeflow_server.now = 1_700_000_000
    first = start()
    kubeflow_server.now += 86400
    second = start()
    kubeflow_server.finish(first)
    assert cli.main(["runs"]) == 0
    heading, newest, oldest = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "NAME", "STATE", "AGE", "ERROR"]
    assert newest.split()[0] == second
    assert oldest.split()[0] == first
    assert "succeeded" in oldest
    cli.main(["runs", "--number", "1"])
    assert first not in capsys.readouterr().out


def test_the_error_of_a_run_forges_no_line_of_the_list(
    kubeflow_server: Standin, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    kubeflow_server.finish(run, "FAILED")
    kubeflow_server.tables["runs"][run]["error"] = {"code": 3, "message": "ingest: a\nforged\x1b[2K.png", "details": []}
    assert cli.main(["runs"]) == 0
    _, line = capsys.readouterr().out.splitlines()
    assert line.endswith(r"ingest: a forged\x1b[2K.png")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-5, "0 s"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (3 * 86400, "3 d")]
)
def test_an_age_is_given_in_its_largest_unit(seconds: int, text: str) -> None:
    assert age(datetime.now(UTC) - timedelta(seconds=seconds)) == text
