import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from components.comparison import METRICS
from components.config import Params, load_params
from pipelines import calibration, cli
from pipelines.calibration import least_gain, seeded, training_noise

ROOT = Path(__file__).parents[2]
FEW = [
    "train.iterations=2", "train.batch=1", "train.crop=64", "train.validate_every=0", "train.deliver.by=last",
    "train.losses.perceptual=0", "train.losses.adversarial=0", "evaluate.crop=64", "train.picture_every=0",
    "train.losses.dists=0", "train.discriminator_first=0",
]  # fmt: skip


@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_one_training_in_forty_is_better_than_another_by_more_than_the_least_gain(seeds: int) -> None:
    random = np.random.default_rng(0)
    means = random.normal(0.1, 0.003, (4000, seeds))
    first, second = random.normal(0.1, 0.003, (2, 4000))
    beyond = [a - b > least_gain(list(row), 0.95) for row, a, b in zip(means, first, second, strict=True)]
    assert np.mean(beyond) == pytest.approx(0.025, abs=0.006)


def test_of_forty_trainings_at_most_two_replace_the_median_champion() -> None:
    """The worst of forty champions is an extreme draw itself: it is replaced by more."""
    random = np.random.default_rng(0)
    median, worst = [], []
    for _ in range(400):
        least = least_gain(list(random.normal(0.1, 0.003, 8)), 0.95)
        gains = np.subtract.outer(means := random.normal(0.1, 0.003, 40), means)
        replaced = (gains > least).sum(1)
        median.append(np.median(replaced))
        worst.append(replaced.max())
    assert np.mean(np.array(median) <= 2) > 0.95
    assert 2 < np.median(worst) < 10


@pytest.mark.parametrize("value", [0.00123, 0.0999, 0.5, 2.11, 17.3])
def test_a_gain_that_is_proposed_is_never_below_the_measured_one(value: float) -> None:
    written = float(calibration._rounded_up(value))
    assert value <= written <= value * 1.1


def test_noise_is_known_of_metrics_that_were_measured_and_differ_between_seeds() -> None:
    means = pd.DataFrame({"lpips": [0.1, 0.2, 0.3], "artefacts": [0.0] * 3, "lpips_flat": [np.nan] * 3})
    assert training_noise(means, 0.95) == {"lpips": least_gain([0.1, 0.2, 0.3], 0.95)}


def test_seeds_differ_in_nothing_else() -> None:
    params = load_params()
    assert [each.train.seed for each in seeded(params, (3, 4))] == [3, 4]
    assert seeded(params, [params.train.seed]) == [params]


def test_too_few_seeds_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["calibrate", "--seeds", "4", "--workspace", str(tmp_path)]) == 2
    assert "--seeds must be at least 5, got 4" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_calibration_proposes_noise_and_goes_on_where_it_stopped(
    picture: Callable[..., Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(calibration, "end_quickly", lambda: None)
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for seed in range(16):
        picture(seed, 200, 200).save(photographs / f"{seed}.png")
    words = ["calibrate", "--source", str(photographs), "--workspace", str(tmp_path), "--seeds", "5"]
    words += ["--params", str(ROOT / "params/compact.yaml"), *(f"--set={value}" for value in [*FEW, "patches.size=64"])]
    trained: list[int] = []
    true = calibration.train

    def stopped_at_the_third(*arguments: Any, **named: Any) -> None:
        trained.append(named["params"].seed)
        if len(trained) == 3:
            raise KeyboardInterrupt
        true(*arguments, **named)

    monkeypatch.setattr(calibration, "train", stopped_at_the_third)
    assert cli.main(words) == 130
    assert cli.main(words) == 0
    assert trained == [1, 2, 3, 3, 4, 5]
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "calibration" / "calibration.json").read_text())
    assert found["seeds"] == 5
    # The pictures of this test have no flat regions.
    assert set(found["means"]) == {metric for metric in METRICS if not metric.endswith("_flat")}
    # Two iterations change little, and artefacts are those that the start does not have.
    assert found["means"]["artefacts"] == [0] * 5
    assert set(found["training_noise"]) == set(found["means"]) - {"artefacts"}
    assert "the same with every seed, so that no gain is proposed: artefacts\n" in said
    proposed = said.split("evaluate:\n")[1].split("\n\n")[0]
    assert isinstance(read(tmp_path, f"evaluate:\n{proposed}"), Params)
    assert cli.main(words) == 0
    assert len(trained) == 6


def read(folder: Path, text: str) -> Params:
    (folder / "noise.yaml").write_text(text)
    return load_params(folder / "noise.yaml")
