import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from kfp import dsl
from safetensors.torch import load_file

from bebygan.errors import ConfigError, DataError, WeightsError
from bebygan.settings import GanSettings
from components.config import from_yaml, load_params, to_yaml
from components.tracking.client import mlflow_client
from components.train import launch as launcher
from components.train.cluster_api import Patience
from components.train.component import train as train_in_a_pod
from components.train.launch import launch
from components.train.launch_component import train_on_nodes
from components.train.step import train
from components.train.trainjob import TrainJobSettings
from tests.components.trained import contents, ignore
from tests.standins.kubernetes import ApiServer
from tests.standins.trainer import ROOT, Controllers

TINY = (
    "train.losses.perceptual=0",
    "train.discriminator_width=4",
    "train.discriminator_first=0",
    "train.iterations=4",
    "train.batch=2",
    "train.crop=48",
    "train.schedule={peak: 1.0e-3, floor: 1.0e-07, warmup: 2}",
    "train.ema_decay=0.9",
    "train.precision=fp32",
    "train.channels_last=false",
    "train.checkpoint_every=2",
    "train.log_every=1",
)
SETTINGS: dict[str, Any] = {
    "namespace": None, "runtime": "bebygan-train", "image": "registry.invalid/torch@sha256:1234", "nodes": 1, "gpus": 0,
    "gpu_type": "nvidia.com/gpu", "cpu": "2", "memory": "8Gi", "shared_memory": "2Gi", "hours": 1, "node_selector": {},
    "tolerations": [], "claim": "bebygan-volume", "service_account": "bebygan-training", "config_map": "bebygan",
    "s3_secret": "bebygan-s3", "mlflow_secret": "bebygan-mlflow",
}  # fmt: skip


def tiny(*changes: str) -> GanSettings:
    return load_params(ROOT / "params.yaml", [*TINY, *(f"train.{change}" for change in changes)]).train


