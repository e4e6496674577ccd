from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from bebygan import SCALE
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.imaging.tiling import upscale_image
from bebygan.metrics.fidelity import psnr_y
from bebygan.networks.naming import load_generator
from components.config import load_params

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "data/sample"
WARMUP = ROOT / "data/pretrained/rrdb-4x32.safetensors"
HELD_OUT = ["brook.jpg", "leaves.jpg"]
PHOTOGRAPHS = sorted(path for path in SAMPLE.iterdir() if path.suffix in (".jpg", ".png"))


def test_the_sample_is_small_enough_to_be_cloned() -> None:
    assert 12 <= len(PHOTOGRAPHS) <= 20
    assert sum(path.stat().st_size for path in PHOTOGRAPHS) <= 12e6
    assert WARMUP.stat().st_size <= 4e6


@pytest.mark.parametrize("path", PHOTOGRAPHS, ids=lambda path: path.name)
def test_each_photograph_has_source_author_and_licence(path: Path) -> None:
    rows = [line for line in (SAMPLE / "ATTRIBUTION.md").read_text().splitlines() if line.startswith(f"| {path.name} ")]

    assert len(rows) == 1
    assert all(cell.strip() for cell in rows[0].strip("|").split("|"))


def test_the_shipped_warmup_is_of_the_laptop_profile() -> None:
    params = load_params(ROOT / "params.yaml")

    assert load_generator(WARMUP).shape == params.warmup.generator
    assert ROOT / (params.warmup.weights or "") == WARMUP


@pytest.mark.parametrize("name", HELD_OUT)
def test_the_shipped_warmup_beats_bicubic_on_photographs_that_it_never_saw(name: str) -> None:
    with PillowImage.open(SAMPLE / name) as picture:
        hr = np.asarray(picture)[:256, :256]
    lr = downscale_uint8(hr, SCALE)

    ours = psnr_y(upscale_image(load_generator(WARMUP).eval(), lr), hr)
    assert ours > psnr_y(resize_uint8(lr, *hr.shape[:2]), hr) + 0.3
