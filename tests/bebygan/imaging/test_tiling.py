import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.tiling import tile_for, upscale_fast, upscale_image
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.settings import GeneratorShape

DATA = Path(__file__).parents[3] / "data"
MEASURE = """
import numpy as np, torch
from bebygan.imaging.tiling import tile_for, upscale_fast
from bebygan.networks import Generator
from bebygan.settings import GeneratorShape

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

shape = GeneratorShape(blocks=1, features=64, growth=32)
generator, limit = Generator(shape).to(memory_format=torch.channels_last), 200 * 2**20
image = np.zeros((tile_for(shape, torch.float32, limit),) * 2 + (3,), np.uint8)
upscale_fast(generator, image[:40, :40], precision="fp32")
before = peak()
upscale_fast(generator, image, precision="fp32", memory=limit)
print(limit, peak() - before)
"""
SMALL = GeneratorShape(blocks=1, features=4, growth=2)
RADIUS = 15 * SMALL.blocks + 4
"""LR pixels that one result pixel sees on each side."""


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 50), width=st.integers(1, 50), tile=st.integers(1, 60), seed=st.integers(0, 99))
def test_tiles_with_an_overlap_as_wide_as_the_receptive_field_equal_the_whole(
    height: int, width: int, tile: int, seed: int
) -> None:
    torch.manual_seed(seed)
    generator, image = Generator(SMALL), picture(height, width, seed)
    whole = upscale_image(generator, image)
    tiled = upscale_image(generator, image, tile=max(tile, 6), overlap=RADIUS)
    assert whole.shape == (4 * height, 4 * width, 3)
    difference = np.abs(whole.astype(int) - tiled)
    # Convolutions of another size may round the last bit otherwise, which can tip a value from one integer to the next.
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_the_default_overlap_leaves_no_visible_seam() -> None:
    generator, image = Generator(GeneratorShape(blocks=4, features=8, growth=4)), picture(96, 96)
    difference = np.abs(upscale_image(generator, image).astype(int) - upscale_image(generator, image, tile=32))
    assert difference.max() <= 1


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Return the PSNR over all 8-bit values, at most 100 dB."""
    error = np.square(one.astype(float) - other).mean()
    return 10 * math.log10(255**2 / error) if error else 100


@pytest.fixture(scope="module")
def trained() -> tuple[Generator, np.ndarray, np.ndarray]:
    """A trained generator, a photograph, and the photograph upscaled whole in float32."""
    generator = load_generator(DATA / "pretrained" / "rrdb-4x32.safetensors").eval()
    with Image.open(DATA / "sample" / "astronaut.png") as file:
        photograph = np.asarray(file.convert("RGB"))[60:156, 180:276]
    return generator, photograph, upscale_image(generator, photograph)


def test_seams_of_a_trained_network_are_far_below_one_step(trained: tuple[Generator, np.ndarray, np.ndarray]) -> None:
    generator, photograph, whole = trained
    tiled = upscale_fast(generator, photograph, precision="fp32", tile=48)
    assert np.abs(whole.astype(int) - tiled).max() <= 1
    assert psnr(whole, tiled) > 80


def test_the_fast_path_keeps_fifty_decibels_in_8_bits(trained: tuple[Generator, np.ndarray, np.ndarray]) -> None:
    generator, photograph, whole = trained
    fast = upscale_fast(generator, photograph, precision="bf16")
    assert 50 < psnr(whole, fast) < 100
    assert np.array_equal(upscale_fast(generator, photograph, precision="fp32"), whole)


def test_images_of_16_bits_are_computed_in_float32_and_keep_more_than_8(
    trained: tuple[Generator, np.ndarray, np.ndarray],
) -> None:
    generator, photograph, whole = trained
    deep = upscale_fast(generator, photograph.astype(np.uint16) * 257)
    assert deep.dtype == np.uint16
    assert np.abs(deep / 257 - whole).max() < 0.51
    assert (deep % 257 != 0).mean() > 0.9
    with torch.no_grad():
        exact = generator(to_tensor(photograph)).clamp(0, 1)[0].permute(1, 2, 0).numpy() * 65535
    assert np.abs(deep - exact).max() < 2


def test_less_memory_gives_smaller_tiles() -> None:
    full = GeneratorShape()
    sides = [tile_for(full, torch.float32, megabytes * 2**20) for megabytes in (0, 100, 300, 10_000)]
    assert sides == sorted(sides)
    assert (sides[0], sides[-1]) == (32, 448)
    assert tile_for(full, torch.bfloat16, 300 * 2**20) > sides[2]


def test_a_tile_takes_no_more_memory_than_was_allowed() -> None:
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True, cwd=DATA.parent
    )
    limit, taken = map(int, measured.stdout.split())
    assert 0.3 * limit < taken < limit


def test_without_overlap_seams_would_show() -> None:
    generator, image = Generator(SMALL), picture(32, 32)
    difference = upscale_image(generator, image).astype(int) - upscale_image(generator, image, tile=16, overlap=0)
    assert np.abs(difference).max() > 1


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (2, 3)])
def test_the_smallest_images_are_enlarged(size: tuple[int, int]) -> None:
    assert upscale_image(Generator(SMALL), picture(*size), tile=2, overlap=1).shape == (4 * size[0], 4 * size[1], 3)


def test_one_tile_is_the_generator_itself() -> None:
    generator, image = Generator(SMALL), picture(9, 11)
    with torch.no_grad():
        expected = to_image(generator(to_tensor(image)))
    np.testing.assert_array_equal(upscale_image(generator, image), expected)


def test_bfloat16_stays_close_to_float32() -> None:
    generator, image = Generator(SMALL), picture(16, 16)
    exact, coarse = upscale_image(generator, image), upscale_image(generator, image, dtype=torch.bfloat16)
    difference = np.abs(exact.astype(int) - coarse)
    assert 0 < difference.max() <= 4


class SmallMemory(Generator):
    """Fails on inputs above `limit` pixels, as a GPU does unless another error is given."""

    def __init__(self, limit: int, error: Exception | None = None) -> None:
        super().__init__(SMALL)
        self.limit = limit
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")
        self.seen: list[int] = []

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        self.seen.append(max(lr.shape[-2:]))
        if self.seen[-1] > self.limit:
            raise self.error
        return super().forward(lr)


def test_where_memory_runs_out_all_is_done_again_in_smaller_tiles() -> None:
    small, image = SmallMemory(limit=80), picture(128, 130)
    found = upscale_image(small, image, overlap=RADIUS)
    assert small.seen[0] == 130
    assert small.seen[-1] <= 80
    roomy = Generator(SMALL)
    roomy.load_state_dict(small.state_dict())
    assert np.abs(found.astype(int) - upscale_image(roomy, image)).max() <= 1


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")],
)
def test_on_a_cpu_too_tiles_are_halved_and_complete_ones_stay(error: Exception) -> None:
    small, image, done = SmallMemory(limit=80, error=error), picture(128, 200), list[int]()
    found = upscale_image(small, image, tile=128, overlap=RADIUS, advance=done.append)
    roomy = Generator(SMALL)
    roomy.load_state_dict(small.state_dict())
    assert np.abs(found.astype(int) - upscale_image(roomy, image)).max() <= 1
    assert sum(done) == 128 * 200
    # Only one tile failed at each size.
    assert sum(side > 80 for side in small.seen) == 2


def test_an_error_that_is_not_about_memory_ends_at_once() -> None:
    small = SmallMemory(limit=10, error=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        upscale_image(small, picture(64, 64))
    assert small.seen == [64]


def test_where_not_even_a_small_tile_fits_the_error_is_told() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        upscale_image(SmallMemory(limit=10), picture(128, 64), overlap=0)


def test_no_graph_is_kept_and_the_generator_is_left_as_it_was() -> None:
    generator = Generator(SMALL).train()
    upscale_image(generator, picture(8, 8))
    assert generator.training
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_a_tile_below_one_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="tile must be at least 1"):
        upscale_image(Generator(SMALL), picture(8, 8), tile=0)
