from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bebygan.losses.region_aware import local_deviation, region_mask, textured_regions
from bebygan.settings import RegionSettings
from benchmarks import plain


def half_flat(height: int = 40, width: int = 40) -> Tensor:
    """Left half flat but for faint noise, right half noisy."""
    noise = torch.rand(2, 3, height, width)
    noise[..., : width // 2] *= 0.02
    return 0.4 + 0.5 * noise


@pytest.mark.official("mask_*")
def test_the_mask_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    lr = torch.from_numpy(official["lr"])
    exact = lr.dtype == torch.float64
    threshold, window = float(official["thresh"]), int(official["ksize"])
    hr = torch.zeros(lr.shape[0], 3, lr.shape[2] * int(official["scale"]), lr.shape[3] * int(official["scale"]))
    mask = region_mask(hr, lr, mask_from="lr", window=window, threshold=threshold)
    clear = np.abs(official["std"] - threshold) > (0 if exact else 1e-6)
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(1 - mask.numpy()[clear], official["mask"][clear])


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(8, 30),
    width=st.integers(8, 30),
    window=st.sampled_from([3, 5, 7, 11, 15]),
    threshold=st.floats(0.001, 0.2),
    seed=st.integers(0, 1000),
)
def test_two_box_averages_find_what_unfolded_windows_find(
    height: int, width: int, window: int, threshold: float, seed: int
) -> None:
    torch.manual_seed(seed)
    images = half_flat(height, width).double()
    fast = textured_regions(images, window=window, threshold=threshold)
    assert torch.equal(1 - fast, plain.flat_regions(images, window, threshold))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-0.3, 0.3))
def test_the_deviation_does_not_change_with_brightness_and_follows_the_image_when_it_is_flipped(
    seed: int, shift: float
) -> None:
    luma = torch.rand(1, 1, 20, 26, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    deviation = local_deviation(luma, 7)
    torch.testing.assert_close(local_deviation(luma + shift, 7), deviation, rtol=0, atol=1e-12)
    torch.testing.assert_close(local_deviation(luma.flip(2, 3), 7), deviation.flip(2, 3), rtol=0, atol=1e-12)
    torch.testing.assert_close(local_deviation(luma.mT, 7), deviation.mT, rtol=0, atol=1e-12)
    torch.testing.assert_close(local_deviation(2 * luma, 7), 2 * deviation, rtol=0, atol=1e-12)


def test_a_constant_image_is_flat_and_noise_is_textured() -> None:
    assert textured_regions(torch.full((1, 3, 16, 16), 0.7)).sum() == 0
    assert textured_regions(torch.rand(1, 3, 16, 16)).min() == 1


def test_a_threshold_of_zero_hides_nothing() -> None:
    assert textured_regions(torch.zeros(1, 3, 16, 16), threshold=0).min() == 1


def test_the_mask_is_taken_from_hr_or_from_the_enlarged_lr() -> None:
    hr, lr = torch.rand(1, 3, 48, 48), torch.full((1, 3, 12, 12), 0.5)
    assert region_mask(hr, lr, mask_from="hr").min() == 1
    assert region_mask(hr, lr, mask_from="lr").max() == 0


def test_autocast_changes_no_pixel() -> None:
    hr = half_flat()
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    for source in ("hr", "lr"):
        outside = region_mask(hr, lr, mask_from=source)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(region_mask(hr, lr, mask_from=source), outside)
        assert 0 < outside.mean() < 1


@pytest.mark.parametrize(
    ("changes", "message"), [({"window": 4}, "window must be odd"), ({"threshold": 2}, "threshold")]
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionSettings(**changes)


def test_a_window_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="too large for images"):
        textured_regions(torch.rand(1, 3, 5, 30))


def test_the_mask_needs_an_odd_window_and_where_it_is_made_from_lr_that() -> None:
    with pytest.raises(ValueError, match="must be odd, got 10"):
        region_mask(torch.rand(1, 3, 48, 48), window=10)
    with pytest.raises(ValueError, match="a mask from LR needs LR"):
        region_mask(torch.rand(1, 3, 48, 48), mask_from="lr")
