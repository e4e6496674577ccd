"""AESOP's auto-encoded fidelity (Lee et al., CVPR 2025, arXiv 2412.00124): L1 of what an auto-encoder keeps.

L1 of the pixels pulls a generator towards the mean of all plausible textures. An auto-encoder that was trained with L1
does not keep those, so L1 of its results pulls towards HR only where the LR image determines what HR is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.precision import at_least_float32


def auto_encoded_loss(sr: Tensor, hr: Tensor, auto_encoder: AutoEncoder) -> Tensor:
    """Return mean |AE(sr) - AE(hr)|, a scalar with a gradient to `sr` only.

    Args:
        sr: (N, 3, 4H, 4W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        auto_encoder: frozen; see `bebygan.networks.load_auto_encoder`.
    """
    with torch.no_grad():
        expected = auto_encoder(hr)
    return F.l1_loss(at_least_float32(auto_encoder(sr)), at_least_float32(expected))
