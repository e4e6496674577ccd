"""The back-projection loss (arXiv 2103.15295 section 3.2): shrunk again, SR must be the LR image it came from."""

import torch.nn.functional as F
from torch import Tensor

from bebygan.imaging.bicubic import resize
from bebygan.precision import at_least_float32, full_precision


def back_projection_loss(sr: Tensor, lr: Tensor, scale: int = 4) -> Tensor:
    """Return mean |bicubic(sr, 1 / scale) - lr|, a scalar, with MATLAB's antialiased bicubic.

    Args:
        sr: (N, C, scale * H, scale * W), not clamped.
        lr: (N, C, H, W), in [0, 1].
        scale: whole factor between the two.

    Raises:
        ValueError: the shapes do not differ by `scale`.
    """
    if sr.shape[-2:] != (lr.shape[-2] * scale, lr.shape[-1] * scale):
        raise ValueError(f"SR of {tuple(sr.shape[-2:])} is not {scale} times LR of {tuple(lr.shape[-2:])}")
    with full_precision(sr.device):
        return F.l1_loss(resize(at_least_float32(sr), *lr.shape[-2:]), at_least_float32(lr))
