"""Region-aware adversarial learning (arXiv 2103.15295 section 3.3): flat regions are kept from the discriminator.

A pixel is flat where the standard deviation of luma in the window around it is below a threshold.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.precision import at_least_float32, full_precision

MaskSource = Literal["hr", "lr"]

_LUMA = (0.2989, 0.587, 0.114)


def local_deviation(luma: Tensor, window: int) -> Tensor:
    """Return the unbiased standard deviation in the window around each pixel, borders reflected.

    Two box averages, of the values and of their squares, replace the window^2 copies of each pixel. Float64 throughout,
    so that the mask does not depend on the order of summation.

    Args:
        luma: (N, 1, H, W); H and W are above window / 2.
        window: odd side of the window.

    Returns:
        (N, 1, H, W), float64.

    Raises:
        ValueError: `window` is even or below 3, or too large for the image.
    """
    if window % 2 == 0 or window < 3:
        raise ValueError(f"the mask's window must be odd and at least 3, got {window}")
    if min(luma.shape[-2:]) <= window // 2:
        raise ValueError(f"a mask window of {window} pixels is too large for images of {tuple(luma.shape[-2:])}")
    values = F.pad(luma.double(), (window // 2,) * 4, mode="reflect")
    pair = torch.cat((values, values.square()), 1)
    mean, mean_square = F.avg_pool2d(F.avg_pool2d(pair, (window, 1), 1), (1, window), 1).chunk(2, 1)
    count = window * window
    return ((mean_square - mean.square()).clamp_min(0) * (count / (count - 1))).sqrt()


def textured_regions(images: Tensor, window: int, threshold: float) -> Tensor:
    """Return 1 where `images` are textured and 0 where they are flat: what the discriminator's input is multiplied by.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        window: odd side of the window.
        threshold: standard deviation of luma below which a pixel is flat.

    Returns:
        (N, 1, H, W), float32 (float64 for float64 images), without gradient.

    Raises:
        ValueError: see `local_deviation`.
    """
    with torch.no_grad(), full_precision(images.device):
        images = at_least_float32(images)
        red, green, blue = images.unbind(1)
        luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
        return (local_deviation(luma[:, None], window) >= threshold).to(images.dtype)


def region_mask(hr: Tensor, lr: Tensor, *, mask_from: MaskSource, window: int, threshold: float) -> Tensor:
    """Return the textured regions (N, 1, H, W) of a batch, for SR and HR alike.

    Args:
        hr: (N, 3, H, W), RGB in [0, 1].
        lr: (N, 3, H / s, W / s), RGB in [0, 1].
        mask_from: "hr", as the paper writes, or "lr", enlarged by torch's bicubic, as the official code does.
        window: odd side of the window (paper: 11).
        threshold: standard deviation of luma below which a pixel is flat (paper: 0.025).

    Raises:
        ValueError: `mask_from` is neither, or see `local_deviation`.
    """
    if mask_from == "hr":
        return textured_regions(hr, window, threshold)
    if mask_from != "lr":
        raise ValueError(f"mask_from must be 'hr' or 'lr', got {mask_from!r}")
    with torch.no_grad(), full_precision(lr.device):
        scale = hr.shape[-1] // lr.shape[-1]
        enlarged = F.interpolate(at_least_float32(lr), scale_factor=scale, mode="bicubic", align_corners=False)
        return textured_regions(enlarged, window, threshold)
