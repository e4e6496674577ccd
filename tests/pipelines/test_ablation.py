import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from bebygan import SCALE
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import PhotographPair, write_shards
from bebygan.metrics.perceptual import Heads, Lpips
from bebygan.networks import AlexNet, Dists, Generator, Vgg, save_generator
from bebygan.networks.dists import DistsWeights
from bebygan.settings import GeneratorShape
from components.config import load_params
from components.tracking.client import mlflow_client
from components.train.step import train
from pipelines import cli
from pipelines.ablation import command, measures, report
from pipelines.ablation.plan import Ablation, Cell, read_ablation, trainings_of

ROOT = Path(__file__).parents[2]
SHAPE = {"blocks": 1, "features": 4, "growth": 2}
TINY = {
    "warmup.generator": SHAPE, "warmup.iterations": 0, "train.discriminator_width": 4, "train.iterations": 3,
    "train.batch": 2, "train.crop": 48, "train.schedule": {"peak": 1e-3, "warmup": 1}, "train.precision": "fp32",
    "train.checkpoint_every": 1, "train.log_every": 1, "train.validate_every": 0, "train.picture_every": 0,
    "train.deliver": {"by": "last", "lr_psnr_floor": None}, "train.keep": {"newest": 2, "every": 0, "best": None},
    "train.discriminator_first": 0,
    "train.losses": {"best_buddy": 0, "back_projection": 0, "perceptual": 0, "adversarial": 0.005},
}  # fmt: skip
CELLS = {
    "l1": {"title": "L1", "set": {"train.losses.l1": 1.0, "train.region.threshold": 0.0}},
    "ldl": {
        "title": "and LDL", "claim": "it helps", "better": ["psnr_y"], "not_worse": {"lpips": 0.5},
        "set": {"train.losses.l1": 1.0, "train.losses.locally_discriminative": 1.0},
    },
}  # fmt: skip
Ablate = Callable[..., int]


@pytest.fixture
def networks(monkeypatch: pytest.MonkeyPatch) -> measures.Networks:
    """LPIPS and DISTS with random weights instead of published ones."""
    torch.manual_seed(0)
    heads = [tensor.abs() for tensor in Heads().state_dict().values()]
    made = measures.Networks(Lpips(AlexNet(), heads), Dists(Vgg("vgg16", "conv5_3"), DistsWeights()))
    monkeypatch.setattr(command, "load_networks", lambda _: made)
    return made


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    generator = Generator(GeneratorShape(**SHAPE))
    with torch.no_grad():
        generator.conv_last.bias.fill_(0.5)
    save_generator(generator, tmp_path / "tiny.safetensors")
    described = {"seeds": [1], "set": {**TINY, "warmup.weights": str(tmp_path / "tiny.safetensors")}, "cells": CELLS}
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(described, sort_keys=False))
    return tmp_path / "ablation.yaml"


