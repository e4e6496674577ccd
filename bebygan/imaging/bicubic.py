"""MATLAB's bicubic `imresize` (a = -0.5, antialiased, symmetric borders), which the x4 benchmarks are made with.

`resize` follows the definition for any size; `downscale` is the same numbers for whole factors by torch's native
antialiased kernel: it has a = -0.5 too, and differs only at borders, where it renormalises and MATLAB mirrors.
"""

import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

FloatArray = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]


def _cubic(x: FloatArray) -> FloatArray:
    """Keys' cubic kernel with a = -0.5 (MATLAB `imresize`, function cubic)."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@cache
def _contributions(inputs: int, outputs: int, scale: float) -> FloatArray:
    """Weights (outputs, inputs) of one axis (MATLAB `imresize`, function contributions)."""
    kernel_scale = min(scale, 1.0)
    width = 4.0 / kernel_scale
    centre = (np.arange(outputs) + 0.5) / scale - 0.5
    first = np.floor(centre - width / 2).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic((centre[:, None] - taps) * kernel_scale)
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.concatenate((np.arange(inputs), np.arange(inputs)[::-1]))[taps % (2 * inputs)]
    matrix = np.zeros((outputs, inputs))
    np.add.at(matrix, (np.arange(outputs)[:, None], mirrored), weights)
    return matrix


def resize(images: Tensor, height: int, width: int, scale: float | None = None) -> Tensor:
    """Resize as MATLAB's `imresize(image, [height width], 'bicubic')`.

    Args:
        images: (N, C, H, W), floating point, any range.
        height: rows of the result.
        width: columns of the result.
        scale: the factor that MATLAB was given instead of a size, where the two differ by rounding.

    Returns:
        (N, C, height, width) in the dtype of `images`, not clamped.
    """
    rows = _contributions(images.shape[-2], height, scale or height / images.shape[-2])
    columns = _contributions(images.shape[-1], width, scale or width / images.shape[-1])
    rows_weights = torch.from_numpy(rows).to(images)
    columns_weights = torch.from_numpy(columns).to(images)
    return rows_weights @ images @ columns_weights.T


def downscale(images: Tensor, factor: int) -> Tensor:
    """Shrink by a whole factor as MATLAB's `imresize(image, 1 / factor, 'bicubic')`.

    Args:
        images: (N, C, H, W), floating point, any range; H and W are multiples of `factor`.
        factor: at least 2.

    Returns:
        (N, C, H / factor, W / factor), not clamped; differentiable.

    Raises:
        ValueError: H or W is not a multiple of `factor`.
    """
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"a {height}x{width} image cannot be shrunk by {factor}: crop it to a multiple of {factor}")
    border = 2 * factor
    if min(height, width) < border:
        return resize(images, height // factor, width // factor)
    # F.pad has no symmetric mode (its 'reflect' leaves the edge pixel out), so the mirrored strips are joined by hand.
    images = torch.cat((images[..., :border].flip(-1), images, images[..., -border:].flip(-1)), -1)
    images = torch.cat((images[..., :border, :].flip(-2), images, images[..., -border:, :].flip(-2)), -2)
    padded = F.interpolate(images, scale_factor=1 / factor, mode="bicubic", antialias=True)
    return padded[..., 2:-2, 2:-2]


def downscale_uint8(image: Image, factor: int) -> Image:
    """Shrink an 8-bit image as MATLAB does: rows first, rounded to 8 bits after each of the two passes.

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


def resize_uint8(image: Image, height: int, width: int) -> Image:
    """Resize an 8-bit (H, W, C) image to (height, width, C) as MATLAB does, rounding after each of the two passes."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None].double()
    passes = ((height, planes.shape[-1]), (height, width))
    for rows, columns in passes:
        # MATLAB rounds halves away from zero; values are positive here.
        planes = torch.floor(resize(planes, rows, columns).clamp(0, 255) + 0.5)
    return planes[0].permute(1, 2, 0).to(torch.uint8).numpy()
