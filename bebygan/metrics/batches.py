"""Metrics of two images made to take two batches of images as well."""

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, cast, overload

import numpy as np
import torch
from torch import Tensor

from bebygan.imaging import Image
from bebygan.imaging.convert import to_image

P = ParamSpec("P")


class Metric(Protocol[P]):
    """A metric of SR and a reference, HR or LR; see `bebygan.metrics`."""

    @overload
    def __call__(self, sr: Image, reference: Image, /, *args: P.args, **kwargs: P.kwargs) -> float: ...
    @overload
    def __call__(self, sr: Tensor, reference: Tensor, /, *args: P.args, **kwargs: P.kwargs) -> Tensor: ...


def metric(measure: Callable[Concatenate[Image, Image, P], float]) -> Metric[P]:
    """Let a function of two images (H, W, 3) uint8 take two batches (N, 3, H, W) in [0, 1] as well.

    It then raises ValueError for anything else.
    """

    @wraps(measure)
    def either(sr: Any, reference: Any, *args: P.args, **kwargs: P.kwargs) -> float | Tensor:
        pair = (sr, reference)
        if all(isinstance(each, np.ndarray) and each.dtype == np.uint8 and each.shape[2:] == (3,) for each in pair):
            return measure(sr, reference, *args, **kwargs)
        if not all(isinstance(each, Tensor) and each.ndim == 4 and each.shape[:2] == (len(sr), 3) for each in pair):
            kinds = " and ".join(f"{getattr(each, 'dtype', type(each))} {[*np.shape(each)]}" for each in pair)
            raise ValueError(
                f"metrics take two uint8 images (H, W, 3) or two batches (N, 3, H, W) in [0, 1], got {kinds}"
            )
        values = [measure(to_image(a), to_image(b), *args, **kwargs) for a, b in zip(sr, reference, strict=True)]
        return torch.tensor(values, dtype=torch.float64)

    return cast(Metric[P], either)
