"""The perceptual loss (ESRGAN section 3.3; arXiv 2103.15295 section 3.4): distance of VGG features before ReLU."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.networks.perceptual import Vgg
from bebygan.precision import at_least_float32


def perceptual_loss(vgg: Vgg, sr: Tensor, hr: Tensor, taps: Mapping[str, float]) -> Tensor:
    """Return the weighted sum over `taps` of the mean |VGG(sr) - VGG(hr)|, a scalar with a gradient to `sr` alone.

    Args:
        vgg: frozen network that has all the taps.
        sr: (N, 3, H, W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        taps: weight per convolution, such as {"conv3_4": 1 / 8, "conv4_4": 1 / 4, "conv5_4": 1 / 2}.

    Raises:
        ValueError: `taps` is empty or names a layer that `vgg` does not have.
    """
    if not taps:
        raise ValueError("the perceptual loss needs at least one tap, such as conv5_4")
    with torch.no_grad():
        wanted = vgg(hr, tuple(taps))
    found = vgg(sr, tuple(taps))
    terms = [
        weight * F.l1_loss(at_least_float32(found[tap]), at_least_float32(wanted[tap])) for tap, weight in taps.items()
    ]
    return torch.stack(terms).sum()
