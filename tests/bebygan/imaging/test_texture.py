import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.imaging.texture import local_deviation
from bebygan.losses import region_aware


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(12, 40), st.integers(12, 40), st.sampled_from([3, 7, 11]))
def test_it_equals_the_standard_deviation_of_each_window(seed: int, height: int, width: int, window: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)

    luma = np.pad(image @ np.array((0.2989, 0.587, 0.114)) / 255, window // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(luma, (window, window))
    np.testing.assert_allclose(local_deviation(image, window), windows.std(axis=(2, 3), ddof=1), atol=1e-9)


def test_it_equals_the_region_mask_of_tensors() -> None:
    image = np.random.default_rng(5).integers(100, 120, (48, 60, 3), np.uint8)
    images = torch.from_numpy(image).permute(2, 0, 1)[None].double() / 255
    luma = (images * torch.tensor((0.2989, 0.587, 0.114), dtype=torch.float64).view(1, 3, 1, 1)).sum(1, keepdim=True)

    expected = region_aware.local_deviation(luma, 11)[0, 0].numpy()
    np.testing.assert_allclose(local_deviation(image, 11), expected, atol=1e-9)


@pytest.mark.parametrize("grey", [0, 37, 255])
def test_a_flat_image_has_no_deviation(grey: int) -> None:
    assert local_deviation(np.full((30, 30, 3), grey, np.uint8), 11).max() < 1e-6
