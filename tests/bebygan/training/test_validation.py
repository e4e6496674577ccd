from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bebygan.imaging import Image
from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.shards import Patches, read_patches
from bebygan.metrics.fidelity import lr_psnr, psnr_y
from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape
from bebygan.training.loop import fit
from bebygan.training.sampling import whole_patch
from bebygan.training.step import gan_step
from bebygan.training.validation import validate
from tests.bebygan.training.test_loop import JOB, SETTINGS, assert_equal, ignore, make_patches, run, state

MEASURED = replace(SETTINGS, validate_every=4, validate_patches=2)
NAMES = ("validation.psnr_y", "validation.l1", "validation.lr_psnr")


def distance(sr: Image, hr: Image) -> float:
    """A stand-in for LPIPS, which needs weights."""
    return float(np.abs(sr.astype(float) - hr).mean()) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_patches(tmp_path_factory.mktemp("patches"))


@pytest.fixture(scope="module")
def patches(folder: Path) -> Patches:
    return read_patches(folder, "validation")


def test_it_is_the_mean_over_whole_patches(patches: Patches) -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    found = validate(generator, patches, MEASURED)

    psnr, l1, consistency, distances = [], [], [], []
    for number in range(2):
        lr, hr = whole_patch(patches, number)
        assert (lr.shape, hr.shape) == ((12, 12, 3), (48, 48, 3))
        with torch.no_grad():
            sr = generator(to_tensor(lr))
        psnr.append(psnr_y(to_image(sr), hr))
        l1.append(float((sr - to_tensor(hr)).abs().mean()))
        consistency.append(lr_psnr(to_image(sr), lr))
        distances.append(distance(to_image(sr), hr))
    expected = {
        "validation.psnr_y": pytest.approx(np.mean(psnr)),
        "validation.l1": pytest.approx(np.mean(l1)),
        "validation.lr_psnr": pytest.approx(np.mean(consistency)),
    }
    assert found == expected
    expected["validation.lpips"] = pytest.approx(np.mean(distances))
    assert validate(generator, patches, MEASURED, distance) == expected


def test_the_patches_are_spread_over_the_split_and_always_the_same(
    patches: Patches, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = Patches(patches.hr, patches.lr, np.repeat(patches.windows, 5), patches.size, patches.made_from)
    asked: list[int] = []

    def asking(patches: Patches, number: int) -> tuple[np.ndarray, np.ndarray]:
        asked.append(number)
        return whole_patch(patches, number)

    monkeypatch.setattr("bebygan.training.validation.whole_patch", asking)
    for _ in range(2):
        validate(Generator(GeneratorShape(blocks=1, features=4, growth=2)), many, replace(MEASURED, validate_patches=3))
    assert asked == [0, 4, 9] * 2


def test_without_validation_patches_there_is_nothing_to_tell(patches: Patches) -> None:
    none = Patches(patches.hr, patches.lr, patches.windows[:0], patches.size, patches.made_from)
    assert validate(Generator(GeneratorShape(blocks=1, features=4, growth=2)), none, MEASURED) == {}


def test_measuring_while_training_changes_nothing_but_the_history(
    folder: Path, patches: Patches, tmp_path: Path
) -> None:
    training = read_patches(folder, "train")
    expected = run(training, tmp_path / "plain")
    trained = state()
    before = torch.get_rng_state()
    fit(
        trained, training, MEASURED, gan_step(MEASURED, None), checkpoints=tmp_path / "measured", identity=JOB,
        watch=ignore, validation=patches,
    )  # fmt: skip

    assert torch.equal(torch.get_rng_state(), before)
    measured = [entry["iteration"] for entry in trained.history if "validation.psnr_y" in entry]
    assert measured == [0, 4, 6]
    assert trained.history.pop(0).keys() == {"iteration", *NAMES}
    for entry in trained.history:
        for name in NAMES:
            entry.pop(name, None)
    assert_equal(trained.state_dict(), expected.state_dict())


def test_an_iteration_that_is_measured_but_not_logged_tells_the_measurement_alone(
    folder: Path, patches: Patches, tmp_path: Path
) -> None:
    settings = replace(MEASURED, log_every=100, validate_every=2)
    trained = state()
    fit(
        trained, read_patches(folder, "train"), settings, gan_step(settings, None), checkpoints=tmp_path, identity=JOB,
        watch=ignore, validation=patches,
    )  # fmt: skip
    assert [entry.keys() == {"iteration", *NAMES} for entry in trained.history] == [True, True, True, False]
    assert {"total", "validation.psnr_y"} <= trained.history[-1].keys()
