"""Arithmetic of the networks: which number format, on which device."""

from contextlib import AbstractContextManager, nullcontext

import torch

from bebygan.settings import Precision


def training_device() -> torch.device:
    """Return the GPU of this process if there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def resolve(precision: Precision, device: torch.device) -> Precision:
    """Say what `auto` means on a device; leave the rest as it is."""
    if precision != "auto":
        return precision
    return "bf16" if _computes_bf16(device) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which networks run forward."""
    if resolve(precision, device) == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
