import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from bebygan import SCALE
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.imaging.tiling import upscale_image
from bebygan.metrics.fidelity import lr_psnr, psnr_y
from bebygan.metrics.perceptual import load_lpips, lpips
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import load_exactly, read_state
from bebygan.pretrained import weights_file
from components.checkout import discriminator_beside
from components.config import load_params
from components.evaluate.pictures import most_textured
from components.ingest.splits import split_of

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data/sample"
WARMUP = ROOT / "data/pretrained/rrdb-4x32.safetensors"
BEBYGAN = "bebygan-4x32"
PHOTOGRAPHS = sorted(path for path in SAMPLE.iterdir() if path.suffix in (".jpg", ".png"))
TRAINED_ON = {
    f"{name}.{kind}"
    for kind, names in {
        "jpg": "brushes dandelion dogs meadow mountains rocket sunset wine city periwinkle wren courtyard lake otters "
        "osprey colosseum skyline tea spices spiral",
        "png": "astronaut chelsea coffee",
    }.items()
    for name in names.split()
}
"""Photographs, also of other sizes, that the shipped warm-up was trained on: see data/pretrained/README.md."""


def held_out() -> list[str]:
    ingest = load_params(ROOT / "params.yaml").ingest
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in PHOTOGRAPHS}
    return [n for n, d in digests.items() if split_of(d, ingest.validation_share, ingest.test_share) == "test"]


def test_the_sample_is_small_enough_to_be_cloned() -> None:
    assert 12 <= len(PHOTOGRAPHS) <= 40
    assert sum(path.stat().st_size for path in PHOTOGRAPHS) <= 12e6
    assert WARMUP.stat().st_size <= 4e6


def test_the_sample_holds_out_enough_photographs_to_judge_a_second_run() -> None:
    assert len(held_out()) >= 8
    assert not TRAINED_ON & set(held_out())


def test_the_attribution_names_the_photographs_that_are_held_out() -> None:
    [said] = re.findall(r"held out for the comparison of models: ([^.]+)\.", (SAMPLE / "ATTRIBUTION.md").read_text())

    assert re.split(r",\s+|\s+and\s+", said) == [Path(name).stem for name in held_out()]


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_each_photograph_has_source_author_and_licence(path: Path) -> None:
    rows = [line for line in (SAMPLE / "ATTRIBUTION.md").read_text().splitlines() if line.startswith(f"| {path.name} ")]

    assert len(rows) == 1
    assert all(cell.strip() for cell in rows[0].strip("|").split("|"))


def test_the_shipped_warmup_is_of_the_laptop_profile() -> None:
    params = load_params(ROOT / "params/compact.yaml")

    assert load_generator(WARMUP).shape == params.warmup.generator
    assert ROOT / (params.warmup.weights or "") == WARMUP


@pytest.mark.parametrize("name", held_out())
def test_the_shipped_warmup_beats_bicubic_on_photographs_that_it_never_saw(name: str) -> None:
    with PillowImage.open(SAMPLE / name) as picture:
        pixels = np.asarray(picture)
    hr = np.ascontiguousarray(pixels[most_textured(pixels, 256)])
    lr = downscale_uint8(hr, SCALE)

    ours = psnr_y(upscale_image(load_generator(WARMUP).eval(), lr), hr)
    assert ours > psnr_y(resize_uint8(lr, *hr.shape[:2]), hr) + 0.3


@pytest.mark.slow
def test_the_shipped_perceptual_generator_is_closer_to_unseen_photographs_than_the_warmup() -> None:
    network = load_lpips(weights_file("alexnet"), weights_file("lpips-alex"))
    generators = [load_generator(path).eval() for path in (weights_file(BEBYGAN), WARMUP)]
    distances = []
    for name in held_out():
        with PillowImage.open(SAMPLE / name) as picture:
            pixels = np.asarray(picture)
        hr = np.ascontiguousarray(pixels[most_textured(pixels, 256)])
        lr = downscale_uint8(hr, SCALE)
        images = [upscale_image(generator, lr) for generator in generators]
        distances.append([lpips(image, hr, network) for image in images])
        assert lr_psnr(images[0], lr) > 30
    ours, warmup = np.mean(distances, 0)
    assert ours < 0.75 * warmup


@pytest.mark.parametrize(("profile", "start"), [("params.yaml", "realsr-df2k-x4"), ("params/compact.yaml", BEBYGAN)])
def test_a_training_from_known_weights_continues_with_the_discriminator_that_is_shipped(
    profile: str, start: str
) -> None:
    params = load_params(ROOT / profile, ["train.crop=96"]).train
    beside = discriminator_beside(Path(start))

    assert beside is not None
    assert beside.resolve() == ROOT / f"data/pretrained/{start}/discriminator.safetensors"
    load_exactly(Discriminator(params.crop, params.discriminator_width), read_state(beside), beside)
