"""The file of pretrained weights that `benchmarks.gpu` takes to a machine without a network: below 60 MB.

Weights of two or more dimensions are stored as float16, which is how the generator is published; the others as float32.
The high bytes of float16 weights compress well and the low ones do not, so they are stored apart.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bebygan.losses.objective import Perceptual
from bebygan.metrics.perceptual import Lpips
from bebygan.networks.architecture import vgg_layers
from bebygan.networks.generator import Generator
from bebygan.networks.naming import shape_of
from bebygan.networks.perceptual import AlexNet, Vgg

NAMES = ("realsr-df2k-x4", "vgg16", "alexnet", "lpips-alex")
"""Weights in the bundle; see `bebygan.pretrained`."""
MOST_MEGABYTES = 60
States = dict[str, dict[str, Tensor]]


def pack(states: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """Write the weights of networks, by name, into one compressed file."""
    arrays: dict[str, Any] = {}
    for name, state in states.items():
        for key, tensor in state.items():
            if tensor.ndim < 2:
                arrays[f"{name}/{key}"] = tensor.float().numpy()
                continue
            pairs = np.ascontiguousarray(tensor.half().numpy()).view(np.uint8).reshape(*tensor.shape, 2)
            arrays[f"{name}/{key}/low"], arrays[f"{name}/{key}/high"] = pairs[..., 0], pairs[..., 1]
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def unpack(path: Path) -> States:
    """Return the weights of each network, float32, as `pack` wrote them."""
    states: States = {}
    with np.load(path, allow_pickle=False) as arrays:
        for stored in arrays.files:
            name, key, *byte = stored.split("/")
            if byte == ["high"]:
                continue
            array = arrays[stored]
            if byte:
                array = np.stack((array, arrays[f"{name}/{key}/high"]), -1).view(np.float16)[..., 0].astype(np.float32)
            states.setdefault(name, {})[key] = torch.from_numpy(array)
    return states


def generator_of(states: States) -> Generator:
    """Return the generator that adaptation starts from."""
    state = states["realsr-df2k-x4"]
    generator = Generator(shape_of(state))
    generator.load_state_dict(state)
    return generator


def perceptual_of(states: States, taps: Mapping[str, float], device: torch.device) -> Perceptual:
    """Return the network of the perceptual loss, up to the last convolution that the bundle holds."""
    state = states["vgg16"]
    names = {index: name for name, index in vgg_layers("vgg16").items()}
    vgg = Vgg("vgg16", names[max(int(key.split(".")[1]) for key in state)])
    vgg.load_state_dict(state)
    return Perceptual(vgg.to(device), taps)


def lpips_of(states: States, device: torch.device) -> Lpips:
    """Return LPIPS with AlexNet."""
    trunk = AlexNet()
    trunk.load_state_dict(states["alexnet"])
    return Lpips(trunk, list(states["lpips-alex"].values())).eval().to(device)
