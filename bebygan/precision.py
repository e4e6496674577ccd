"""Arithmetic: the number format that networks compute in, and full float32 where a result would otherwise be noise."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from bebygan.settings import Precision

_log = logging.getLogger(__name__)
_GPU = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
_CPU = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv)  # type: ignore[attr-defined]


@contextmanager
def _fp32_precision(backends: Iterable[Any], precision: str) -> Iterator[None]:
    """Set how torch's backends compute float32 products, process-wide, for the length of the body."""
    before = [(backend, backend.fp32_precision) for backend in backends]
    try:
        for backend, _ in before:
            backend.fp32_precision = precision
        yield
    finally:
        for backend, earlier in before:
            backend.fp32_precision = earlier


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute in the dtype of the operands: no autocast, no TF32 or bfloat16 inside float32 products and convolutions.

    Sets torch's process-wide precision of both for the length of the body.
    """
    with torch.autocast(device_type=device.type, enabled=False), _fp32_precision((*_GPU, *_CPU), "ieee"):
        yield


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return float16 and bfloat16 values as float32, float32 and float64 ones as they are."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def training_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


DTYPES: Mapping[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What networks compute in, by resolved precision."""


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Replace `auto` by the precision that it means on a device."""
    if precision != "auto":
        return precision
    return "bf16" if _computes_bf16(device) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which networks run forward."""
    dtype = DTYPES[resolve(precision, device)]
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def tf32(allowed: bool) -> AbstractContextManager[None]:
    """Return a context in which GPUs may, or must not, round inputs of float32 products and convolutions to TF32.

    `full_precision` stays exact either way.
    """
    return _fp32_precision(_GPU, "tf32" if allowed else "ieee")


def compile_in_place(network: nn.Module) -> None:
    """Compile a network. If that fails, for example without a C++ compiler, warn and run it uncompiled."""
    # torch.compile(network) would put "_orig_mod." before each key of its state.
    network.compile()
    compiled = cast(Callable[..., Tensor], network._compiled_call_impl)

    def call(*inputs: Tensor) -> Tensor:
        # torch compiles during the first pass, so errors appear only here.
        try:
            return compiled(*inputs)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            name = type(network).__name__.lower()
            _log.warning("warning: torch.compile does not work here (%s): the %s runs uncompiled", reason, name)
            network._compiled_call_impl = None
            return cast(Tensor, network(*inputs))

    network._compiled_call_impl = call
