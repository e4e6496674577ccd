import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kfp import dsl
from safetensors import safe_open

from bebygan.errors import DataError, Preempted
from bebygan.files import json_digest
from bebygan.imaging import Image
from bebygan.imaging.shards import read_patches
from bebygan.metrics.perceptual import load_lpips, lpips
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.pretrained import weights_file
from bebygan.settings import GeneratorShape
from bebygan.training.state import TrainState, new_state
from bebygan.training.step import warmup_step
from bebygan.training.validation import validate
from components.config import WarmupParams, load_params, to_yaml
from components.tracking.client import mlflow_client
from components.tracking.runs import step_run
from components.train.component import train as train_task
from components.training import job_of, photographs_version, tracked_training, train_generator, write_generator
from components.warmup.component import warmup as warmup_task

ROOT = Path(__file__).parents[2]
CHANGES = (
    "iterations=4", "batch=2", "crop=48", "precision=fp32", "channels_last=false", "checkpoint_every=2", "log_every=2",
    "picture_every=4", "validate_every=0", "schedule={peak: 1.0e-3, warmup: 2}",
    "generator={blocks: 1, features: 4, growth: 2}",
)  # fmt: skip
Logged = list[tuple[int, Mapping[str, float | Image]]]


def tiny(*changes: str) -> WarmupParams:
    return load_params(ROOT / "params/compact.yaml", [f"warmup.{change}" for change in (*CHANGES, *changes)]).warmup


def fresh(params: WarmupParams) -> TrainState:
    torch.manual_seed(1)
    return new_state(Generator(GeneratorShape(blocks=1, features=4, growth=2)), None, params, torch.device("cpu"))


def trained(patches: Path, checkpoints: Path, params: WarmupParams) -> tuple[TrainState, Logged]:
    logged: Logged = []
    state = fresh(params)
    train_generator(
        state, patches, params, warmup_step(params), checkpoints=checkpoints, job=job_of("warmup", params, patches, {}),
        track=lambda iteration, values: logged.append((iteration, values)),
    )  # fmt: skip
    return state, logged


def test_the_job_identifies_data_code_parameters_and_initial_weights(patches: Path) -> None:
    job = job_of("warmup", tiny(), patches, {"start": "none"})
    assert {
        "step",
        "patches",
        "data_version",
        "code",
        "start",
        "params.iterations",
        "params.schedule.peak",
    } <= job.keys()
    assert job["data_version"] == photographs_version(patches) == f"{'0' * 32}.dir"
    assert job == job_of("warmup", tiny(), patches, {"start": "none"})
    assert job != job_of("warmup", tiny("seed=7"), patches, {"start": "none"})


def test_a_job_without_patches_raises_an_error(tmp_path: Path) -> None:
    for call in (lambda: photographs_version(tmp_path), lambda: job_of("warmup", tiny(), tmp_path, {})):
        with pytest.raises(DataError, match=r"holds no patches\.json: run patches first"):
            call()


def test_values_and_pictures_are_tracked_and_a_second_run_resumes_at_the_end(patches: Path, tmp_path: Path) -> None:
    state, logged = trained(patches, tmp_path / "checkpoints", tiny())
    assert [iteration for iteration, _ in logged] == [2, 4, 4]
    assert all(np.isfinite(value) for _, values in logged[:2] for value in values.values())
    picture: Any = logged[2][1]["samples"]
    assert picture.dtype == np.uint8
    assert picture.ndim == 3
    again, more = trained(patches, tmp_path / "checkpoints", tiny())
    assert [iteration for iteration, values in more if "samples" not in values] == []
    assert again.history == state.history


