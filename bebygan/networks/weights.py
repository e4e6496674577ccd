"""Files of network weights: reading them, and loading them with a check of every key and shape."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bebygan.errors import WeightsError

_NESTED_UNDER = (
    "params_ema", "params-ema", "g_ema", "generator_ema", "params", "state_dict", "model_state_dict", "netG", "net_g",
    "net", "generator", "model",
)  # fmt: skip
"""Where public checkpoints keep their weights; the averaged ones are the ones that were published."""
_OF_GENERATORS = ("generator_ema.", "g_ema.", "netG.", "net_g.", "generator.")
"""Starts of keys in checkpoints of several networks; the other networks are left out."""
_WRAPPERS = ("module.", "_orig_mod.", "net.", "model.")
"""Starts of all keys, from torch's DistributedDataParallel, torch.compile, and classes around a network."""
_OLD_ESRGAN = re.compile(r"model\.\d")
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


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the tensors in a checkpoint by the names that the network itself gives them.

    Raises:
        WeightsError: there is no mapping of names to tensors.
    """
    while nested := [
        name for name in _NESTED_UNDER if isinstance(content, dict) and isinstance(content.get(name), dict)
    ]:
        content = content[nested[0]]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} holds no mapping of names to tensors: it is no file of weights")
    tensors = {str(name): value for name, value in content.items()}
    while True:
        starts = [start for start in _OF_GENERATORS if any(name.startswith(start) for name in tensors)]
        starts += [start for start in _WRAPPERS if all(name.startswith(start) for name in tensors)]
        # ESRGAN's first release calls its network so.
        if not starts or all(_OLD_ESRGAN.match(name) for name in tensors):
            return tensors
        start = starts[0]
        tensors = {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is to be read as safetensors: by its content, and by its name if that is unknown."""
    with path.open("rb") as file:
        start = file.read(9)
    header = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and header <= path.stat().st_size:
        return True
    return path.suffix == ".safetensors" and not start.startswith((b"PK", b"\x80"))


def _read_pickled(path: Path) -> Any:
    # Of a path torch looks at the ending.
    with path.open("rb") as file:
        return torch.load(file, "cpu", weights_only=True)


def _no_weights(path: Path) -> str | None:
    """Return what a file is that is no file of weights, or None if that is unknown."""
    with path.open("rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run `git lfs pull`"
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: download the file itself"
    return None if start else "it is empty"


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, or of a file that torch.save wrote; the content tells which it is.

    The former is compared with the digest that this project writes into it. The latter is read without running code
    from it. Checkpoints of other projects are unwrapped: of several networks the generator is taken, of several
    generators the averaged one.

    Raises:
        WeightsError: the file is missing, damaged, holds no mapping of names to tensors, or holds numbers that are not
            finite.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: fetch them or correct the path")
    try:
        content: Any = _read_safetensors(path) if _is_safetensors(path) else _read_pickled(path)
    except Exception as error:
        # Parsers of damaged files raise exceptions of any type.
        reason = _no_weights(path) or " ".join(str(error).split())[:200] or type(error).__name__
        if "weights_only" in reason:
            # torch advises to load the file without this protection.
            reason = "it is damaged, or holds more than tensors"
        raise WeightsError(f"{path} cannot be read as weights ({reason}): fetch it again or convert it") from error
    tensors = _unwrapped(content, path)
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
