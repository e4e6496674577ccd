import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bebygan.errors import Preempted, ServiceError
from components.common.config import Params, load_params
from components.common.provenance import provenance
from components.common.tracking import finished_run, mlflow_client, step_run

ROOT = Path(__file__).parents[3]
AWAY = "http://127.0.0.1:9"


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


@pytest.mark.usefixtures("mlflow_store")
def test_a_step_leaves_a_finished_run_with_parameters_provenance_and_values(params: Params, tmp_path: Path) -> None:
    with step_run("train", params.train, "0123.dir", {"more": "facts"}) as run:
        for iteration in range(3):
            run(iteration, {"best_buddy": 0.1 * iteration, "perceptual": 1.0})
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "page.html").write_text("page")
        run.artifacts(tmp_path / "out", "evaluation")
    client = mlflow_client()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "train"
    assert client.get_experiment(found.info.experiment_id).name == "bebygan"
    assert found.data.params["best_buddy.alpha"] == str(params.train.best_buddy.alpha)
    assert found.data.params["iterations"] == str(params.train.iterations)
    facts = provenance(params.train, "0123.dir")
    assert {name: found.data.tags[name] for name in facts} == facts
    assert (found.data.tags["step"], found.data.tags["more"]) == ("train", "facts")
    history = client.get_metric_history(run.run_id, "best_buddy")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert [file.path for file in client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/page.html"]
    assert Path(found.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_that_the_environment_names_is_adopted(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client()
    theirs = client.create_run(client.create_experiment("kubeflow")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    for _ in range(2):  # A task that is tried again goes on with the same run.
        with step_run("warmup", params.warmup) as run:
            run(1, {"l1": 0.5})
        assert run.run_id == theirs
    assert client.get_run(theirs).data.metrics == {"l1": 0.5}
    assert client.get_run(theirs).data.tags["step"] == "warmup"
    assert client.get_run(theirs).info.status == "FINISHED"


@pytest.mark.usefixtures("mlflow_store")
def test_steps_are_children_of_the_pipelines_run_in_the_named_experiment(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "products")
    with step_run("retrain", params) as parent:
        monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent.run_id)
        with step_run("evaluate", params.evaluate) as child:
            pass
    client = mlflow_client()
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.parentRunId" not in client.get_run(parent.run_id).data.tags
    experiments = {client.get_run(run.run_id).info.experiment_id for run in (parent, child)}
    assert [client.get_experiment(number).name for number in experiments] == ["products"]


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("a bug"), "FAILED"), (Preempted("asked to stop"), "KILLED"), (KeyboardInterrupt(), "KILLED")],
)
def test_a_step_that_fails_or_is_stopped_says_so_and_keeps_its_values(
    error: BaseException, status: str, params: Params
) -> None:
    with pytest.raises(type(error)), step_run("train", params.train) as run:  # noqa: PT012
        run(7, {"best_buddy": 0.5})
        raise error
    found = mlflow_client().get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"best_buddy": 0.5}


@pytest.mark.usefixtures("mlflow_store")
def test_only_a_run_that_ended_well_counts_as_finished(params: Params) -> None:
    with pytest.raises(ValueError, match="bug"), step_run("retrain", params, tags={"fingerprint": "f1"}):
        raise ValueError("bug")
    assert finished_run("f1") is None
    with step_run("retrain", params, tags={"fingerprint": "f1"}) as run:
        assert finished_run("f1") is None
    assert finished_run("f1") == run.run_id
    assert finished_run("f2") is None


def test_without_an_address_runs_are_kept_in_the_workspace(
    params: Params, tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "mlflow.db").write_bytes(Path(mlflow_store.removeprefix("sqlite:///")).read_bytes())
    with step_run("train", params.train) as run:
        pass
    found = mlflow_client().get_run(run.run_id)
    assert found.info.artifact_uri.startswith((tmp_path / "workspace" / "mlartifacts").as_uri())
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.usefixtures("mlflow_store")
def test_a_server_that_is_away_at_the_start_is_said_at_once_in_one_line(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    mlflow_client()
    started = time.monotonic()
    with pytest.raises(ServiceError) as caught, step_run("train", params.train):
        pass
    assert time.monotonic() - started < 10
    message = str(caught.value)
    assert message.startswith(f"starting a run failed at MLflow's {AWAY} (Connection refused): ")
    assert "MLFLOW_TRACKING_URI" in message
    assert "\n" not in message


@pytest.mark.usefixtures("mlflow_store")
def test_an_experiment_that_was_deleted_is_said_in_one_line(params: Params) -> None:
    with step_run("train", params.train) as run:
        pass
    client = mlflow_client()
    client.delete_experiment(client.get_run(run.run_id).info.experiment_id)
    with pytest.raises(ServiceError, match="starting a run failed"), step_run("train", params.train):
        pass


def test_asking_for_help_does_not_wait_for_mlflow() -> None:
    code = "import sys, components.common.tracking, components.common.registry; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.fixture
def server(tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A real MLflow server on loopback, named in the environment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", mlflow_store, "--artifacts-destination", str(tmp_path / "served")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI")
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with closing(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)):
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < deadline, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
        yield process
    finally:
        stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_server_that_dies_under_way_never_stops_the_step_and_no_value_is_lost(
    server: "subprocess.Popen[bytes]", params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="components.common.tracking")
    with step_run("train", params.train) as run:
        run(0, {"best_buddy": 0.0})
        deadline = time.monotonic() + 30
        while not (arrived := run.client.get_metric_history(run.run_id, "best_buddy")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert [metric.step for metric in arrived] == [0]
        stop(server)
        started = time.monotonic()
        for iteration in range(1, 200):
            run(iteration, {"best_buddy": float(iteration)})
        assert time.monotonic() - started < 0.5
    spooled = [json.loads(line) for line in run.spool.read_text().splitlines()]
    assert [(entry["step"], entry["value"]) for entry in spooled] == [(n, float(n)) for n in range(1, 200)]
    assert {(entry["run_id"], entry["name"]) for entry in spooled} == {(run.run_id, "best_buddy")}
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "Connection refused" in warnings[0]
    assert str(run.spool) in warnings[0]
    assert run.spool.resolve().is_relative_to(tmp_path)
