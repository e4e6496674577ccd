"""Logs of a run's pods, from a stand-in of Kubernetes' API server through its real client."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import cli
from tests.standins.kubeflow import Standin
from tests.standins.kubernetes import ApiServer, Refused

START = Callable[[], str]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    """Return the API server that the kubeconfig names."""
    with ApiServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path / "kubeconfig")))
        yield server


def details(**states: str | tuple[str, str]) -> dict[str, Any]:
    """Return tasks with their states, or (state, error)."""
    tasks = []
    for name, given in {"train-driver": "SUCCEEDED", **states}.items():
        state, error = (given, "") if isinstance(given, str) else given
        tasks.append(
            {"task_id": name, "display_name": name, "state": state} | ({"error": {"message": error}} if error else {})
        )
    return {"task_details": tasks}


def test_the_logs_of_a_runs_tasks_are_shown_in_the_order_of_their_start(
    kubeflow_server: Standin, cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    states = details(ingest="SUCCEEDED", train=("FAILED", "exit code 3"), notify="SUCCEEDED")
    kubeflow_server.tables["runs"][run]["run_details"] = states
    cluster.add_run_pod("another", "ingest", "another run", phase="Succeeded")
    cluster.add_run_pod(run, None, "the driver", phase="Succeeded")
    cluster.add_run_pod(run, "ingest", "7 photographs", phase="Succeeded")
    cluster.add_run_pod(run, "train", "lost", phase="Failed")
    cluster.add_run_pod(run, "train", "went on", "error: no p\u00e4tches", phase="Failed")
    cluster.add_run_pod(run, "notify", '{"told": 1}', phase="Succeeded")
    shown = "== train (failed): exit code 3\nlost\nwent on\nerror: no p\u00e4tches\n"
    assert cli.main(["logs", run, "--task", "train"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().out == (
        f'== ingest (succeeded)\n7 photographs\n{shown}== notify (succeeded)\n{{"told": 1}}\n'
    )
    assert cli.main(["logs", run, "--task", "trian"]) == 2
    assert f"the run {run} has no task trian; it has ingest, notify, train\n" in capsys.readouterr().err


def test_a_failed_task_without_a_log_is_named_with_its_error(
    kubeflow_server: Standin, cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    kubeflow_server.tables["runs"][run]["run_details"] = details(train=("FAILED", "cannot pull the image"))
    cluster.add_run_pod(run, "train", phase="Pending")
    assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().out == "== train (failed): cannot pull the image\n"


def test_pods_without_the_label_of_a_task_are_shown_by_their_names(
    cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of an older version have no such label, and a run that fails early has only Kubeflow's own pods."""
    run = start()
    pod = cluster.add_run_pod(run, None, "cannot resolve the inputs", phase="Failed")
    assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().out == f"== {pod.name} (failed)\ncannot resolve the inputs\n"


@pytest.mark.usefixtures("cluster")
def test_without_a_log_the_page_and_the_kubectl_line_are_printed(
    kubeflow_server: Standin, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    kubeflow_server.tables["runs"][run]["run_details"] = details(train=("FAILED", "exit code 3"))
    where = (
        f"see {kubeflow_server.url}/#/runs/details/{run}, or while its pods exist: `kubectl logs --namespace team "
        f"--selector pipeline/runid={run} --container main --prefix --tail -1`\n"
    )
    assert cli.main(["logs", run]) == 4
    error = f"error: no pod of the run {run} (pending) has a log; train failed: exit code 3; "
    assert capsys.readouterr().err == error + where
    assert cli.main(["logs", run, "--task", "train"]) == 4
    assert f"--selector pipeline/runid={run},bebygan/task=train --container" in capsys.readouterr().err


def no_kubeconfig(_: ApiServer) -> str:
    os.environ["KUBECONFIG"] = "/nowhere/kubeconfig"
    return "the logs of the pods cannot be read: there is no usable kubeconfig; see http"


def forbidden(cluster: ApiServer) -> str:
    cluster.fail("GET", "/pods", Refused(403, "Forbidden", "pods is forbidden"))
    return f"listing pods failed at Kubernetes' http://127.0.0.1:{cluster.port}, namespace team (403 Forbidden); see"


def unreachable(cluster: ApiServer) -> str:
    cluster.go_away()
    return f"listing pods failed at Kubernetes' http://127.0.0.1:{cluster.port}, namespace team (Connection refused)"


@pytest.mark.parametrize("fault", [no_kubeconfig, forbidden, unreachable])
def test_a_cluster_that_is_unreachable_is_reported_with_other_ways_to_find_the_logs(
    cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str], fault: Callable[[ApiServer], str]
) -> None:
    run, told = start(), fault(cluster)
    assert cli.main(["logs", run]) == 4
    error = capsys.readouterr().err
    assert error.startswith(f"error: {told}")
    assert error.count("\n") == 1
    namespace = "" if fault is no_kubeconfig else "--namespace team "
    assert f"`kubectl logs {namespace}--selector pipeline/runid={run} " in error


@pytest.mark.usefixtures("kubeflow_server")
def test_an_unknown_run_is_reported(cluster: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["logs", "0000"]) == 4
    assert "reading the run 0000 failed" in capsys.readouterr().err
    assert cluster.requests == []


def test_a_closed_pipe_ends_the_logs_without_an_error(
    cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start()
    cluster.add_run_pod(run, "ingest", "7 photographs", phase="Succeeded")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().err == ""


def test_a_log_is_followed_line_by_line_until_the_run_ends(
    kubeflow_server: Standin, cluster: ApiServer, start: START, capsys: pytest.CaptureFixture[str]
) -> None:
    run = start()
    row = kubeflow_server.tables["runs"][run]
    ingest = cluster.add_run_pod(run, "ingest", "7 photographs", phase="Succeeded")
    trains = [cluster.add_run_pod(run, "train", "step 1")]
    trains[0].rest = "ste"
    cluster.add_run_pod(run, "notify", "told", phase="Succeeded")
    running = details(ingest="SUCCEEDED", train="RUNNING", notify="SUCCEEDED")

    def one_goes_on() -> None:
        trains[0].rest = "lost"
        trains[0].say("step 2")

    def another_attempt() -> None:
        # The pod of the first one is gone, and with it its log.
        trains[0].vanish()
        trains.append(cluster.add_run_pod(run, "train", "step 3"))

    def ends() -> None:
        trains[1].rest = "step 4"
        states = details(ingest="SUCCEEDED", train="SUCCEEDED", notify="SUCCEEDED")
        row.update(state="SUCCEEDED", run_details=states)

    busy = Refused(503, "ServiceUnavailable", "busy")
    steps: list[Callable[[], object]] = [
        lambda: None,
        lambda: row.update(state="RUNNING", run_details=running),
        one_goes_on, lambda: cluster.fail("GET", "/log$", busy, times=2), another_attempt, ends,
    ]  # fmt: skip

    def go_on(request: str) -> None:
        if request == f"GET /apis/v2beta1/runs/{run}" and steps:
            steps.pop(0)()

    kubeflow_server.before = go_on
    assert cli.main(["logs", run, "--follow"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "== ingest (succeeded)", "7 photographs",
        "== train (running)", "step 1",
        "== notify (succeeded)", "told",
        "== train (running)", "step 2", "step 3",
        "== train (succeeded)", "step 4",
    ]  # fmt: skip
    # A pod that has ended is read once.
    assert len([path for _, path in cluster.requests if path.endswith(f"/{ingest.name}/log")]) == 1
