"""PSNR and SSIM of SR and HR, and LR-PSNR, the consistency of SR with LR. See `protocol.PROTOCOL`."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.imaging import Image
from bebygan.imaging.bicubic import downscale
from bebygan.imaging.colour import FloatArray, luma
from bebygan.metrics.batches import metric

CROP = 4
_WINDOW = 11
_SIGMA = 1.5
_C1 = (0.01 * 255) ** 2
_C2 = (0.03 * 255) ** 2


@metric
def psnr_y(sr: Image, hr: Image) -> float:
    """Return the peak signal-to-noise ratio on Y in dB, higher is better; infinite for equal images.

    Args:
        sr: (H, W, 3) uint8 RGB, or (N, 3, H, W) RGB in [0, 1]. A border of 4 pixels is ignored.
        hr: the same type and shape.

    Raises:
        ValueError: the shapes differ.
        DataError: the images are smaller than 9 pixels.
    """
    first, second = _cropped_luma(sr, hr, least=1)
    return _psnr(first, second)


def psnr_y_in(sr: Image, hr: Image, region: npt.NDArray[np.bool_]) -> float:
    """Return `psnr_y` of the pixels in a region (H, W); a border of 4 pixels is ignored, NaN if nothing is left.

    Raises:
        ValueError, DataError: as `psnr_y`.
    """
    first, second = _cropped_luma(sr, hr, least=1)
    inside = region[CROP:-CROP, CROP:-CROP]
    return _psnr(first[inside], second[inside]) if inside.any() else math.nan


@metric
def ssim_y(sr: Image, hr: Image) -> float:
    """Return the structural similarity on Y (Wang et al. 2004), in [-1, 1], higher is better.

    Args:
        sr: (H, W, 3) uint8 RGB, or (N, 3, H, W) RGB in [0, 1]. A border of 4 pixels is ignored.
        hr: the same type and shape.

    Raises:
        ValueError: the shapes differ.
        DataError: the images are smaller than 19 pixels, which border and window need.
    """
    first, second = _cropped_luma(sr, hr, least=_WINDOW)
    products = np.stack((first, second, first * first, second * second, first * second))
    # The Gaussian is separable: 22 products per pixel instead of 121.
    weights = torch.exp(-((torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    weights /= weights.sum()
    filtered = F.conv2d(torch.from_numpy(products)[:, None], weights.view(1, 1, -1, 1))
    filtered = F.conv2d(filtered, weights.view(1, 1, 1, -1))
    mean1, mean2, square1, square2, product = filtered.unbind()
    variance1, variance2 = square1 - mean1**2, square2 - mean2**2
    covariance = product - mean1 * mean2
    similarity = (2 * mean1 * mean2 + _C1) * (2 * covariance + _C2)
    similarity /= (mean1**2 + mean2**2 + _C1) * (variance1 + variance2 + _C2)
    return float(similarity.mean())


@metric
def lr_psnr(sr: Image, lr: Image) -> float:
    """Return the peak signal-to-noise ratio on RGB of downscaled SR and the LR that it was made from, in dB.

    The downscaled SR is clamped but not rounded. HR itself therefore reaches about 58 dB, not infinity.

    Args:
        sr: (4H, 4W, 3) uint8 RGB, or (N, 3, 4H, 4W) RGB in [0, 1].
        lr: (H, W, 3) or (N, 3, H, W), the same type.

    Raises:
        ValueError: SR is not four times LR.
    """
    if sr.shape != (lr.shape[0] * SCALE, lr.shape[1] * SCALE, 3):
        raise ValueError(f"SR of {sr.shape} is not {SCALE} times LR of {lr.shape}")
    planes = torch.from_numpy(np.ascontiguousarray(sr.transpose(2, 0, 1)))[None].double()
    shrunk = downscale(planes, SCALE).clamp(0, 255)[0].permute(1, 2, 0).numpy()
    return _psnr(shrunk, lr.astype(np.float64))


def _psnr(first: FloatArray, second: FloatArray) -> float:
    error = float(np.mean((first - second) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def _cropped_luma(sr: Image, hr: Image, least: int) -> tuple[FloatArray, FloatArray]:
    if sr.shape != hr.shape:
        raise ValueError(f"SR of {sr.shape} and HR of {hr.shape} must have one shape")
    if min(sr.shape[:2]) < 2 * CROP + least:
        raise DataError(
            f"an image of {sr.shape[0]}x{sr.shape[1]} is too small to measure: {2 * CROP + least} are needed"
        )
    inside = slice(CROP, -CROP)
    return luma(sr)[inside, inside], luma(hr)[inside, inside]
