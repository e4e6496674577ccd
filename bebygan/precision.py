"""Full float32 where a result would turn to noise without it, whatever precision the caller trains in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the dtype of the operands: no autocast, no TF32 or bfloat16 inside float32 products and convolutions.

    Sets torch's process-wide precision of both for the length of the body and puts it back.
    """
    backends = (
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    with torch.autocast(device_type=device.type, enabled=False):
        try:
            for backend in backends:
                backend.fp32_precision = "ieee"
            yield
        finally:
            for backend, precision in zip(backends, before, strict=True):
                backend.fp32_precision = precision


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 values as float32, float32 and float64 ones as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