@pytest.fixture
def warmup(generator_folder: Callable[..., Path]) -> Path:
    return generator_folder("warmup", 1)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with ApiServer() as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig(tmp_path / "kubeconfig")))
        yield running


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path, mlflow_store: str) -> Iterator[Controllers]:
    """Run pods as processes with params.yaml, as in the image, and the tracking server of this test."""
    app = tmp_path / "app"
    app.mkdir()
    (app / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    with Controllers(server, app) as running:
        running.sources = {"bebygan": {"MLFLOW_TRACKING_URI": mlflow_store}}
        yield running


@pytest.fixture
def start(patches: Path, warmup: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that launches a training and returns the log of the launcher."""

    def run(output: str, *changes: str, **settings: object) -> list[str]:
        lines: list[str] = []
        volume = tmp_path / "volume"
        launch(
            patches, warmup, tmp_path / output, str(volume / "checkpoints"),
            params=tiny(*changes), settings=from_yaml(TrainJobSettings, yaml.safe_dump(SETTINGS | settings)),
            volume=volume, log=lines.append, patience=Patience(between_looks=0.1),
        )  # fmt: skip
        return lines

    return run


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Use one thread, as the pods do: the order of additions depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def reclaimed(cluster: Controllers, tmp_path: Path) -> Iterator[threading.Thread]:
    """Reclaim the machine of the first training as soon as it has written a checkpoint."""

    def reclaim() -> None:
        while not list((tmp_path / "volume" / "checkpoints").glob("train-*/*.checkpoint")):
            time.sleep(0.005)
        cluster.evict(cluster.server.pods[0])

    thread = threading.Thread(target=reclaim, daemon=True)
    thread.start()
    yield thread
    thread.join(10)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_training_on_reclaimed_machines_gives_the_same_challenger_as_a_local_one(  # noqa: PLR0917
    start: Callable[..., list[str]], cluster: Controllers, reclaimed: threading.Thread, warmup: Path, patches: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    client = mlflow_client()
    parent = client.create_run(client.create_experiment("bebygan"), run_name="retrain").info.run_id
    monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent)
    monkeypatch.setenv("KFP_RUN_ID", "a-run-of-kubeflow")
    lines = start("challenger", "iterations=60")
    assert not reclaimed.is_alive()
    assert cluster.starts == 2, lines
    assert [line for line in lines if line.startswith("error: stopped on request after iteration")]
    assert [line for line in lines if line.endswith(": challenger")]
    train(
        patches, warmup, tmp_path / "here", tmp_path / "checkpoints", params=tiny("iterations=60"), track=ignore
    )  # fmt: skip
    assert contents(tmp_path / "challenger") == contents(tmp_path / "here")

    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{parent}'", order_by=["start_time ASC"])
    assert [run.info.status for run in runs] == ["KILLED", "FINISHED"]
    tags = runs[1].data.tags
    assert (tags["kfp_run_id"], tags["image_digest"]) == ("a-run-of-kubeflow", SETTINGS["image"])
    assert runs[1].data.params["iterations"] == "60"

    # Another run of the same training copies the challenger from the volume.
    again = start("again", "iterations=60")
    assert again[0].endswith("exists already: nothing to train")
    assert contents(tmp_path / "again") == contents(tmp_path / "challenger")
    [asked] = cluster.server.created
    told = {variable["name"]: variable.get("value") for variable in asked["spec"]["trainer"]["env"]}
    assert (told["BEBYGAN_GPUS"], told["BEBYGAN_UNTRACKED"]) == ("0", str(tmp_path / "volume" / "untracked"))


@pytest.mark.slow
def test_the_launcher_raises_the_error_of_the_training(
    start: Callable[..., list[str]], cluster: Controllers, warmup: Path, tmp_path: Path
) -> None:
    weights = warmup / "generator.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(
        WeightsError, match=r"exit code 5: .*generator\.safetensors cannot be read as weights .*; for details: kubectl"
    ):
        start("challenger")
    assert cluster.starts == 1
    assert not (tmp_path / "challenger").exists()


def test_patches_are_copied_to_the_volume_once(patches: Path, tmp_path: Path) -> None:
    target = tmp_path / "volume" / "shards" / "1234"
    launcher._share(patches, target)
    node = target.stat().st_ino
    launcher._share(patches, target)
    assert contents(target) == contents(patches)
    assert target.stat().st_ino == node


def test_a_launcher_that_is_killed_while_it_copies_leaves_no_partial_folder(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(source: Path, target: Path, **_: object) -> None:
        (target / "shard-000.npy").write_bytes((source / "shard-000.npy").read_bytes()[:100])
        raise KeyboardInterrupt

    target = tmp_path / "volume" / "shards" / "1234"
    with monkeypatch.context() as patched:
        patched.setattr(launcher.shutil, "copytree", dies)
        with pytest.raises(KeyboardInterrupt):
            launcher._share(patches, target)
    assert not target.exists()
    launcher._share(patches, target)
    assert contents(target) == contents(patches)


def test_shards_that_another_launcher_copied_first_are_not_replaced(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "volume" / "shards" / "1234"
    copytree = launcher.shutil.copytree

    def meanwhile(source: Path, folder: Path, **options: Any) -> None:
        copytree(source, folder, **options)
        target.mkdir()
        (target / "read by others").touch()

    monkeypatch.setattr(launcher.shutil, "copytree", meanwhile)
    launcher._share(patches, target)
    assert [path.name for path in target.parent.rglob("*")] == ["1234", "read by others"]


def test_missing_inputs_raise_an_error_before_the_training_starts(
    server: ApiServer, patches: Path, warmup: Path, tmp_path: Path
) -> None:
    settings = from_yaml(TrainJobSettings, yaml.safe_dump(SETTINGS))
    places = (tmp_path / "out", "/volume/checkpoints")
    with pytest.raises(DataError, match=r"holds no patches\.json: run patches first"):
        launch(tmp_path, warmup, *places, params=tiny(), settings=settings)
    with pytest.raises(WeightsError, match=r"no weights at .*generator\.safetensors: run warmup first"):
        launch(patches, tmp_path, *places, params=tiny(), settings=settings)
    with pytest.raises(ConfigError, match=r"would be lost with the pod: they must be below /volume, or in s3://"):
        launch(patches, warmup, tmp_path / "out", str(tmp_path), params=tiny(), settings=settings)
    assert not server.requests


def test_the_command_line_reads_the_settings_and_reports_invalid_ones(  # noqa: PLR0917
    server: ApiServer, patches: Path, warmup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "trainjob.yaml"
    places = ["--patches", patches, "--warmup", warmup, "--output", tmp_path / "out", "--trainjob", file]
    more = ["--checkpoints", "s3://b/c", "--params", ROOT / "params.yaml", "--volume", tmp_path / "volume"]
    monkeypatch.setattr(sys, "argv", ["launch", *map(str, places + more)])
    assert launcher.main() == 2
    assert capsys.readouterr().err == f"error: cannot read {file}: No such file or directory\n"
    file.write_text(yaml.safe_dump(SETTINGS | {"node": 1}))
    assert launcher.main() == 2
    assert capsys.readouterr().err == "error: there is no parameter node; did you mean nodes?\n"
    file.write_text(yaml.safe_dump(SETTINGS | {"runtime": "other"}))
    assert launcher.main() == 2
    assert "TrainingRuntime 'other' not found" in capsys.readouterr().err
    assert not server.created


def test_the_parameters_reach_the_training_unchanged(tmp_path: Path) -> None:
    for profile in ("params.yaml", "params/compact.yaml", "params/paper.yaml", "params/official.yaml"):
        params = load_params(ROOT / profile).train
        command = launcher._command(tmp_path, tmp_path, "s3://b/c", params)
        setting = command[command.index("--set") + 1]
        assert to_yaml(load_params(ROOT / "params.yaml", [setting]).train) == to_yaml(params)


def test_the_launcher_has_the_inputs_and_outputs_of_the_train_step() -> None:
    inside, elsewhere = train_in_a_pod.component_spec, train_on_nodes.component_spec
    assert elsewhere.outputs == inside.outputs
    assert {name: each for name, each in elsewhere.inputs.items() if name != "trainjob"} == inside.inputs
    assert list(inspect.signature(train_on_nodes.python_func).parameters)[-1] == "challenger"


def test_a_kubeflow_task_exits_with_the_error_and_code_of_the_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {name: dsl.Dataset(uri=str(tmp_path / name)) for name in ("patches", "warmup", "challenger")}
    with pytest.raises(SystemExit) as ended:
        train_on_nodes.python_func(
            data_version="1234.dir", checkpoints="s3://b/c", params=to_yaml(tiny()), trainjob=yaml.safe_dump(SETTINGS),
            **places,
        )  # fmt: skip
    assert ended.value.code == 3
    assert re.fullmatch(
        r"train \.\.\.\nphotographs 1234\.dir\nerror: train: .*patches holds no patches\.json: run patches first\n",
        capsys.readouterr().err,
    )


def test_patches_of_another_data_version_are_not_sent_to_other_machines(
    patches: Path, warmup: Path, tmp_path: Path
) -> None:
    settings = from_yaml(TrainJobSettings, yaml.safe_dump(SETTINGS))
    with pytest.raises(DataError, match=r"is of data version 0{32}\.dir, but this run ingested 1234\.dir"):
        launch(patches, warmup, tmp_path / "out", "s3://b/c", params=tiny(), settings=settings, data_version="1234.dir")


def test_the_launcher_does_not_import_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import components.train.launch"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.slow
def test_two_machines_train_together(
    start: Callable[..., list[str]], cluster: Controllers, warmup: Path, tmp_path: Path
) -> None:
    lines = start("challenger", nodes=2)
    assert cluster.starts == 1
    assert set(contents(tmp_path / "challenger")) >= {"generator.safetensors", "discriminator.safetensors"}
    changed = load_file(tmp_path / "challenger" / "generator.safetensors")["conv_last.weight"]
    assert not torch.equal(changed, load_file(warmup / "generator.safetensors")["conv_last.weight"])
    assert len([line for line in lines if line.startswith("log of pod")]) == 1
    client = mlflow_client()
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert (run.info.status, run.data.tags["step"]) == ("FINISHED", "train")
