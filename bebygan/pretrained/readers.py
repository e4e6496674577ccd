"""Readers of the formats that public archives use for weights: pickles of arrays (flax) and ncnn's .bin."""

import pickle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bebygan.errors import WeightsError

Shapes = dict[str, tuple[int, ...]]
NCNN_HALF_PRECISION = 0x01306B47


class _ArraysOnly(pickle.Unpickler):
    """Unpickles mappings of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        }
        if (module, name) not in allowed:
            raise WeightsError(f"a pickle of weights asks for {module}.{name}, which is no array: it is refused")
        return allowed[module, name]


def read_pickled_arrays(path: Path) -> Any:
    """Unpickle nested mappings of numpy arrays.

    Raises:
        WeightsError: the pickle holds, or calls, anything but arrays, or is damaged.
    """
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file).load()
    except WeightsError:
        raise
    except Exception as error:
        # Damaged pickles raise nearly any exception.
        raise WeightsError(f"a pickle of weights is damaged: {error}") from error


def read_flax(path: Path, shapes: Shapes, network: str) -> dict[str, Tensor]:
    """Read the convolutions of a flax network from a pickle.

    Args:
        path: a pickle of {network: {"Conv_0": {"kernel": array, "bias": array}, "Conv_1": ...}}.
        shapes: the torch network's tensors, weight and bias of each convolution in the order of the forward pass.
        network: name of the network in the pickle.

    Raises:
        WeightsError: the pickle is damaged or holds anything but arrays.
    """
    layers = read_pickled_arrays(path)[network]
    tensors = {}
    for index, name in enumerate(shapes):
        layer = layers[f"Conv_{index // 2}"]
        # flax orders a kernel's axes as height, width, inputs, outputs.
        array = layer["kernel"].transpose(3, 2, 0, 1) if name.endswith("weight") else layer["bias"]
        tensors[name] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4


def read_ncnn(path: Path, shapes: Shapes) -> dict[str, Tensor]:
    """Read a network of convolutions from an ncnn .bin.

    The file stores the layers in the order of the forward pass. Each convolution has a tag, the half-precision weights
    padded to four bytes, and the single-precision bias.

    Args:
        path: the file.
        shapes: the network's tensors in the order of the forward pass.

    Raises:
        WeightsError: the file has another size or another number format.
    """
    content = path.read_bytes()
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    needed = sum(4 + _padded(2 * size) if name.endswith("weight") else 4 * size for name, size in sizes.items())
    if len(content) != needed:
        raise WeightsError(f"the ncnn file has {len(content)} bytes, the network needs {needed}")
    tensors = {}
    position = 0
    for name, size in sizes.items():
        if name.endswith("weight"):
            if int.from_bytes(content[position : position + 4], "little") != NCNN_HALF_PRECISION:
                raise WeightsError(f"the ncnn file does not hold half-precision weights where {name} should be")
            values = np.frombuffer(content, "<f2", size, position + 4)
            position += 4 + _padded(2 * size)
        else:
            values = np.frombuffer(content, "<f4", size, position)
            position += 4 * size
        tensors[name] = torch.from_numpy(values.astype(np.float32)).reshape(shapes[name])
    return tensors
