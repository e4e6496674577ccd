"""Batch norm over the batches of all processes that train together."""

from typing import cast

import torch
from torch import Tensor, nn

from bebygan.distributed import processes, rank, sum_over_processes
from bebygan.precision import at_least_float32


class BatchNorm(nn.BatchNorm2d):
    """`BatchNorm2d` with the statistics of the whole batch, of which several processes hold parts of equal size.

    Unlike torch's SyncBatchNorm it also runs on CPUs. A single process runs torch's `BatchNorm2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, H, W) and, while training, move the running statistics."""
        if not self.training or processes() == 1:
            return super().forward(input)
        x = at_least_float32(input)
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        # One row per process, zero except its own: one sum gives all rows to all processes, and their gradients back.
        own_row = (torch.arange(processes(), device=x.device) == rank()).to(x.dtype)
        table = sum_over_processes(own_row[:, None, None] * torch.stack((variance, mean)))
        variances, means = table.unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        self._follow(mean.detach(), variance.detach(), x.numel() // x.shape[1] * processes())
        scale = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * scale
        normalised: Tensor = x * scale[:, None, None] + shift[:, None, None]
        return normalised.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics towards those of a batch with `count` values per channel."""
        unbiased = variance * (count / (count - 1))
        for running, value in ((self.running_mean, mean), (self.running_var, unbiased)):
            cast(Tensor, running).lerp_(value, cast(float, self.momentum))
        cast(Tensor, self.num_batches_tracked).add_(1)
