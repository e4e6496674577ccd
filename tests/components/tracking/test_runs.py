import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tenacity import wait_fixed

from bebygan.errors import Preempted, ServiceError
from components.config import Params, load_params
from components.stores.retries import IN_BACKGROUND
from components.tracking import runs
from components.tracking.client import mlflow_client
from components.tracking.provenance import provenance
from components.tracking.runs import StepRun, ended_runs, step_run

ROOT = Path(__file__).parents[3]
AWAY = "http://127.0.0.1:9"
SOON = IN_BACKGROUND.copy(wait=wait_fixed(0.1))


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            # YAML has no tuples.
            yield prefix + name, json.loads(json.dumps(value))


@pytest.mark.usefixtures("mlflow_store")
def test_a_step_creates_a_finished_run_with_parameters_provenance_and_values(params: Params, tmp_path: Path) -> None:
    with step_run("train", params.train, "0123.dir", {"more": "facts"}) as run:
        for iteration in range(3):
            run(iteration, {"best_buddy": 0.1 * iteration, "perceptual": 1.0})
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "page.html").write_text("page")
        run.artifacts(tmp_path / "out", "evaluation")
    client = mlflow_client()
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert re.fullmatch(r"train \d{4}-\d\d-\d\d \d\d:\d\d 0123\.dir", found.info.run_name)
    assert found.data.tags["mlflow.note.content"].startswith("GAN training of the challenger.")
    [used] = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("photographs", "0123.dir", "training")
    assert client.get_experiment(found.info.experiment_id).name == "bebygan"
    assert found.data.params == {name: str(value) for name, value in leaves(asdict(params.train))}
    assert {"iterations", "betas", "schedule.peak", "best_buddy.alpha"} <= found.data.params.keys()
    facts = provenance(params.train, "0123.dir")
    assert {name: found.data.tags[name] for name in facts} == facts
    assert (found.data.tags["step"], found.data.tags["more"]) == ("train", "facts")
    history = client.get_metric_history(run.run_id, "best_buddy")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert [file.path for file in client.list_artifacts(run.run_id, "evaluation")] == ["evaluation/page.html"]
    assert Path(found.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path / "mlartifacts")


