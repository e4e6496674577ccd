"""Conversion between arrays (H, W, 3), uint8 RGB, and tensors (N, 3, H, W), float32 RGB in [0, 1]."""

import numpy as np
import torch
from torch import Tensor

from bebygan.imaging import Image


def to_tensor(image: Image, device: torch.device | None = None) -> Tensor:
    """Return a (1, 3, H, W) float32 tensor in [0, 1].

    Raises:
        ValueError: `image` is not (H, W, 3) uint8.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return planes[None].to(device).float() / 255


def to_image(tensor: Tensor) -> Image:
    """Return one image: clamped to [0, 1], times 255, rounded (halves to even, as the official code).

    Args:
        tensor: (1, 3, H, W) or (3, H, W), floating point.

    Raises:
        ValueError: `tensor` holds more than one image.
    """
    planes = tensor.detach()[0] if tensor.ndim == 4 and tensor.shape[0] == 1 else tensor.detach()
    if planes.ndim != 3:
        raise ValueError(f"one image of shape (1, 3, H, W) or (3, H, W) is needed, got {tuple(tensor.shape)}")
    values = (planes.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())