@pytest.fixture
def ablate(
    ablation: Path, picture: Callable[..., Image.Image], workspace: Path,
    networks: measures.Networks, monkeypatch: pytest.MonkeyPatch,
) -> Ablate:  # fmt: skip
    """Return a function that runs the command in this process, in a workspace of a name."""
    del networks, workspace
    patches, benchmark, shown = (ablation.with_name(name) for name in ("patches", "Few", "Free"))
    for folder in (patches, benchmark, shown):
        folder.mkdir()
    hr = np.asarray(picture(1, 96, 96))
    windows = np.array([(top, left) for top in (0, 24, 48) for left in (0, 24, 48)])
    pair = PhotographPair(hr, downscale_uint8(hr, SCALE), "train", windows)
    write_shards(patches, [pair], 48, 10**9, {"data_version": f"{'0' * 32}.dir"})
    for seed in (2, 3):
        picture(seed, 82, 77).save(benchmark / f"{seed}.png")
    picture(4, 80, 80).save(shown / "free.png")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def run(*options: str, folder: str = "trained") -> int:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        places = ["--patches", str(patches), "--workspace", folder, "--output", f"{folder}/docs/ablation.md"]
        return cli.main(
            ["ablate", str(ablation), f"--benchmark=Few={benchmark}", *places, *options, "--params",
             str(ROOT / "params.yaml")]
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_an_ablation_that_was_stopped_goes_on_and_ends_as_one_that_was_not(
    ablate: Ablate, ablation: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def stopped(*places: Any, track: Callable[..., None], params: Any, **_: Any) -> None:
        def watch(iteration: int, values: Mapping[str, Any]) -> None:
            track(iteration, values)
            if iteration == 2 and params.losses.locally_discriminative:
                signal.raise_signal(signal.SIGTERM)

        train(*places, params=params, track=watch)

    with monkeypatch.context() as patched:
        patched.setattr(command, "train", stopped)
        assert ablate() == 75
    out, err = capfd.readouterr()
    assert "2 trainings will take 0.00 hours" in out + err
    assert "iteration 2; run again to continue" in out + err
    kept = Path("trained/ablation/l1-seed-1/generator.safetensors")
    before = kept.stat().st_mtime_ns

    assert ablate() == 0
    out, err = capfd.readouterr()
    assert "training 1 of 1: ldl-seed-1" in out + err
    assert kept.stat().st_mtime_ns == before
    assert ablate(folder="whole") == 0
    for name in ("l1-seed-1", "ldl-seed-1"):
        first, second = (load_file(f"{each}/ablation/{name}/generator.safetensors") for each in ("trained", "whole"))
        assert all(torch.equal(first[key], second[key]) for key in first)

    # The time of both starts counts.
    assert len(Path("trained/ablation/ldl-seed-1.seconds").read_text().split()) == 2
    page = Path("trained/docs/ablation.md").read_text()
    assert "The trainings took 0.0 hours in all." in page
    assert page == Path("whole/docs/ablation.md").read_text()
    assert "**it helps** (ldl beside l1)" in page
    assert "## Few (2 photographs)" in page
    assert all(title in page for title in report.TITLES.values())
    assert {path.name for path in Path("trained/docs/images").iterdir()} == {
        "ablation-Few-texture.png", "ablation-Few-flat.png",
    }  # fmt: skip
    shutil.rmtree("trained/docs")
    assert ablate(f"--show=Free={ablation.with_name('Free')}") == 0
    page = Path("trained/docs/ablation.md").read_text()
    assert "Of Free the photograph" in page
    assert "## Free" not in page
    assert {path.name for path in Path("trained/docs/images").iterdir()} == {
        "ablation-Free-texture.png", "ablation-Free-flat.png",
    }  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///trained/mlflow.db")
    runs = mlflow_client().search_runs(["1"], "tags.ablation = 'ldl'")
    assert {run.info.run_name for run in runs} == {"ldl-seed-1"}
    assert {run.info.status for run in runs} == {"FINISHED", "KILLED"}


@pytest.mark.slow
def test_a_dry_run_states_the_hours_and_trains_nothing(ablate: Ablate, capfd: pytest.CaptureFixture[str]) -> None:
    assert ablate("--dry-run", "--set=train.iterations=1000000") == 0
    out, err = capfd.readouterr()
    hours = float((out + err).partition("2 trainings will take ")[2].partition(" hours")[0])
    assert hours > 0.5
    assert not list(Path("trained/ablation").glob("*seed*"))


def test_the_shipped_ablation_is_the_paper_step_by_step() -> None:
    ablation = read_ablation(ROOT / "params/ablation.yaml")
    trainings = trainings_of(ablation, ROOT / "params.yaml", [])
    assert [each.name for each in trainings[:2]] == ["esrgan-seed-1", "best-buddy-seed-1"]
    assert len(trainings) == len(ablation.seeds) * len(ablation.cells) == 18
    esrgan, best_buddy, back_projection, region_aware, ldl, aesop = (each.params.train for each in trainings[:6])
    assert (esrgan.losses.l1, esrgan.losses.best_buddy, esrgan.losses.back_projection) == (1, 0, 0)
    assert (best_buddy.losses.l1, best_buddy.losses.best_buddy) == (0, 1)
    assert back_projection.losses.back_projection == 1
    assert [each.region.threshold for each in (esrgan, best_buddy, back_projection, region_aware)] == [0, 0, 0, 0.025]
    assert ldl.losses.locally_discriminative == 1
    assert aesop.losses == replace(ldl.losses, auto_encoded=1.0)
    assert {each.params.train.iterations for each in trainings} == {esrgan.iterations}
    assert {each.params.train.seed for each in trainings} == set(ablation.seeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": []}, "at least one seed"),
        ({"cells": {"a": {"title": "A", "set": {}, "better": ["lpip"]}}}, "there is no metric lpip"),
        ({"cells": {"a/b": {"title": "A", "set": {}}}}, "letters, digits and -"),
        ({"cells": {"a": {"title": "A", "set": {"train.losses.l2": 1}}}}, "train.losses.l2"),
        ({"cells": {name: {"title": "A", "set": {}} for name in ("a", "b")}}, "cells a and b have the same parameters"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(
    ablate: Ablate, ablation: Path, change: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    described = yaml.safe_load(ablation.read_text()) | change
    ablation.write_text(json.dumps(described))
    assert ablate() == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_benchmark_without_photographs_is_refused(
    ablate: Ablate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert ablate(f"--benchmark=Empty={tmp_path / 'empty'}") == 3
    assert "of benchmark Empty has no .png" in capsys.readouterr().err


def test_only_flat_regions_count_in_their_metrics(networks: measures.Networks) -> None:
    random = np.random.default_rng(0)
    hr = np.full((96, 96, 3), 128, np.uint8)
    hr[:, 48:] = random.integers(0, 256, (96, 48, 3))
    lr = downscale_uint8(hr, SCALE)
    flat = measures.flat_regions(hr)
    assert flat[:, :42].all()
    assert not flat[:, 54:].any()
    noisy, other = hr.copy(), hr.copy()
    noisy[:, :40] += random.integers(0, 8, (96, 40, 1), dtype=np.uint8)
    other[:, 60:] = random.integers(0, 256, (96, 36, 3))
    smooth = noisy.copy()
    smooth[:, :40] = 128
    same, invented, elsewhere = (measures.measure(sr, hr, lr, networks) for sr in (hr, noisy, other))
    for values in (same, elsewhere):
        assert values["flat_lpips"] == 0
        assert values["false_texture"] == pytest.approx(0, abs=1e-6)
    assert invented["flat_lpips"] > 0
    # Uniform noise of 8 levels has a deviation of 2.3.
    assert 1.5 < invented["false_texture"] < 2.4
    # Texture that SR lacks does not make up for texture that it invents.
    assert measures.measure(smooth, noisy, lr, networks)["false_texture"] == pytest.approx(0, abs=1e-6)
    textured = random.integers(0, 256, (96, 96, 3), dtype=np.uint8)
    assert np.isnan(measures.measure(textured, textured, downscale_uint8(textured, SCALE), networks)["flat_lpips"])


def test_a_claim_is_judged_by_the_side_of_zero_that_its_intervals_are_on() -> None:
    cell = Cell(title="", set={}, claim="c", better=("lpips",), not_worse={"psnr_y": 0.1})
    better, worse, unknown = (-0.01, -0.02, -0.005), (0.01, 0.005, 0.02), (0.0, -0.01, 0.01)
    equal, lost = (0.0, -0.05, 0.05), (-0.5, -0.6, -0.4)
    assert report.verdict(cell, {"lpips": better, "psnr_y": equal}).startswith("reproduced (LPIPS ↓ -0.0100")
    assert report.verdict(cell, {"lpips": worse, "psnr_y": equal}).startswith("refuted")
    assert report.verdict(cell, {"lpips": better, "psnr_y": lost}).startswith("refuted")
    assert report.verdict(cell, {"lpips": unknown, "psnr_y": equal}).startswith("undecided")


def test_differences_are_paired_by_photograph_and_averaged_over_seeds() -> None:
    cells = {name: Cell(title="", set={}) for name in ("a", "b")}
    ablation = Ablation(seeds=(1, 2), set={}, cells=cells)
    random = np.random.default_rng(0)
    base = random.normal(25, 5, 20)
    rows = {
        f"{cell}-seed-{seed}": [
            {"benchmark": "X", "photograph": str(number), **dict.fromkeys(measures.METRICS, value + gain)}
            for number, value in enumerate(base)
        ]
        for cell, seed, gain in (("a", 1, 0.0), ("a", 2, 0.2), ("b", 1, 1.0), ("b", 2, 1.4))
    }
    mean, low, high = report.differences(ablation, rows, "X", "b", "a")["psnr_y"]
    # The photographs differ by 5 dB, the differences not at all.
    assert mean == pytest.approx(1.1)
    assert low == pytest.approx(1.1)
    assert high == pytest.approx(1.1)


def test_the_parameters_file_may_be_changed_on_the_command_line() -> None:
    ablation = read_ablation(ROOT / "params/ablation.yaml")
    trainings = trainings_of(ablation, ROOT / "params.yaml", ["train.iterations=7"])
    assert {each.params.train.iterations for each in trainings} == {7}
    assert load_params(ROOT / "params.yaml").train.iterations != 7
