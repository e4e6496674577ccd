"""LDL's locally discriminative loss (Liang et al., CVPR 2022, arXiv 2203.09195): L1 where artefacts are likely.

A GAN invents artefacts where the residual to HR varies strongly within a small window. Of these pixels, those where
the averaged generator is nearer to HR are artefacts; in the others the training is about to find real details.
"""

import torch
from torch import Tensor

from bebygan.losses.region_aware import local_deviation
from bebygan.precision import at_least_float32

_ROOT = 5
"""The variance of the whole residual counts by its fifth root (section 4.2 of the paper)."""


def artefact_map(sr: Tensor, hr: Tensor, averaged: Tensor, *, window: int = 7) -> Tensor:
    """Return the weight of each pixel (formulas 4 to 7): 0 where `averaged` is further from HR than `sr` is.

    Elsewhere it is the variance of the residual in the window, times the fifth root of its variance over the image. A
    residual is |hr - sr| summed over the colours, as in the authors' code. Variances are unbiased, borders reflected.

    Args:
        sr: (N, C, H, W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        averaged: the same shape: SR of the averaged generator.
        window: odd side of the window.

    Returns:
        (N, 1, H, W), float32 (float64 for float64 images), without gradient.

    Raises:
        ValueError: the window is even, or too large for the images.
    """
    with torch.no_grad():
        sr, hr, averaged = (at_least_float32(each) for each in (sr, hr, averaged))
        residual, of_averaged = ((hr - each).abs().sum(1, keepdim=True) for each in (sr, averaged))
        local = local_deviation(residual, window).square().to(residual.dtype)
        whole = residual.flatten(1).var(1).pow(1 / _ROOT).view(-1, 1, 1, 1)
        return torch.where(residual < of_averaged, 0.0, local * whole)


def locally_discriminative_loss(sr: Tensor, hr: Tensor, averaged: Tensor, *, window: int = 7) -> Tensor:
    """Return the mean of |hr - sr| times the artefact map, a scalar with a gradient to `sr` only.

    The map is a constant to the gradient: otherwise the generator could lower the loss by varying its errors less.

    Args:
        sr: see `artefact_map`.
        hr: see `artefact_map`.
        averaged: see `artefact_map`.
        window: see `artefact_map`.

    Raises:
        ValueError: see `artefact_map`.
    """
    weights = artefact_map(sr, hr, averaged, window=window)
    return (weights * (at_least_float32(hr) - at_least_float32(sr)).abs()).mean()
