"""MATLAB's bicubic `imresize` (a = -0.5, antialiased, symmetric borders), which the x4 benchmarks are made with.

`resize` follows the definition for any size, as two matrix products: the fastest way on crops. `downscale` is the same
numbers for whole factors by torch's native antialiased kernel, which stays fast on large images: it has a = -0.5 too,
and differs only at borders, where it renormalises and MATLAB mirrors.
"""

from functools import lru_cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from bebygan.imaging.bicubic_uint8 import taps
from bebygan.precision import full_precision


@lru_cache(maxsize=8)
def _weights(inputs: int, outputs: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the weights of one axis as a matrix (outputs, inputs)."""
    weights, positions = taps(inputs, outputs, scale)
    # A matrix created in inference mode could not be used for training.
    with torch.inference_mode(False):
        matrix = torch.zeros(outputs, inputs, dtype=torch.float64)
        matrix.scatter_add_(1, torch.from_numpy(positions), torch.from_numpy(weights))
        return matrix.to(device, dtype)


class _Product(torch.autograd.Function):
    """rows @ images @ columns.T, with an exact backward: autograd would use the precision of training."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.save_for_backward(rows, columns)
        with full_precision(images.device):
            return rows @ (images @ columns.T)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = ctx.saved_tensors
        with full_precision(gradient.device):
            return rows.T @ gradient @ columns, None, None


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
    like = images.dtype, images.device
    rows = _weights(images.shape[-2], height, scale or height / images.shape[-2], *like)
    columns = _weights(images.shape[-1], width, scale or width / images.shape[-1], *like)
    return cast(Tensor, _Product.apply(images, rows, columns))  # type: ignore[no-untyped-call]


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
