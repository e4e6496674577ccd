"""Training in several processes, one per GPU or, without GPUs, any number; `torchrun` starts them.

All processes call each of these functions, in the same order, with tensors of the same shape. A process that trains
alone is its own sum and mean.

Gradients are averaged explicitly after both backward passes, not by DistributedDataParallel: its hooks expect one
backward pass through all of a wrapped network, while here generator and discriminator share one graph, of which each
takes the gradient of its own objective. One reduction of 67 MB at the paper's scale takes about a millisecond between
GPUs of a machine, and the keys of checkpoints stay those of one process.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, distributed
from torch._compile import _disable_dynamo

from bebygan.errors import ConfigError, Preempted, ServiceError

_LONGEST_WAIT = timedelta(minutes=10)
"""For a process that hangs. The others notice at once when one ends, because its connections close."""
GPUS = "BEBYGAN_GPUS"
"""Environment variable: how many GPUs this machine must have. Without it a machine without GPUs uses its CPU."""


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


# torch.compiler.disable imports the compiler, which takes a second; this imports it at the first call.
@_disable_dynamo
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


def _take_gpu() -> bool:
    """Make this process's GPU the current one; False where the machine has none."""
    gpus, asked = torch.cuda.device_count(), int(os.environ.get(GPUS, "0"))
    if gpus < asked:
        raise ConfigError(
            f"{asked} GPUs were requested and {gpus} are visible: check node, driver and image, or request fewer"
        )
    if not gpus:
        return False
    wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus < wanted:
        raise ConfigError(
            f"{wanted} processes were requested on a machine with {gpus} GPUs: "
            "lower --nproc-per-node, or make more GPUs visible (CUDA_VISIBLE_DEVICES)"
        )
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return True


def _of_the_network(error: RuntimeError) -> bool:
    # Only the text of gloo's errors identifies them.
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


@contextmanager
def joined() -> Iterator[None]:
    """Join the processes that torchrun started, for the length of the body; do nothing without torchrun.

    torchrun's environment is read: WORLD_SIZE, RANK, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Raises:
        ConfigError: this machine has fewer GPUs than processes, or than `GPUS` asks for.
        ServiceError: the processes cannot reach each other.
        Preempted: one of them ended or lost its network; see its own messages.
    """
    on_gpus = _take_gpu()
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    try:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=_LONGEST_WAIT)
        if on_gpus:
            # NCCL connects at the first use. Its failure here is permanent; later it would look like a lost process.
            distributed.all_reduce(torch.zeros(1, device="cuda"))
    except (RuntimeError, ValueError) as error:
        if isinstance(error, RuntimeError) and not _of_the_network(error):
            raise
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise ServiceError(
            f"the processes of the training cannot connect at {place} ({_first_line(error)}): "
            "check that the port is free and reachable from all of them; between GPUs NCCL_DEBUG=INFO prints more"
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not _of_the_network(error):
            raise
        # The other processes see a lost machine, such as a spot machine, as this error.
        raise Preempted(
            f"another process of the training ended or lost its network ({_first_line(error)}): its own messages say "
            "why; run again to continue from the last checkpoint"
        ) from error
    # Not after an error: the other processes may be gone, and this would wait for them.
    distributed.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__


def share_of(batch: int, accumulate: int) -> int:
    """Return the samples of a batch that each process computes.

    Raises:
        ConfigError: the batch cannot be divided among the processes, or a share into `accumulate` parts.
    """
    share, rest = divmod(batch, processes())
    if rest or share % accumulate:
        raise ConfigError(
            f"a batch of {batch} cannot be divided among {processes()} processes in {accumulate} parts each: "
            f"choose a multiple of {processes() * accumulate}"
        )
    return share


@torch.no_grad()
def average_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type and device by their means over all processes, in place, in one reduction."""
    if processes() == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= processes()
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Replace tensors by those of the first process, in place."""
    if processes() > 1:
        for tensor in tensors:
            # NCCL takes none in channels_last order.
            whole = tensor.contiguous()
            distributed.broadcast(whole, 0)
            tensor.copy_(whole)


def any_process(yes: bool) -> bool:
    """Return on all processes whether any of them passed True. Waits for the other hosts, not for a GPU."""
    if processes() == 1:
        return yes
    answer = torch.tensor(int(yes))
    distributed.all_reduce(answer, distributed.ReduceOp.MAX)
    return bool(answer)


def wait_for_all() -> None:
    """Return once every process has called this."""
    any_process(False)
