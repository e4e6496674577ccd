import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.errors import DataError
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.colour import luma
from bebygan.metrics.fidelity import lr_psnr, psnr_y, ssim_y
from bebygan.metrics.protocol import PROTOCOL
from benchmarks import plain


def pair(height: int = 40, width: int = 44, seed: int = 0, noise: int = 20) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    hr = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    sr = np.clip(hr.astype(int) + generator.integers(-noise, noise + 1, hr.shape), 0, 255).astype(np.uint8)
    return sr, hr


@pytest.mark.official("metrics")
def test_psnr_and_ssim_are_the_official_ones(official: dict[str, np.ndarray]) -> None:
    sr, hr = (np.ascontiguousarray(official[name][..., ::-1]) for name in ("a_bgr", "b_bgr"))
    assert psnr_y(sr, hr) == pytest.approx(float(official["psnr_y_crop4"]), abs=1e-6)
    assert ssim_y(sr, hr) == pytest.approx(float(official["ssim_y_crop4"]), abs=1e-7)


@pytest.mark.parametrize(
    ("images", "decibels", "similarity"),
    [
        (pair(), 31.43395468753188, 0.9869028887061396),
        (pair(64, 52, 7, 60), 22.572191103644155, 0.9019345443322857),
    ],
)
def test_psnr_and_ssim_are_those_of_scikit_image(
    images: tuple[np.ndarray, np.ndarray], decibels: float, similarity: float
) -> None:
    """Computed by scikit-image 0.26.0, of `rgb2ycbcr` without 4 pixels of each border: `peak_signal_noise_ratio`, and
    `structural_similarity` with gaussian_weights, sigma 1.5, use_sample_covariance=False, both with data_range 255."""
    assert psnr_y(*images) == pytest.approx(decibels, abs=1e-9)
    assert ssim_y(*images) == pytest.approx(similarity, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(height=st.integers(19, 50), width=st.integers(19, 50), seed=st.integers(0, 999), noise=st.integers(1, 200))
def test_both_are_symmetric_and_ssim_is_that_of_the_whole_window(
    height: int, width: int, seed: int, noise: int
) -> None:
    sr, hr = pair(height, width, seed, noise)
    assert psnr_y(sr, hr) == pytest.approx(psnr_y(hr, sr))
    assert ssim_y(sr, hr) == pytest.approx(ssim_y(hr, sr))
    inside = [torch.from_numpy(luma(image)[4:-4, 4:-4]) for image in (sr, hr)]
    assert ssim_y(sr, hr) == pytest.approx(plain.ssim(*inside), abs=1e-12)
    assert ssim_y(sr, hr) <= 1


def test_equal_images_have_the_best_values() -> None:
    _, hr = pair()
    assert psnr_y(hr, hr) == math.inf
    assert ssim_y(hr, hr) == pytest.approx(1)


def test_one_grey_level_is_a_known_number_of_decibels() -> None:
    hr = np.full((20, 20, 3), 100, np.uint8)
    step = 219 / 255
    assert psnr_y(hr + 1, hr) == pytest.approx(20 * math.log10(255 / step))


def test_the_outer_four_pixels_do_not_count() -> None:
    sr, hr = pair()
    framed = sr.copy()
    framed[:4] = framed[-4:] = 0
    framed[:, :4] = framed[:, -4:] = 0
    assert psnr_y(framed, hr) == psnr_y(sr, hr)
    assert ssim_y(framed, hr) == ssim_y(sr, hr)
    framed[4, 4] = 255 - framed[4, 4]
    assert psnr_y(framed, hr) != psnr_y(sr, hr)


def test_the_original_agrees_with_its_lr_up_to_rounding_and_noise_does_not() -> None:
    _, hr = pair(48, 64)
    lr = downscale_uint8(hr, 4)
    assert 55 < lr_psnr(hr, lr) < 62
    assert 30 < lr_psnr(pair(48, 64, noise=20)[0], lr) < 50


def test_a_shift_of_one_level_is_seen_in_rgb() -> None:
    lr = np.full((5, 6, 3), 100, np.uint8)
    sr = np.full((20, 24, 3), 100, np.uint8)
    sr[..., 0] += 1
    assert lr_psnr(sr, lr) == pytest.approx(20 * math.log10(255) + 10 * math.log10(3))


def test_images_too_small_to_measure_are_refused() -> None:
    sr, hr = pair(18, 40)
    with pytest.raises(DataError, match="18x40 is too small to measure: 19"):
        ssim_y(sr, hr)
    with pytest.raises(DataError, match="too small to measure: 9"):
        psnr_y(sr[:8], hr[:8])


def test_sizes_that_do_not_fit_are_refused() -> None:
    sr, hr = pair()
    with pytest.raises(ValueError, match="one shape"):
        psnr_y(sr[:-1], hr)
    with pytest.raises(ValueError, match="is not 4 times LR"):
        lr_psnr(sr, hr)


def test_each_metric_states_its_protocol() -> None:
    assert set(PROTOCOL) == {
        "psnr_y", "ssim_y", "lpips", "dists", "lr_psnr", "psnr_y_textured", "psnr_y_flat", "lpips_textured",
        "lpips_flat", "artefacts",
    }  # fmt: skip
    assert all("better" in text for text in PROTOCOL.values())
