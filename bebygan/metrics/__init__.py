"""Metrics of super-resolved images. `PROTOCOL` defines each of them.

Each metric takes two images (H, W, 3), uint8 RGB, and returns a number; or two batches (N, 3, H, W), RGB in [0, 1],
which it rounds to 8 bits, and returns a tensor (N,), float64 on the CPU. Both give the same values.
"""

from typing import TYPE_CHECKING

from bebygan.lazy import lazy_names
from bebygan.metrics.protocol import PROTOCOL

if TYPE_CHECKING:
    from bebygan.metrics.fidelity import lr_psnr, psnr_y, ssim_y
    from bebygan.metrics.perceptual import Lpips, dists, load_lpips, lpips
    from bebygan.metrics.relative_variance import artefact_map, artefacts

__all__ = [
    "PROTOCOL",
    "Lpips",
    "artefact_map",
    "artefacts",
    "dists",
    "load_lpips",
    "lpips",
    "lr_psnr",
    "psnr_y",
    "ssim_y",
]
__getattr__, __dir__ = lazy_names(__name__, __all__, ["fidelity", "perceptual", "relative_variance"])
