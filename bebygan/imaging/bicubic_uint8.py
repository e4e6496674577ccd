"""MATLAB's bicubic `imresize` of 8-bit images, on numpy alone; `bicubic` holds the same for tensors."""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from bebygan.imaging import Image

FloatArray = npt.NDArray[np.float64]


def _cubic(x: FloatArray) -> FloatArray:
    """Keys' cubic kernel with a = -0.5 (MATLAB `imresize`, function cubic)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@lru_cache(maxsize=64)
def taps(inputs: int, outputs: int, scale: float) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return which inputs make each output of one axis (MATLAB `imresize`, function contributions).

    Returns:
        Weights (outputs, taps), each row of sum 1, and the positions (outputs, taps) that they belong to; beyond the
        border positions are mirrored.
    """
    kernel_scale = min(scale, 1.0)
    width = 4.0 / kernel_scale
    centre = (np.arange(outputs) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64)
    positions = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic((centre[:, None] - positions) * kernel_scale)
    weights /= weights.sum(axis=1, keepdims=True)
    used = (weights != 0).any(axis=0)
    mirrored = np.concatenate((np.arange(inputs), np.arange(inputs)[::-1]))[positions % (2 * inputs)]
    return weights[:, used], mirrored[:, used]


def _resize_rows(values: npt.NDArray[np.generic], rows: int) -> Image:
    """Resize the first axis and round to 8 bits; MATLAB rounds halves away from zero."""
    weights, positions = taps(values.shape[0], rows, rows / values.shape[0])
    result = np.zeros((rows, *values.shape[1:]))
    for weight, position in zip(weights.T, positions.T, strict=True):
        result += weight[:, None, None] * values[position]
    return np.floor(np.clip(result, 0, 255) + 0.5).astype(np.uint8)


def resize_uint8(image: Image, height: int, width: int) -> Image:
    """Resize an 8-bit image as MATLAB does: rows first, rounded to 8 bits after each of the two passes.

    Args:
        image: (H, W, C).
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width, C).
    """
    columns_first = _resize_rows(image, height).transpose(1, 0, 2)
    return np.ascontiguousarray(_resize_rows(columns_first, width).transpose(1, 0, 2))


def upscale_uint8(image: Image, factor: int) -> Image:
    """Enlarge an 8-bit image (H, W, C) by a whole factor as MATLAB's `imresize(image, factor)`."""
    return resize_uint8(image, image.shape[0] * factor, image.shape[1] * factor)


def downscale_uint8(image: Image, factor: int) -> Image:
    """Shrink an 8-bit image by a whole factor as MATLAB's `imresize(image, 1 / factor)`.

    Args:
        image: (H, W, C); H and W are multiples of `factor`.
        factor: at least 2.

    Returns:
        (H / factor, W / factor, C).

    Raises:
        ValueError: H or W is not a multiple of `factor`.
    """
    height, width = image.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"a {height}x{width} image cannot be shrunk by {factor}: crop it to a multiple of {factor}")
    return resize_uint8(image, height // factor, width // factor)
