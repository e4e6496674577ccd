"""Conversion between arrays (H, W, 3), integers, and tensors (N, 3, H, W), float32 RGB in [0, 1]."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bebygan.imaging import Image, Image16


def to_tensor(image: Image | Image16, device: torch.device | None = None) -> Tensor:
    """Return a (1, 3, H, W) float32 tensor in [0, 1].

    Raises:
        ValueError: `image` is not (H, W, 3) uint8 or uint16.
    """
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8 or uint16, got {image.shape} {image.dtype}")
    # A copy in any case: torch warns of arrays that are read-only, such as Pillow's.
    planes = torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))
    return planes[None].to(device).float() / np.iinfo(image.dtype).max


def to_array(tensor: Tensor, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return one image: clamped to [0, 1], times the largest integer, rounded (halves to even, as the official code).

    Args:
        tensor: (1, 3, H, W) or (3, H, W), floating point.
        dtype: np.uint8 or np.uint16.

    Raises:
        ValueError: `tensor` holds more than one image.
    """
    planes = tensor.detach()[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor.detach()
    if planes.ndim != 3:
        raise ValueError(f"one image of shape (1, 3, H, W) or (3, H, W) is needed, got {tuple(tensor.shape)}")
    largest = np.iinfo(np.dtype(dtype)).max
    # One copy in float32, which is changed in place: it is the largest array of a tile.
    values = planes.to(torch.float32, copy=True).clamp_(0, 1).mul_(largest).round_()
    values = values.to(torch.uint8 if largest == 255 else torch.int32)
    return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy().astype(dtype, copy=False))


def to_image(tensor: Tensor) -> Image:
    """Return one 8-bit image; see `to_array`."""
    return to_array(tensor, np.uint8)
