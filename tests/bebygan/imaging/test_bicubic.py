import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bebygan.imaging.bicubic import downscale, resize
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from benchmarks import plain


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.official("resizer_x[0-9]")
def test_shrinking_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    factor = round(1 / float(official["scale"]))
    images = torch.from_numpy(official["x"])
    np.testing.assert_allclose(downscale(images, factor), official["y_f32"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(downscale(images.double(), factor), official["y_f64"], rtol=0, atol=1e-12)


@pytest.mark.official("resizer_up_*")
def test_enlarging_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    expected = official["y_f32"]
    found = resize(torch.from_numpy(official["x"]), *expected.shape[-2:])
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6)


@pytest.mark.official("resizer_sides*")
def test_sides_of_any_ratio_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    expected = official["y_f32"]
    found = resize(torch.from_numpy(official["x"]), *expected.shape[-2:])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


@pytest.mark.official("matlab_imresize_common")
def test_both_ways_agree_with_a_second_implementation(official: dict[str, np.ndarray]) -> None:
    images = torch.from_numpy(official["x_chw"])[None]
    np.testing.assert_allclose(downscale(images, 4)[0], official["y_x025"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(resize(images, 96, 112)[0], official["y_x4"], rtol=0, atol=1e-6)


@pytest.mark.official("resizer_uint8_*")
def test_8_bit_images_rounded_once_are_the_official_ones_and_matlabs_two_roundings_differ_by_one_at_most(
    official: dict[str, np.ndarray],
) -> None:
    images = torch.from_numpy(official["x"]).double()
    factor = official["x"].shape[-1] // official["y"].shape[-1]
    once = downscale(images, factor).clamp(0, 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(once, official["y"])
    for image, expected in zip(official["x"], official["y"], strict=True):
        twice = downscale_uint8(image.transpose(1, 2, 0), factor).transpose(2, 0, 1)
        difference = np.abs(twice.astype(int) - expected)
        assert difference.max() <= 1
        assert 0 < (difference > 0).mean() < 0.2


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    rows=st.integers(1, 24),
    columns=st.integers(1, 24),
    seed=st.integers(0, 99),
)
def test_any_size_is_what_the_definition_gives(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    images = random(1, 2, height, width, seed=seed)
    torch.testing.assert_close(
        resize(images, rows, columns), plain.matlab_resize(images, rows, columns), rtol=0, atol=1e-12
    )


@settings(max_examples=30, deadline=None)
@given(factor=st.integers(2, 5), rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 99))
def test_whole_factors_by_the_native_kernel_are_what_the_definition_gives(
    factor: int, rows: int, columns: int, seed: int
) -> None:
    images = random(2, 3, rows * factor, columns * factor, seed=seed)
    torch.testing.assert_close(downscale(images, factor), resize(images, rows, columns), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(value=st.floats(-1, 2), height=st.integers(1, 30), width=st.integers(1, 30), rows=st.integers(1, 30))
def test_a_constant_image_stays_constant(value: float, height: int, width: int, rows: int) -> None:
    found = resize(torch.full((1, 1, height, width), value, dtype=torch.float64), rows, 2 * width)
    torch.testing.assert_close(found, torch.full_like(found, value), rtol=0, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-3, 3), b=st.floats(-3, 3), seed=st.integers(0, 99))
def test_it_is_linear_and_follows_flips_and_transposition(a: float, b: float, seed: int) -> None:
    first, second = random(2, 1, 3, 16, 24, seed=seed)
    shrunk = downscale(first, 4)
    torch.testing.assert_close(downscale(a * first + b * second, 4), a * shrunk + b * downscale(second, 4))
    torch.testing.assert_close(downscale(first.flip(2), 4), shrunk.flip(2))
    torch.testing.assert_close(downscale(first.flip(3), 4), shrunk.flip(3))
    torch.testing.assert_close(downscale(first.mT, 4), shrunk.mT)


def test_the_gradient_is_that_of_the_definition() -> None:
    images = random(1, 1, 12, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: downscale(values, 4), images)


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    rows=st.integers(1, 30),
    columns=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_8_bit_images_are_rounded_after_rows_and_again_after_columns(
    height: int, width: int, rows: int, columns: int, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)

    def rounded(values: Tensor) -> Tensor:
        return torch.floor(values.clamp(0, 255) + 0.5)

    def is_half(values: Tensor) -> Tensor:
        return (values.clamp(0, 255) % 1 - 0.5).abs() < 1e-9

    planes = torch.from_numpy(image).permute(2, 0, 1)[None].double()
    rows_first = plain.matlab_resize_rows(planes, rows)
    then_columns = plain.matlab_resize_rows(rounded(rows_first).mT, columns).mT
    found = resize_uint8(image, rows, columns)
    assert found.dtype == np.uint8
    # Noise in the last bits decides where a half goes.
    undecided = is_half(then_columns) | is_half(rows_first).any(dim=3, keepdim=True)
    equal = torch.from_numpy(found).permute(2, 0, 1)[None] == rounded(then_columns)
    assert (equal | undecided).all()


def test_sides_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="a 10x12 image cannot be shrunk by 4"):
        downscale(torch.rand(1, 3, 10, 12), 4)
    with pytest.raises(ValueError, match="a 12x10 image cannot be shrunk by 4"):
        downscale_uint8(np.zeros((12, 10, 3), np.uint8), 4)


def test_float32_is_as_exact_as_float32_can_be() -> None:
    images = random(1, 3, 64, 64)
    error = (downscale(images.float(), 4).double() - downscale(images, 4)).abs().max().item()
    assert error < 4 * math.ulp(1) * 2**29
