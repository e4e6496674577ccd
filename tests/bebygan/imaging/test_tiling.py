import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape

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
    """Fails as a GPU does on inputs above 48 pixels."""

    def __init__(self, limit: int) -> None:
        super().__init__(SMALL)
        self.limit = limit
        self.seen: list[int] = []

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        self.seen.append(max(lr.shape[-2:]))
        if self.seen[-1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(lr)


def test_where_memory_runs_out_all_is_done_again_in_smaller_tiles() -> None:
    small, image = SmallMemory(limit=80), picture(128, 130)
    found = upscale_image(small, image, overlap=RADIUS)
    assert small.seen[0] == 130
    assert small.seen[-1] <= 80
    roomy = Generator(SMALL)
    roomy.load_state_dict(small.state_dict())
    assert np.abs(found.astype(int) - upscale_image(roomy, image)).max() <= 1


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
