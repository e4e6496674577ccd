"""Files of network weights: reading them, and loading them with a check of every key and shape."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bebygan.errors import WeightsError

_NESTED_UNDER = ("params_ema", "params", "state_dict")
"""Where public checkpoints keep their weights; the averaged ones are the ones that were published."""
_SEAL = "digest"
"""Metadata of the files that `safetensors_bytes` writes: the SHA-256 of tensors and other metadata."""
_WRITER = {"written_by": "bebygan"}
"""More metadata of these files: with it, a file whose digest has lost its name is damaged, too."""


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        kind = tensor.numpy().dtype.str if tensor.dtype != torch.bfloat16 else "bfloat16"
        state.update(f"{name} {kind} {tuple(tensor.shape)}\n".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return state.hexdigest()


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise a WeightsError with `where` and the first key whose tensor contains NaN or an infinite number."""
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{where}: {name} contains NaN or infinite numbers: use weights of another training")


def _seal(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    facts = json.dumps([digest(tensors), sorted(metadata.items())])
    return hashlib.sha256(facts.encode()).hexdigest()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    expected = metadata.pop(_SEAL, None)
    if (expected or _WRITER.items() <= metadata.items()) and _seal(tensors, metadata) != expected:
        raise ValueError("its content differs from the digest in it")
    return tensors


def metadata_of(path: Path) -> dict[str, str]:
    """Return the text that a readable .safetensors file holds beside its tensors, without its digest."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    return {name: text for name, text in metadata.items() if name != _SEAL and name not in _WRITER}


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or, from any other ending, of a file that torch.save wrote.

    The former is compared with the digest that this project writes into it. The latter is read without running code
    from it; weights nested under params_ema, params or state_dict are found.

    Raises:
        WeightsError: the file is missing, damaged, holds no mapping of names to tensors, or holds numbers that are not
            finite.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: fetch them or correct the path")
    try:
        safe = path.suffix == ".safetensors"
        content: Any = _read_safetensors(path) if safe else torch.load(path, "cpu", weights_only=True)
    except Exception as error:
        # Parsers of damaged files raise exceptions of any type.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "weights_only" in str(error):
            # torch advises to load the file without this protection.
            reason = "it is damaged, or holds more than tensors"
        raise WeightsError(f"{path} cannot be read as weights ({reason}): fetch it again or convert it") from error
    for name in _NESTED_UNDER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no mapping of names to tensors: it is no file of weights")
    tensors = {str(name).removeprefix("module."): value for name, value in content.items()}
    refuse_not_finite(tensors, str(path))
    return tensors


def load_exactly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state`, read from `path`, into `network`; its keys and shapes must be the network's, no more and no less.

    Raises:
        WeightsError: names the first key that is missing, has another shape, or is left over.
    """
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    for key, shape in wanted.items():
        if key not in state:
            raise WeightsError(f"{path} has no {key} {shape}: it belongs to another architecture")
        if tuple(state[key].shape) != shape:
            raise WeightsError(f"{path}: {key} has shape {tuple(state[key].shape)}, the network has {shape}")
    for key, value in state.items():
        if key not in wanted:
            raise WeightsError(f"{path} has {key} {tuple(value.shape)}, which the network does not have")
    network.load_state_dict(state)


def safetensors_bytes(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file, the same for the same tensors and metadata.

    The metadata get a digest of the content, which `read_state` verifies. The library writes metadata in another order
    each time, so the header (8 bytes of length, then JSON) is sorted.
    """
    metadata = {**metadata, **_WRITER}
    metadata[_SEAL] = _seal(state, metadata)
    content = save(dict(state), metadata)
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]
