"""Frozen ImageNet networks for a loss or metric: VGG16 and VGG19, and AlexNet's convolutions.

Built from safetensors files whose keys are torchvision's: `features.0.weight`, `features.0.bias`, ...
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.networks.architecture import VggName, vgg_layers
from bebygan.networks.weights import load_exactly, read_state

_CHANNELS = (64, 128, 256, 512, 512)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class Vgg(nn.Module):
    """The convolutions of VGG16 or VGG19 (arXiv 1409.1556), frozen; gives features before ReLU.

    Args:
        network: which of the two.
        last: name of the last convolution to keep, such as "conv5_4"; those behind it are not built.

    Raises:
        ValueError: the network has no such layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: VggName, last: str) -> None:
        super().__init__()
        layers = vgg_layers(network)
        if last not in layers:
            raise ValueError(f"{network} has no layer {last}; it has {', '.join(layers)}")
        self.network = network
        self.taps = tuple(layers)[: list(layers).index(last) + 1]
        self.features = nn.ModuleDict()
        inputs = 3
        for tap in self.taps:
            outputs = _CHANNELS[int(tap[4]) - 1]
            self.features[str(layers[tap])] = nn.Conv2d(inputs, outputs, 3, padding=1)
            inputs = outputs
        self.register_buffer("mean", torch.tensor(_IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_IMAGENET_DEVIATION).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, taps: Sequence[str]) -> dict[str, Tensor]:
        """Return the features of the named convolutions, before ReLU.

        Args:
            images: (N, 3, H, W), RGB in [0, 1], not clamped; normalised here.
            taps: names of layers, such as ("conv3_4", "conv5_4").

        Returns:
            Per tap (N, C, H / 2^b, W / 2^b), where b is its block minus 1.

        Raises:
            ValueError: a tap was not built.
        """
        unknown = [tap for tap in taps if tap not in self.taps]
        if unknown:
            raise ValueError(f"{self.network} up to {self.taps[-1]} has no layer {', '.join(unknown)}")
        x = (images - self.mean) / self.deviation
        features = {}
        for tap, convolution in zip(self.taps, self.features.values(), strict=True):
            if tap.endswith("_1") and tap != "conv1_1":
                x = F.max_pool2d(x, 2)
            x = cast(Tensor, convolution(x))
            if tap in taps:
                features[tap] = x
                if len(features) == len(set(taps)):
                    break
            x = F.relu(x)
        return features


def load_vgg(path: Path, last: str | None = None) -> Vgg:
    """Build a frozen VGG from a safetensors file, which determines whether it is VGG16 or VGG19.

    Args:
        path: torchvision's keys, `features.N.weight` and `.bias`; a classifier's keys are ignored.
        last: last convolution to keep; None keeps all.

    Raises:
        WeightsError: the file is missing, damaged, or neither network.
        ValueError: the network has no layer `last`.
    """
    state = {key: value for key, value in read_state(path).items() if key.startswith("features.")}
    network: VggName = "vgg19" if "features.34.weight" in state else "vgg16"
    vgg = Vgg(network, last or next(reversed(vgg_layers(network))))
    behind = {f"features.{index}" for index in vgg_layers(network).values() if str(index) not in vgg.features}
    load_exactly(vgg, {key: value for key, value in state.items() if key.rpartition(".")[0] not in behind}, path)
    return vgg


class AlexNet(nn.Module):
    """The convolutions of AlexNet (torchvision's one-column form), frozen; gives the features after each ReLU."""

    _LAYERS = (
        (0, 3, 64, 11, 4, 2),
        (3, 64, 192, 5, 1, 2),
        (6, 192, 384, 3, 1, 1),
        (8, 384, 256, 3, 1, 1),
        (10, 256, 256, 3, 1, 1),
    )
    _POOLED_BEFORE = ("3", "6")

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict(
            {
                str(index): nn.Conv2d(inputs, outputs, kernel, stride, padding)
                for index, inputs, outputs, kernel, stride, padding in self._LAYERS
            }
        )
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the five feature maps of images (N, 3, H, W) that are already normalised; H and W are at least 31."""
        x, features = images, []
        for index, convolution in self.features.items():
            if index in self._POOLED_BEFORE:
                x = F.max_pool2d(x, 3, 2)
            x = F.relu(cast(Tensor, convolution(x)))
            features.append(x)
        return features


def load_alexnet(path: Path) -> AlexNet:
    """Build AlexNet's frozen convolutions from a safetensors file with torchvision's keys; others are ignored.

    Raises:
        WeightsError: the file is missing, damaged, or another network.
    """
    alexnet = AlexNet()
    state = {key: value for key, value in read_state(path).items() if re.match(r"features\.\d+\.", key)}
    load_exactly(alexnet, state, path)
    return alexnet
