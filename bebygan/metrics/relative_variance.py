"""Artefacts of a generator, found without the original: where it varies much more than another one.

After DeSRA (arXiv 2307.02457): artefacts of GANs are places whose local variance is out of proportion to that of a
generator that is known to have none there.
"""

import numpy as np
import numpy.typing as npt
import torch

from bebygan.imaging import Image
from bebygan.imaging.convert import to_tensor
from bebygan.losses.region_aware import local_deviation

_WINDOW = 7
_STABLE = 2e-4
"""Added to variances in [0, 1]: below a deviation of 3.6 of 255, noise cannot be told from structure."""
_DISSIMILAR = 0.5
"""Of 1 - similarity: the deviation is at least 3.7 times that of the reference."""


def artefact_map(sr: Image, reference: Image) -> npt.NDArray[np.bool_]:
    """Return (H, W), True where SR varies out of proportion to a reference.

    Args:
        sr: (H, W, 3) uint8 RGB; both sides at least 4.
        reference: the same photograph, upscaled by the generator that SR's was trained from.

    Raises:
        ValueError: the shapes differ, or a side is too small.
    """
    if sr.shape != reference.shape:
        raise ValueError(f"SR of {sr.shape} and a reference of {reference.shape} must have one shape")
    planes = torch.cat([to_tensor(image) for image in (sr, reference)]).flatten(0, 1)[:, None]
    ours, theirs = local_deviation(planes, _WINDOW)[:, 0].chunk(2)
    similarity = (2 * ours * theirs + _STABLE) / (ours.square() + theirs.square() + _STABLE)
    found: npt.NDArray[np.bool_] = ((ours > theirs) & (1 - similarity > _DISSIMILAR)).any(0).numpy()
    return found


def artefacts(sr: Image, reference: Image) -> float:
    """Return the share of the pixels in [0, 1] that `artefact_map` marks, lower is better; it needs no original."""
    return float(artefact_map(sr, reference).mean())
