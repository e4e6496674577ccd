"""Sums over the processes of one training, through which gradients flow; alone, a process sums over itself.

All processes take part in each of them, in the same order, with tensors of the same shape.
"""

from typing import Any, cast

import torch
from torch import Tensor, distributed


def processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        # The objective is the sum of all processes' objectives, and each of them depends on these values.
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of the tensors that all processes give, the same on each.

    Its gradient is that of the sum of their objectives, so gradients of weights are to be averaged afterwards where the
    objective is their mean.
    """
    return values if processes() == 1 else cast(Tensor, _Sum.apply(values))  # type: ignore[no-untyped-call]


def mean_over_processes(values: Tensor) -> Tensor:
    """Return the mean of all elements of all processes' tensors, a scalar; see `sum_over_processes`."""
    total: Tensor = sum_over_processes(values.mean())
    return total / processes()
