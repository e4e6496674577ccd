"""The three public namings of the generator's weights, and files of them.

esrgan: ESRGAN's later code and Simple-SR, as in `Generator`; basicsr: BasicSR and Real-ESRGAN; old-esrgan: ESRGAN's
first release. The tensors are the same in all three.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor

from bebygan.errors import WeightsError
from bebygan.files import whole_file
from bebygan.networks.generator import Generator
from bebygan.networks.weights import load_exactly, read_state, safetensors_bytes
from bebygan.settings import GeneratorShape

Naming = Literal["esrgan", "basicsr", "old-esrgan"]
State = Mapping[str, Tensor]

_BASICSR = {
    "conv_first": "conv_first",
    "trunk_conv": "conv_body",
    "upconv1": "conv_up1",
    "upconv2": "conv_up2",
    "HRconv": "conv_hr",
    "conv_last": "conv_last",
}
_OLD_ESRGAN = {
    "conv_first": "model.0",
    "upconv1": "model.3",
    "upconv2": "model.6",
    "HRconv": "model.8",
    "conv_last": "model.10",
}
_INTERNAL_BLOCK = re.compile(r"RRDB_trunk\.(\d+)\.RDB(\d)\.conv(\d)\.(weight|bias)")
_BASICSR_BLOCK = re.compile(r"body\.(\d+)\.rdb(\d)\.conv(\d)\.(weight|bias)")
_OLD_BLOCK = re.compile(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(weight|bias)")
_OLD_TRUNK = re.compile(r"model\.1\.sub\.\d+\.(weight|bias)")


def naming_of(state: State) -> Naming:
    """Tell which naming the keys of a generator follow.

    Raises:
        WeightsError: none of the three.
    """
    if "trunk_conv.weight" in state:
        return "esrgan"
    if "conv_body.weight" in state:
        return "basicsr"
    if "model.0.weight" in state:
        return "old-esrgan"
    first = next(iter(state), "nothing")
    raise WeightsError(f"these are no weights of an RRDB generator in a known naming: the first key is {first}")


def to_internal(state: State) -> dict[str, Tensor]:
    """Rename a generator's weights from any of the namings to that of `Generator`; unknown keys stay as they are.

    Raises:
        WeightsError: see `naming_of`.
    """
    naming = naming_of(state)
    return {_internal_key(key, naming): value for key, value in state.items()}


def _internal_key(key: str, naming: Naming) -> str:
    if naming == "esrgan":
        return key
    pattern, outer = (_BASICSR_BLOCK, _BASICSR) if naming == "basicsr" else (_OLD_BLOCK, _OLD_ESRGAN)
    if match := pattern.fullmatch(key):
        block, dense, conv, kind = match.groups()
        return f"RRDB_trunk.{block}.RDB{dense}.conv{conv}.{kind}"
    if naming == "old-esrgan" and (match := _OLD_TRUNK.fullmatch(key)):
        return f"trunk_conv.{match[1]}"
    layer, _, kind = key.rpartition(".")
    inner = {theirs: ours for ours, theirs in outer.items()}
    return f"{inner[layer]}.{kind}" if layer in inner else key


def to_naming(state: State, naming: Naming) -> dict[str, Tensor]:
    """Rename weights with the keys of `Generator` to another naming.

    Raises:
        WeightsError: a key is not one of `Generator`.
    """
    blocks = shape_of(state).blocks
    return {_public_key(key, naming, blocks): value for key, value in state.items()}


def _public_key(key: str, naming: Naming, blocks: int) -> str:
    match = _INTERNAL_BLOCK.fullmatch(key)
    layer, _, kind = key.rpartition(".")
    if not match and layer not in _BASICSR:
        raise WeightsError(f"{key} is no weight of the generator")
    if naming == "esrgan":
        return key
    if match:
        block, dense, conv, kind = match.groups()
        return (
            f"body.{block}.rdb{dense}.conv{conv}.{kind}"
            if naming == "basicsr"
            else f"model.1.sub.{block}.RDB{dense}.conv{conv}.0.{kind}"
        )
    if naming == "basicsr":
        return f"{_BASICSR[layer]}.{kind}"
    # The first release keeps the trunk's last convolution in one sequence with the blocks.
    return f"{_OLD_ESRGAN.get(layer, f'model.1.sub.{blocks}')}.{kind}"


def shape_of(state: State) -> GeneratorShape:
    """Read a generator's size off its weights, which have the keys of `Generator`.

    Raises:
        WeightsError: a key that tells it is missing.
    """
    blocks = {int(match[1]) for key in state if (match := _INTERNAL_BLOCK.fullmatch(key))}
    telling = ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight")
    missing = [key for key in telling if key not in state]
    if missing:
        raise WeightsError(f"these are no weights of an RRDB generator: {missing[0]} is missing")
    features, growth = (state[key].shape[0] for key in telling)
    return GeneratorShape(blocks=max(blocks) + 1, features=features, growth=growth)


def load_generator(path: Path) -> Generator:
    """Build a generator of the size that its file of weights tells, in any of the three namings, on the CPU.

    Args:
        path: .safetensors, or a file that torch.save wrote; see `read_state`.

    Raises:
        WeightsError: the file is missing, damaged, or holds another architecture; names the file and the first key
            that differs, with both shapes.
    """
    state = read_state(path)
    try:
        state = to_internal(state)
        shape = shape_of(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    generator = Generator(shape)
    load_exactly(generator, state, path)
    return generator


def save_generator(
    generator: Generator, path: Path, naming: Naming = "esrgan", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a generator's weights as safetensors, whole or not at all; the same weights are the same bytes.

    Args:
        generator: on any device, in any memory format.
        path: of the file.
        naming: of the keys.
        metadata: text kept in the file's header.

    Raises:
        StorageError: the disk is full, over quota or read-only.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()}
    content = safetensors_bytes(to_naming(state, naming), metadata or {})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
