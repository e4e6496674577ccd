"""Region-aware adversarial learning (arXiv 2103.15295 section 3.3): flat regions are kept from the discriminator.

A pixel is flat where the standard deviation of luma in the window around it is below a threshold.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.precision import at_least_float32
from bebygan.settings import RegionSettings

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
        ValueError: `window` is too large for the image.
    """
    if min(luma.shape[-2:]) <= window // 2:
        raise ValueError(f"a mask window of {window} pixels is too large for images of {tuple(luma.shape[-2:])}")
    values = F.pad(luma.double(), (window // 2,) * 4, mode="reflect")
    pair = torch.cat((values, values.square()), 1)
    mean, mean_square = F.avg_pool2d(F.avg_pool2d(pair, (window, 1), 1), (1, window), 1).chunk(2, 1)
    count = window * window
    return ((mean_square - mean.square()).clamp_min(0) * (count / (count - 1))).sqrt()


def textured_regions(images: Tensor, settings: RegionSettings) -> Tensor:
    """Return 1 where `images` are textured and 0 where they are flat: what the discriminator's input is multiplied by.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        settings: window and threshold.

    Returns:
        (N, 1, H, W), float32 (float64 for float64 images), without gradient.

    Raises:
        ValueError: the window is too large for the images.
    """
    images = at_least_float32(images.detach())
    red, green, blue = images.unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return (local_deviation(luma[:, None], settings.window) >= settings.threshold).to(images.dtype)


def region_mask(hr: Tensor, lr: Tensor, settings: RegionSettings) -> Tensor:
    """Return the textured regions (N, 1, H, W) of a batch, for SR and HR alike.

    Args:
        hr: (N, 3, H, W), RGB in [0, 1].
        lr: (N, 3, H / s, W / s), RGB in [0, 1].
        settings: window, threshold, and which of the two the mask is computed on; LR is enlarged by torch's bicubic.

    Raises:
        ValueError: the window is too large for the images.
    """
    if settings.mask_from == "hr":
        return textured_regions(hr, settings)
    scale = hr.shape[-1] // lr.shape[-1]
    enlarged = F.interpolate(at_least_float32(lr), scale_factor=scale, mode="bicubic", align_corners=False)
    return textured_regions(enlarged, settings)
