"""Perceptual distances of images: LPIPS (arXiv 1801.03924), version 0.1 with AlexNet, and DISTS (arXiv 2004.07728)."""

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.errors import DataError
from bebygan.imaging import Image
from bebygan.imaging.convert import to_tensor
from bebygan.metrics.batches import metric
from bebygan.networks.architecture import ALEXNET_SMALLEST
from bebygan.networks.dists import Dists
from bebygan.networks.perceptual import AlexNet, load_alexnet
from bebygan.networks.weights import load_exactly, read_state
from bebygan.precision import full_precision

_CHANNELS = (64, 192, 384, 256, 256)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


class Lpips(nn.Module):
    """AlexNet's features and one linear head for each of the five, frozen."""

    shift: Tensor
    scale: Tensor

    def __init__(self, trunk: AlexNet, heads: list[Tensor]) -> None:
        super().__init__()
        self.trunk = trunk
        for number, head in enumerate(heads):
            self.register_buffer(f"head{number}", head)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the five features of images (N, 3, H, W), RGB in [0, 1], with channels of length 1.

        Raises:
            DataError: the images are smaller than AlexNet takes, 31 pixels.
        """
        if min(images.shape[-2:]) < ALEXNET_SMALLEST:
            raise DataError(
                f"an image of {images.shape[-2]}x{images.shape[-1]} is too small for LPIPS: {ALEXNET_SMALLEST} are "
                "needed"
            )
        with full_precision(images.device):
            return [_unit(each) for each in self.trunk((2 * images - 1 - self.shift) / self.scale)]

    def maps(self, first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
        """Return the distances (N, H, W) at each position of the five features; the sum of their means is LPIPS."""
        return [
            ((a - b).square() * self.get_buffer(f"head{number}")).sum(1)
            for number, (a, b) in enumerate(zip(first, second, strict=True))
        ]

    @staticmethod
    def mean_in(maps: list[Tensor], region: npt.NDArray[np.bool_]) -> float:
        """Return LPIPS of one pair in a region (H, W), which holds at least one pixel.

        Each position counts by the share of the region in the pixels that it stands for.
        """
        share = torch.from_numpy(region)[None, None].to(maps[0])
        shares = [F.adaptive_avg_pool2d(share, (each.shape[-2], each.shape[-1]))[0] for each in maps]
        return float(sum((each * part).sum() / part.sum() for each, part in zip(maps, shares, strict=True)))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance of each pair, (N,), of images (N, 3, H, W), RGB in [0, 1]; at least 0.

        Raises:
            DataError: the images are smaller than AlexNet takes, 31 pixels.
        """
        maps = self.maps(self.features(first), self.features(second))
        return torch.stack([each.mean((1, 2)) for each in maps]).sum(0)


def _unit(features: Tensor) -> Tensor:
    """Scale each position's channels to length 1."""
    return features / (features.square().sum(1, keepdim=True).sqrt() + _EPSILON)


class Heads(nn.Module):
    """Names and shapes of the published heads: lin0.model.1.weight, ... (after a dropout that evaluation skips)."""

    def __init__(self, channels_of_levels: Sequence[int] = _CHANNELS) -> None:
        super().__init__()
        for number, channels in enumerate(channels_of_levels):
            layers = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{number}", nn.ModuleDict({"model": layers}))


def load_lpips(alexnet: Path, heads: Path) -> Lpips:
    """Build LPIPS from two files of weights.

    Args:
        alexnet: torchvision's keys, `features.N.weight` and `.bias`.
        heads: the published ones of version 0.1, `linN.model.1.weight`.

    Raises:
        WeightsError: a file is missing, damaged, or another network's.
    """
    linear = Heads()
    load_exactly(linear, read_state(heads), heads)
    return Lpips(load_alexnet(alexnet), list(linear.state_dict().values())).eval()


@metric
def lpips(sr: Image, hr: Image, network: Lpips) -> float:
    """Return the LPIPS distance, at least 0, lower is better. For a loss with gradients call the network itself.

    Args:
        sr: (H, W, 3) uint8 RGB, or (N, 3, H, W) RGB in [0, 1].
        hr: the same type and shape.
        network: see `load_lpips`.

    Raises:
        ValueError: the shapes differ.
        DataError: the images are smaller than 31 pixels.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"SR of {sr.shape} and HR of {hr.shape} must have one shape")
    with torch.inference_mode():
        return float(cast(Tensor, network(to_tensor(sr, network.shift.device), to_tensor(hr, network.shift.device))))


@metric
def dists(sr: Image, hr: Image, network: Dists) -> float:
    """Return the DISTS distance, lower is better, 0 for equal images; it tolerates other texture of the same kind.

    Args:
        sr: (H, W, 3) uint8 RGB, or (N, 3, H, W) RGB in [0, 1].
        hr: the same type and shape.
        network: see `bebygan.networks.load_dists`.

    Raises:
        ValueError: the shapes differ.
    """
    device = network.vgg.mean.device
    with torch.inference_mode(), full_precision(device):
        return float(cast(Tensor, network(to_tensor(sr, device), to_tensor(hr, device))))
