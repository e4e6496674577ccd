"""`bebygan run` before anything is trained: preflight, --dry-run, paths in the home folder."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bebygan.pretrained import DEFAULT
from components.config import load_params
from components.identify import job_here
from components.stores.data_version import push
from components.tracking.client import mlflow_client
from components.tracking.ledger import HEAD, append
from components.tracking.runs import open_pipeline_run
from pipelines import cli
from tests.components.moves import FIRST

ROOT = Path(__file__).parents[3]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace in the home folder of the test."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/workspace/mlflow.db")
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    for name in DEFAULT:
        (weights / f"{name}.safetensors").touch()
    return tmp_path / "workspace"


def options(workspace: Path, photographs: Path, *more: str) -> list[str]:
    params = ["--params", str(ROOT / "params/compact.yaml")]
    return ["run", *params, f"--workspace={workspace}", f"--source={photographs}", *more]


def runs() -> list[str]:
    client = mlflow_client()
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    return [run.data.tags["step"] for run in found]


def test_a_dry_run_prints_what_would_run_and_trains_nothing(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options(workspace, photographs, "--dry-run", "--set", "train.seed=7")) == 0
    told, steps = capsys.readouterr()
    lines = told.splitlines()
    assert lines[:3] == [
        "would train: there is no champion yet",
        f"source:    {photographs}",
        f"workspace: {workspace}",
    ]
    assert "  train.seed: 7" in lines
    assert lines[-1] == "preflight: passed"
    assert "weights vgg16: at " in steps
    assert not (workspace / "pipeline").exists()
    assert not runs()


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_missing_weights_are_reported_before_any_step_runs(
    more: tuple[str, ...], workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taps = "train.perceptual={network: vgg19, taps: [[conv5_4, 1.0]]}"
    weights = ("--set", "train.losses.perceptual=1.0", "--set", "train.losses.dists=0.0")
    assert cli.main(options(workspace, photographs, "--set", taps, *weights, *more)) == 5
    told = capsys.readouterr().err
    assert "error: 1 of 13 checks failed: weights vgg19: cannot get the weights vgg19" in told
    assert "ingest" not in told
    assert not (workspace / "pipeline").exists()
    assert not runs()


def test_a_run_prints_nothing_of_a_preflight_that_passes(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.local.run.run", stop)
    assert cli.main(options(workspace, photographs)) == 130
    assert capsys.readouterr().err == "training: there is no champion yet\nerror: interrupted\n"


def as_another_user(path: Path, *command: str) -> list[str]:
    """Take the right to write a path from the process that runs a command."""
    if os.getuid():
        path.chmod(0o555)
        return list(command)
    os.chown(path, 1234, 1234)
    # Root without the capability to override permissions is like any other user.
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]


def test_what_a_run_does_not_write_may_be_in_a_workspace(workspace: Path, photographs: Path) -> None:
    path = workspace / "lost+found"
    path.mkdir(parents=True)
    arguments = options(workspace, photographs, "--dry-run")
    command = as_another_user(path, sys.executable, "-m", "pipelines.cli", *arguments)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("left", ["cache", "dvc-remote/files/md5/ab", "run.log"])
def test_what_another_user_left_in_the_workspace_ends_a_run_with_one_line(
    left: str, workspace: Path, photographs: Path
) -> None:
    path = workspace / left
    path.parent.mkdir(parents=True)
    if path.suffix:
        path.touch()
    else:
        path.mkdir()
    command = as_another_user(path, sys.executable, "-m", "pipelines.cli", *options(workspace, photographs))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 6, done.stderr
    [_, error] = done.stderr.splitlines()
    assert error.startswith(f"error: 1 of 12 checks failed: workspace {workspace}: {path}, which an earlier run left, ")
    assert f"run `sudo chown -R {os.getuid()} {workspace}`" in error


def test_the_home_folder_is_replaced_in_options(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.parent)
    Path("params.yaml").write_text((ROOT / "params.yaml").read_text())
    Path("data").symlink_to(ROOT / "data")
    arguments = ["--dry-run", "--ledger=~/ledger", "--remote", "~/remote", "--params=~/params.yaml"]
    assert cli.main(options(Path("~/workspace"), Path("~") / photographs.name, *arguments)) == 0
    told = capsys.readouterr().out
    for name, path in (("source", photographs), ("workspace", workspace), ("ledger", workspace.with_name("ledger"))):
        assert f"{f'{name}:':<11}{path}\n" in told
    assert workspace.with_name("remote").is_dir()
    assert not Path("~").exists()


def test_from_another_folder_the_parameters_photographs_and_weights_of_the_checkout_are_found(
    workspace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.parent)
    for name in ("BEBYGAN_PARENT_RUN", "KFP_RUN_ID", "MLFLOW_ACTIVE_MODEL_ID", "MLFLOW_RUN_ID"):
        monkeypatch.setenv(name, "0" * 32)
    assert cli.main(["run", "--workspace", "w", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"source:    {ROOT}/data/sample\nworkspace: {workspace.parent}/w\n" in told
    assert "preflight: passed" in told
    assert "MLFLOW_RUN_ID" not in os.environ


def finished_run(workspace: Path, photographs: Path) -> None:
    """Leave what a finished run leaves whose challenger was not promoted: its run, a version, the data version."""
    job = job_here(load_params(ROOT / "params/compact.yaml"), str(photographs))
    dataset = workspace.parent / "dataset"
    dataset.mkdir()
    (dataset / "a").write_text("photograph")
    version = push(dataset, str(workspace / "dvc-remote"))
    client = mlflow_client()
    client.set_terminated(open_pipeline_run(job.params, {**job.tags, "data_version": version}), "FINISHED")
    client.create_registered_model("bebygan")
    client.create_model_version("bebygan", "file:///nowhere")


def test_nothing_to_do_is_an_error_if_the_remote_lost_the_data_version(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(workspace, photographs)
    assert cli.main(options(workspace, photographs)) == 0
    assert "nothing to do: " in capsys.readouterr().out
    shutil.rmtree(workspace / "dvc-remote")
    assert cli.main(options(workspace, photographs)) == 3
    told, said = capsys.readouterr()
    assert "nothing to do" not in told
    assert "dvc-remote has no object" in said


def test_nothing_to_do_is_an_error_if_the_ledger_lost_an_entry(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished_run(workspace, photographs)
    mlflow_client().set_registered_model_tag("bebygan", HEAD, f"1 {'0' * 64}")
    assert cli.main(options(workspace, photographs)) == 3
    assert "ledger holds no entry 1 of bebygan" in capsys.readouterr().err


def test_nothing_to_do_tells_that_the_champion_is_another_than_by_the_ledger(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    finished_run(workspace, photographs)
    append(str(workspace / "ledger"), "bebygan", FIRST)
    assert cli.main(options(workspace, photographs)) == 0
    assert "champion: none yet" in capsys.readouterr().out
    assert caplog.messages[-1] == (
        "warning: no version holds the alias champion of bebygan, but the newest entry of the ledger "
        f"{workspace}/ledger gives it to version 3: unless somebody moved it on purpose, set it again by `bebygan "
        "promote`"
    )


def test_the_run_in_mlflow_of_a_killed_run_is_ended_by_the_next_run(
    workspace: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "pipelines.cli", *options(workspace, photographs)]
    pipe = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe) as process:
        while not (workspace / "mlflow.db").exists() or "retrain" not in runs():
            assert process.poll() is None
            time.sleep(0.5)
        process.kill()
    unknown = ("--set", "warmup.weights=unknown.safetensors")
    assert cli.main(options(workspace, photographs, *unknown)) == 5
    assert "unknown.safetensors" in capsys.readouterr().err
    [ended] = [run for run in mlflow_client().search_runs(["1"]) if run.data.tags["step"] == "retrain"]
    assert ended.info.status == "KILLED"
