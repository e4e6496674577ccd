"""The perceptual loss (ESRGAN section 3.3; arXiv 2103.15295 section 3.4): distance of VGG features before ReLU."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.networks.architecture import PAPER_TAPS
from bebygan.networks.perceptual import Vgg
from bebygan.precision import at_least_float32


def perceptual_loss(sr: Tensor, hr: Tensor, vgg: Vgg, taps: Mapping[str, float] | None = None) -> Tensor:
    """Return the weighted sum over `taps` of the mean |VGG(sr) - VGG(hr)|, a scalar with a gradient to `sr` only.

    Args:
        sr: (N, 3, H, W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        vgg: frozen network that has all the taps; see `load_vgg`.
        taps: weight of each convolution, whose output before ReLU is compared. None takes those of `PAPER_TAPS`.

    Raises:
        ValueError: `taps` is empty or names a layer that `vgg` does not have.
    """
    taps = PAPER_TAPS[vgg.network] if taps is None else taps
    if not taps:
        raise ValueError("the perceptual loss needs at least one tap, such as conv5_4")
    with torch.no_grad():
        expected = vgg(hr, tuple(taps))
    found = vgg(sr, tuple(taps))
    terms = [
        weight * F.l1_loss(at_least_float32(found[tap]), at_least_float32(expected[tap]))
        for tap, weight in taps.items()
    ]
    return torch.stack(terms).sum()
