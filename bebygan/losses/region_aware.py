"""Region-aware adversarial learning (arXiv 2103.15295 section 3.3): the discriminator does not see flat regions.

A pixel is flat where the standard deviation of luma in the window around it is below a threshold.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.precision import at_least_float32
from bebygan.settings import MaskSource

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
        ValueError: `window` is even, or too large for the image.
    """
    if window % 2 == 0:
        raise ValueError(f"a mask window must be odd, got {window}")
    if min(luma.shape[-2:]) <= window // 2:
        raise ValueError(f"a mask window of {window} pixels is too large for images of {tuple(luma.shape[-2:])}")
    values = F.pad(luma.double(), (window // 2,) * 4, mode="reflect")
    pair = torch.cat((values, values.square()), 1)
    mean, mean_square = F.avg_pool2d(F.avg_pool2d(pair, (window, 1), 1), (1, window), 1).chunk(2, 1)
    count = window * window
    return ((mean_square - mean.square()).clamp_min(0) * (count / (count - 1))).sqrt()


def textured_regions(images: Tensor, *, window: int = 11, threshold: float = 0.025) -> Tensor:
    """Return 1 where images are textured and 0 where they are flat: the factor of the discriminator's input.

    Args:
        images: (N, 3, H, W), RGB in [0, 1].
        window: side of the window, odd, pixels.
        threshold: standard deviation of luma in [0, 1] below which a pixel is flat; 0 hides nothing.

    Returns:
        (N, 1, H, W), float32 (float64 for float64 images), without gradient.

    Raises:
        ValueError: the window is even, or too large for the images.
    """
    images = at_least_float32(images.detach())
    red, green, blue = images.unbind(1)
    luma = _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue
    return (local_deviation(luma[:, None], window) >= threshold).to(images.dtype)


def region_mask(
    hr: Tensor, lr: Tensor | None = None, *, mask_from: MaskSource = "hr", window: int = 11, threshold: float = 0.025
) -> Tensor:
    """Return the textured regions (N, 1, H, W) of a batch, by which SR and HR are multiplied for the discriminator.

    Args:
        hr: (N, 3, H, W), RGB in [0, 1].
        lr: (N, 3, H / s, W / s), RGB in [0, 1]; only needed for the mask from LR.
        mask_from: image that the mask is computed on. hr: as in the paper. lr: LR enlarged by torch's bicubic, as in
            the official code.
        window: see `textured_regions`.
        threshold: see `textured_regions`.

    Raises:
        ValueError: the window is even, or too large for the images, or LR is missing.
    """
    if mask_from == "hr":
        return textured_regions(hr, window=window, threshold=threshold)
    if lr is None:
        raise ValueError("a mask from LR needs LR")
    scale = hr.shape[-1] // lr.shape[-1]
    enlarged = F.interpolate(at_least_float32(lr), scale_factor=scale, mode="bicubic", align_corners=False)
    return textured_regions(enlarged, window=window, threshold=threshold)