@pytest.mark.usefixtures("mlflow_store")
def test_a_step_uses_the_run_that_the_environment_names(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client()
    theirs = client.create_run(client.create_experiment("kubeflow")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    for _ in range(2):  # A retried task continues the same run.
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
def test_a_failed_or_stopped_step_sets_the_status_and_keeps_its_values(
    error: BaseException, status: str, params: Params
) -> None:
    with pytest.raises(type(error)), step_run("train", params.train) as run:  # noqa: PT012
        run(7, {"best_buddy": 0.5})
        raise error
    found = mlflow_client().get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"best_buddy": 0.5}


@pytest.mark.usefixtures("mlflow_store")
def test_only_a_successful_run_counts_as_finished(params: Params) -> None:
    with pytest.raises(ValueError, match="bug"), step_run("retrain", params, tags={"fingerprint": "f1"}):
        raise ValueError("bug")
    assert ended_runs({"fingerprint": "f1"}, "FINISHED") == []
    with step_run("retrain", params, tags={"fingerprint": "f1"}) as run:
        assert ended_runs({"fingerprint": "f1"}, "FINISHED") == []
    assert ended_runs({"fingerprint": "f1"}, "FINISHED") == [run.run_id]
    assert ended_runs({"fingerprint": "f2"}, "FINISHED") == []


def test_runs_are_stored_in_the_workspace_by_default(
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
def test_an_unreachable_server_at_the_start_raises_a_one_line_error_at_once(
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
def test_a_deleted_experiment_raises_a_one_line_error(params: Params) -> None:
    with step_run("train", params.train) as run:
        pass
    client = mlflow_client()
    client.delete_experiment(client.get_run(run.run_id).info.experiment_id)
    with pytest.raises(ServiceError, match="starting a run failed"), step_run("train", params.train):
        pass


def test_help_does_not_import_mlflow() -> None:
    code = (
        "import sys, pipelines.cli, components.ingest.__main__, components.patches.__main__, components.job\n"
        "sys.exit('mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


class Server:
    """A real MLflow server on loopback that can be stopped and started again."""

    def __init__(self, store: str, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._store = store
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", self._store]
        command += ["--artifacts-destination", str(self._folder / "served")]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        environment.pop("MLFLOW_TRACKING_URI")
        log = self._folder / "server.log"
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
        self._process = process
        deadline = time.monotonic() + 120
        while True:
            try:
                with closing(urllib.request.urlopen(f"{self.address}/health", timeout=2)):  # noqa: S310 - loopback
                    break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@pytest.fixture
def server(tmp_path: Path, mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A running server, whose address is in the environment."""
    server = Server(mlflow_store, tmp_path)
    try:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
        yield server
    finally:
        server.stop()


def steps(run: StepRun) -> list[float]:
    return [metric.step for metric in run.client.get_metric_history(run.run_id, "best_buddy")]


def kept(spools: Path) -> int:
    """Return the number of values and final states in the spools."""
    return sum(len(path.read_text().splitlines()) for path in spools.glob("*.jsonl"))


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_server_that_becomes_unreachable_does_not_stop_the_step_and_later_gets_all_values(
    server: Server,
    params: Params,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spools = tmp_path / "workspace" / "untracked"
    with step_run("train", params.train, retrying=SOON) as first:
        first(0, {"best_buddy": 0.0})
        wait_for(lambda: steps(first))
        server.stop()
        started = time.monotonic()
        for iteration in range(1, 1500):
            first(iteration, {"best_buddy": float(iteration)})
        assert time.monotonic() - started < 1
        wait_for(lambda: kept(spools) == 1499)
        [spool] = spools.iterdir()
        # The server is back during the run.
        server.start()
        wait_for(lambda: not spool.exists())
        assert steps(first) == list(range(1500))
        server.stop()
        first(1500, {"best_buddy": 1500.0, "samples": np.zeros((8, 8, 3), np.uint8)})
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "Connection refused" in warnings[0]
    assert str(spool.relative_to(tmp_path)) in warnings[0]
    assert len(warnings) == 3
    assert "MLflow did not receive the end of this run" in warnings[2]
    value, end = (json.loads(line) for line in spool.read_text().splitlines())
    assert [path.name for path in spool.with_suffix(".pictures").iterdir()] == ["samples-00001500.png"]
    assert (value["run_id"], value["name"], value["value"], value["step"]) == (first.run_id, "best_buddy", 1500.0, 1500)
    assert (end["run_id"], end["status"]) == (first.run_id, "FINISHED")
    # The server is back in the next run, after a process that was killed while it wrote.
    later = {name: each for name, each in value.items() if name != "digest"} | {"step": 1501}
    (spools / "killed.jsonl").write_text(json.dumps(later) + '\n{"run_id": "cut')
    server.start()
    with step_run("train", params.train) as second:
        second(7, {"best_buddy": 7.0})
    assert not list(spools.iterdir())
    assert steps(first) == list(range(1502))
    assert first.client.get_run(first.run_id).info.status == "FINISHED"
    assert pictures(first) == ["pictures/samples-00001500.png"]
    assert (steps(second), pictures(second)) == ([7], [])


@pytest.mark.usefixtures("mlflow_store")
def test_the_spool_of_a_running_process_is_not_sent_by_others(params: Params, tmp_path: Path) -> None:
    spools = tmp_path / "workspace" / "untracked"
    spools.mkdir(parents=True)
    with step_run("train", params.train) as other:
        pass
    entry = {"run_id": other.run_id, "name": "late", "value": 1.0, "step": 1, "time": 1}
    with (spools / "living.jsonl").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(entry) + "\n")
        file.flush()
        with step_run("train", params.train):
            pass
        assert "late" not in other.client.get_run(other.run_id).data.metrics
        assert (spools / "living.jsonl").exists()
    with step_run("train", params.train):
        pass
    assert other.client.get_run(other.run_id).data.metrics["late"] == 1.0


def rename_table(store: str, name: str, new: str) -> None:
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"), timeout=30)) as database:
        database.execute(f"ALTER TABLE {name} RENAME TO {new}")


def test_each_attempt_of_a_run_has_its_own_spool(
    params: Params, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In a pod, spools are on a volume.
    spools = tmp_path / "volume" / "untracked"
    monkeypatch.setenv("BEBYGAN_UNTRACKED", str(spools))
    client = mlflow_client()
    theirs = client.create_run(client.create_experiment("kubeflow")).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    # The server accepts the start of a run, but no values.
    rename_table(mlflow_store, "metrics", "metrics_away")
    with step_run("train", params.train, retrying=SOON) as first:
        first(1, {"best_buddy": 1.0})
    assert kept(spools) == 2
    with step_run("train", params.train, retrying=SOON) as second:
        second(2, {"best_buddy": 2.0})
        wait_for(lambda: kept(spools) == 3)
        rename_table(mlflow_store, "metrics_away", "metrics")
        wait_for(lambda: steps(second) == [2])
    with step_run("train", params.train, retrying=SOON) as third:
        pass
    assert steps(third) == [1, 2]
    assert not list(spools.iterdir())


def test_an_unreachable_artifact_bucket_does_not_delay_values(
    params: Params, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With some servers, clients upload files to the bucket themselves."""
    for name, value in {
        "MLFLOW_S3_ENDPOINT_URL": AWAY, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MAX_ATTEMPTS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert mlflow_store
    mlflow_client().create_experiment("bebygan", artifact_location="s3://away/artifacts")
    with step_run("train", params.train, retrying=SOON) as run:
        run(1, {"samples": np.zeros((8, 8, 3), np.uint8)})
        wait_for(lambda: "storing a picture failed" in caplog.text)
        run(2, {"best_buddy": 2.0})
        wait_for(lambda: steps(run) == [2])
        run.artifacts(tmp_path / "workspace", "evaluation")
    assert "storing files failed" in caplog.text
    assert [path.name for path in tmp_path.glob("workspace/untracked/*.pictures/*")] == ["samples-00000001.png"]


@pytest.mark.usefixtures("mlflow_store")
def test_values_of_a_run_that_the_server_does_not_know_stay_in_the_spool(
    params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spools = tmp_path / "workspace" / "untracked"
    spools.mkdir(parents=True)
    entry = {"run_id": "0" * 32, "name": "late", "value": 1.0, "step": 1, "time": 1}
    (spools / "foreign.jsonl").write_text(json.dumps(entry) + "\n")
    # Like a file that another process sends and removes at the same time.
    (spools / "gone.jsonl").symlink_to("nowhere")
    # Like the file of another user without permission to read it.
    (spools / "unreadable.jsonl").mkdir()
    with step_run("train", params.train) as run:
        run(1, {"best_buddy": 1.0})
    assert steps(run) == [1]
    assert (spools / "foreign.jsonl").exists()
    assert re.search(r"sending what an earlier run left failed at .* It stays in .*foreign\.jsonl", caplog.text)
    assert re.search(r"warning: .* It stays in .*unreadable\.jsonl", caplog.text)


@pytest.mark.slow
def test_a_stopped_process_does_not_wait_for_a_server_that_hangs(
    params: Params, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started = 0.0
    with pytest.raises(Preempted), step_run("train", params.train) as run:  # noqa: PT012
        monkeypatch.setattr(run.client, "log_batch", lambda *_, **__: time.sleep(60))
        run(1, {"best_buddy": 1.0})
        time.sleep(0.2)
        run(2, {"best_buddy": 2.0})
        started = time.monotonic()
        raise Preempted("stopped")
    assert time.monotonic() - started < 10
    [spool] = (tmp_path / "workspace" / "untracked").iterdir()
    lines = [json.loads(line) for line in spool.read_text().splitlines()]
    assert [line.get("step") for line in lines] == [1, 2, None]
    assert lines[-1]["status"] == "KILLED"
    assert mlflow_store


def pictures(run: StepRun) -> list[str]:
    return sorted(file.path for file in run.client.list_artifacts(run.run_id, "pictures"))


@pytest.mark.usefixtures("mlflow_store")
def test_pictures_become_artifacts_and_system_metrics_are_logged(params: Params, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    with step_run("train", params.train, machine=True) as run:
        sum(range(10**7))
        run(3, {"best_buddy": 0.5})
        run(3, {"samples": picture})
    assert pictures(run) == ["pictures/samples-00000003.png"]
    found = run.client.download_artifacts(run.run_id, "pictures/samples-00000003.png", str(tmp_path))
    assert np.array_equal(np.asarray(Image.open(found)), picture)
    metrics = run.client.get_run(run.run_id).data.metrics
    assert metrics["best_buddy"] == 0.5
    assert 0 < metrics["system/system_memory_usage_percentage"] <= 100
    assert metrics["system/cpu_utilization_percentage"] > 0
    assert not (tmp_path / "workspace" / "untracked").exists() or not list(
        (tmp_path / "workspace" / "untracked").iterdir()
    )


@pytest.mark.usefixtures("mlflow_store")
def test_a_description_is_a_tag_of_the_step_and_of_the_pipeline_and_a_failure_is_a_warning(
    params: Params, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with step_run("retrain", params) as parent:
        monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent.run_id)
        with step_run("evaluate", params.evaluate) as run:
            run.describe({"data": "24 photographs"})
            for each in (parent, run):
                assert run.client.get_run(each.run_id).data.tags["data"] == "24 photographs"
            monkeypatch.setattr(run.client, "set_tag", lambda *_: Path("/nowhere").read_text())
            run.describe({"data": "lost"})
    assert "tagging the run failed at MLflow's " in caplog.text
    assert "The step continues without them" in caplog.text


@pytest.mark.usefixtures("mlflow_store")
def test_the_run_of_another_step_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with step_run("warmup", {"iterations": 1}) as warmup:
        pass
    monkeypatch.setenv("MLFLOW_RUN_ID", warmup.run_id)
    with step_run("warmup", {"iterations": 1}) as again:
        pass
    with step_run("train", {"iterations": 2}) as train:
        pass
    assert again.run_id == warmup.run_id != train.run_id
    assert train.client.get_run(warmup.run_id).data.tags["step"] == "warmup"
    assert "warning: MLFLOW_RUN_ID names a run of warmup: train gets a run of its own" in caplog.messages


@pytest.mark.usefixtures("mlflow_store")
def test_the_run_of_the_pipeline_shows_reason_data_parameters_figures_and_report(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    version = f"{'0123456789abcdef' * 2}.dir"
    with step_run("retrain", params, tags={"reason": "photographs changed", "source": "s3://trip"}) as parent:
        monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent.run_id)
        page = tmp_path / "report.html"
        page.write_text("page")
        for step in ("train", "evaluate"):
            with step_run(step, params.train, version) as run:
                run.summarise({"challenger/lpips": 0.25}, page)
    found = mlflow_client().get_run(parent.run_id)
    assert re.fullmatch(r"retrain \d{4}-\d\d-\d\d \d\d:\d\d 01234567", found.info.run_name)
    assert found.data.tags["mlflow.note.content"].startswith(
        "Retraining because photographs changed.\n\nPhotographs: `s3"
    )
    assert found.data.tags["data_version"] == version
    assert found.data.metrics == {"challenger/lpips": 0.25}
    [used] = found.inputs.dataset_inputs
    assert (used.dataset.digest, used.dataset.source_type) == (version, "s3")
    assert json.loads(used.dataset.source) == {"uri": "s3://trip"}
    stored = Path(mlflow_client().download_artifacts(parent.run_id, "", str(tmp_path)))
    assert (stored / "report" / "report.html").read_text() == "page"
    parameters = (stored / "params.yaml").read_bytes()
    assert hashlib.sha256(parameters).hexdigest() == found.data.tags["params_hash"]


@pytest.mark.usefixtures("mlflow_store")
def test_stages_of_one_dvc_repro_have_one_parent_that_ends_as_its_last_stage(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEBYGAN_PARAMS", str(ROOT / "params.yaml"))
    monkeypatch.setattr(runs, "running_repro", lambda: "desk 7 1")
    with step_run("warmup", params.warmup) as warmup:
        pass
    with pytest.raises(KeyError), step_run("train", params.train) as train:
        raise KeyError
    assert warmup.pipeline_run == train.pipeline_run
    client = mlflow_client()
    assert client.get_run(warmup.run_id).data.tags["mlflow.parentRunId"] == warmup.pipeline_run
    parent = client.get_run(warmup.pipeline_run)
    assert (parent.info.status, parent.data.tags["step"]) == ("FAILED", "retrain")
    monkeypatch.setattr(runs, "running_repro", lambda: "desk 8 1")
    with step_run("warmup", params.warmup) as other:
        pass
    assert other.pipeline_run not in (None, warmup.pipeline_run)
