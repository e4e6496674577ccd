"""The three public namings of the generator's weights, and files of them.

esrgan: ESRGAN's later code and Simple-SR, as in `Generator`; basicsr: BasicSR and Real-ESRGAN; old-esrgan: ESRGAN's
first release. The tensors are the same in all three.
"""

import re
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from bebygan.errors import WeightsError
from bebygan.files import whole_file
from bebygan.networks.generator import Generator
from bebygan.networks.weights import load_exactly, read_state, refuse_not_finite, safetensors_bytes
from bebygan.settings import GeneratorShape

Naming = Literal["esrgan", "basicsr", "old-esrgan"]
State = Mapping[str, Tensor]
AnyGenerator = TypeVar("AnyGenerator", bound=Generator)

_DENSE: Mapping[Naming, str] = {
    "esrgan": "RRDB_trunk.{}.RDB{}.conv{}",
    "basicsr": "body.{}.rdb{}.conv{}",
    "old-esrgan": "model.1.sub.{}.RDB{}.conv{}.0",
}
"""Layers of the blocks: by number of the block, of the dense block in it (from 1), and of the convolution (from 1)."""
_OTHERS: Mapping[Naming, tuple[str, ...]] = {
    "esrgan": ("conv_first", "trunk_conv", "upconv1", "upconv2", "HRconv", "conv_last"),
    "basicsr": ("conv_first", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"),
    # The first release keeps the trunk's last convolution in one sequence with the blocks: {} is their number.
    "old-esrgan": ("model.0", "model.1.sub.{}", "model.3", "model.6", "model.8", "model.10"),
}
_BLOCK = re.compile(r"(?:RRDB_trunk|body|model\.1\.sub)\.(\d+)\.(?:RDB|rdb)\d\.")


def _blocks(state: State) -> int:
    """Return how many blocks a generator's weights have, in any naming."""
    return max((int(match[1]) + 1 for key in state if (match := _BLOCK.match(key))), default=0)


def _layers(naming: Naming, blocks: int) -> list[str]:
    """Return the names of a generator's layers, in the same order for each naming."""
    numbers = product(range(blocks), (1, 2, 3), (1, 2, 3, 4, 5))
    return [_DENSE[naming].format(*each) for each in numbers] + [name.format(blocks) for name in _OTHERS[naming]]


def _renamed(state: State, source: Naming, target: Naming) -> dict[str, Tensor]:
    """Rename the layers of `source` to those of `target`; unknown keys stay as they are."""
    blocks = _blocks(state)
    names = dict(zip(_layers(source, blocks), _layers(target, blocks), strict=True))
    parts = ((key.rpartition("."), value) for key, value in state.items())
    return {f"{names.get(layer, layer)}{dot}{kind}": value for (layer, dot, kind), value in parts}


def naming_of(state: State) -> Naming:
    """Return the naming that the keys of a generator's weights follow.

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
    return _renamed(state, naming_of(state), "esrgan")


def to_naming(state: State, naming: Naming) -> dict[str, Tensor]:
    """Rename weights with the keys of `Generator` to another naming.

    Raises:
        WeightsError: a key is not one of `Generator`.
    """
    known = set(_layers("esrgan", shape_of(state).blocks))
    for key in state:
        if key.rpartition(".")[0] not in known:
            raise WeightsError(f"{key} is no weight of the generator")
    return _renamed(state, "esrgan", naming)


def shape_of(state: State) -> GeneratorShape:
    """Read a generator's size off its weights, which have the keys of `Generator`.

    Raises:
        WeightsError: a key that determines it is missing.
    """
    required = ("conv_first.weight", "RRDB_trunk.0.RDB1.conv1.weight")
    missing = [key for key in required if key not in state]
    if missing:
        raise WeightsError(f"these are no weights of an RRDB generator: {missing[0]} is missing")
    features, growth = (state[key].shape[0] for key in required)
    return GeneratorShape(blocks=_blocks(state), features=features, growth=growth)


def load_as(kind: type[AnyGenerator], path: Path) -> AnyGenerator:
    """Build a generator of a subclass from a file of weights; see `load_generator`."""
    state = read_state(path)
    try:
        state = to_internal(state)
        shape = shape_of(state)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    generator = kind(shape)
    load_exactly(generator, state, path)
    return generator


def load_generator(path: Path) -> Generator:
    """Build a generator from a file of weights in any of the three namings, on the CPU.

    Args:
        path: .safetensors, or a file that torch.save wrote; see `read_state`.

    Raises:
        WeightsError: the file is missing, damaged, not finite, or holds another architecture; names the file and the
            first key that differs, with both shapes.
    """
    return load_as(Generator, path)


def save_generator(
    generator: Generator, path: Path, naming: Naming = "esrgan", metadata: Mapping[str, str] | None = None
) -> None:
    """Write a generator's weights as safetensors, atomically; equal weights give equal bytes.

    Args:
        generator: on any device, in any memory format.
        path: of the file.
        naming: of the keys.
        metadata: text kept in the file's header.

    Raises:
        WeightsError: the generator contains numbers that are not finite.
        StorageError: the disk is full, over quota or read-only.
    """
    state = {key: value.detach().cpu().contiguous() for key, value in generator.state_dict().items()}
    refuse_not_finite(state, f"the generator for {path}")
    content = safetensors_bytes(to_naming(state, naming), metadata or {})
    with whole_file(path) as temporary:
        temporary.write_bytes(content)