def test_the_written_generator_loads_and_has_its_origin_as_metadata(patches: Path, tmp_path: Path) -> None:
    params = tiny("seed=7")
    state, logged = trained(patches, tmp_path / "checkpoints", params)
    job = job_of("warmup", params, patches, {"start": "none"})
    write_generator(tmp_path, state, params, job)
    assert load_generator(tmp_path / "generator.safetensors").shape == GeneratorShape(blocks=1, features=4, growth=2)
    with safe_open(tmp_path / "generator_raw.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["seed"], metadata["start"], metadata["step"]) == ("7", "none", "warmup")
    assert not any(name.startswith("params.") for name in metadata)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == state.history
    assert [line["iteration"] for line in lines] == [
        iteration for iteration, values in logged if "samples" not in values
    ]


def test_a_run_that_its_learning_rate_ruins_stops_and_delivers_its_best_average(patches: Path, tmp_path: Path) -> None:
    params = tiny(
        "iterations=40", "batch=4", "schedule={shape: steps, peak: 3.0e-4, warmup: 0}", "ema_decay=0.5",
        "checkpoint_every=100", "log_every=10", "validate_every=2", "picture_every=0",
        "deliver={by: validation.lpips, lr_psnr_floor: null}", "stop_when_worse={validations: 3, lpips: 0.03}",
    )  # fmt: skip
    step = warmup_step(params)

    def sabotaged(state: TrainState, lr: torch.Tensor, hr: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if state.iteration >= 28:
            for group in state.generator_optimiser.param_groups:
                group["lr"] *= 20
        return step(state, lr, hr)

    start = load_generator(ROOT / "data" / "pretrained" / "rrdb-4x32.safetensors")
    state = new_state(start, None, params, torch.device("cpu"))
    job = job_of("warmup", params, patches, {})
    train_generator(state, patches, params, sabotaged, checkpoints=tmp_path / "c", job=job, track=lambda *_: None)
    write_generator(tmp_path, state, params, job)

    network = load_lpips(weights_file("alexnet"), weights_file("lpips-alex"))
    validation = read_patches(patches, "validation")

    def distance(generator: Generator) -> float:
        return validate(generator, validation, params, lambda sr, hr: lpips(sr, hr, network))["validation.lpips"]

    best = min(entry["validation.lpips"] for entry in state.history[1:] if "validation.lpips" in entry)
    assert distance(load_generator(tmp_path / "generator.safetensors")) <= 1.02 * best
    assert distance(state.average) > 1.3 * best
    assert state.stopped
    assert state.iteration == 34


@pytest.mark.usefixtures("mlflow_store")
def test_a_stop_request_ends_the_run_of_a_training(capsys: pytest.CaptureFixture[str]) -> None:
    params = tiny()
    with tracked_training("warmup", params, "0.dir") as track:
        track(1, {"l1": 0.5})
        run: Any = track
    client = mlflow_client()
    assert client.get_run(run.run_id).data.metrics["l1"] == 0.5
    assert client.get_run(run.run_id).data.tags["data_version"] == "0.dir"
    before = signal.getsignal(signal.SIGTERM)
    stopped = pytest.raises(Preempted, match="run again to continue")
    with stopped, tracked_training("warmup", params, "0.dir") as track:
        run = track
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert client.get_run(run.run_id).info.status == "KILLED"
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().out == ""


def test_other_processes_than_the_first_track_nothing(monkeypatch: pytest.MonkeyPatch, mlflow_store: str) -> None:
    monkeypatch.setattr("components.training.rank", lambda: 1)
    with tracked_training("warmup", tiny(), "0.dir") as track:
        track(1, {"l1": 0.5})
    assert mlflow_store
    assert mlflow_client().search_experiments(filter_string="name = 'bebygan'") == []


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize("step", ["warmup", "train"])
def test_a_task_refuses_patches_of_another_data_version_than_the_one_that_the_run_ingested(
    step: str, patches: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = load_params(ROOT / "params/compact.yaml", ["train.iterations=1"])
    task: Any = warmup_task if step == "warmup" else train_task
    folders = {name: dsl.Dataset(uri=str(tmp_path / name)) for name in ("generator", "warmup", "challenger")}
    inputs = {
        "data_version": "1234.dir", "code_version": "1", "checkpoints": str(tmp_path / "checkpoints"),
        "params": to_yaml(getattr(params, step)), "patches": dsl.Dataset(uri=str(patches)), **folders,
    }  # fmt: skip
    names = {*task.component_spec.inputs, *task.component_spec.outputs}
    with pytest.raises(SystemExit) as ended:
        task.python_func(**{name: each for name, each in inputs.items() if name in names})
    assert ended.value.code == 3
    message = f"error: {step}: {patches} is of data version {'0' * 32}.dir, but this run ingested 1234.dir: run patches"
    assert message in capsys.readouterr().err
    [run] = mlflow_client().search_runs(["1"])
    assert run.info.status == "FAILED"


@pytest.mark.usefixtures("mlflow_store")
def test_patches_with_other_parameters_than_those_of_the_run_are_refused(
    patches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_params(ROOT / "params/compact.yaml")
    version, copy = photographs_version(patches), tmp_path / "patches"
    shutil.copytree(patches, copy)
    about = json.loads((copy / "patches.json").read_text())

    def use(of: object) -> None:
        about["made_from"]["params"] = to_yaml(of)
        about["digest"] = json_digest({name: value for name, value in about.items() if name != "digest"})
        (copy / "patches.json").write_text(json.dumps(about))
        with tracked_training("warmup", params.warmup, version, copy):
            pass

    with step_run("retrain", params) as parent:
        monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent.run_id)
        use(params.patches)
        other = load_params(ROOT / "params/compact.yaml", ["patches.texture_threshold=0.5"]).patches
        message = r"patches was made with other parameters than this run has \(patches\.texture_threshold 0\.5 -> "
        with pytest.raises(DataError, match=message):
            use(other)
