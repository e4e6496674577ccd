"""Luma as MATLAB's `rgb2ycbcr` gives it: ITU-R BT.601 in studio range, which the x4 benchmarks are measured on."""

import numpy as np
import numpy.typing as npt

from bebygan.imaging import Image

FloatArray = npt.NDArray[np.float64]

_WEIGHTS = np.array([65.481, 128.553, 24.966])
_BLACK = 16.0


def luma(image: Image) -> FloatArray:
    """Return Y of an 8-bit image, not rounded.

    Args:
        image: (H, W, 3), RGB.

    Returns:
        (H, W), float64, in [16, 235].
    """
    return _BLACK + image @ (_WEIGHTS / 255)
