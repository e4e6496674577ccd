"""The network of DISTS (arXiv 2004.07728): VGG16 with smooth pooling, and the weight of each of its channels."""

from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.networks.perceptual import Vgg, load_vgg
from bebygan.networks.weights import load_exactly, read_state
from bebygan.precision import at_least_float32, full_precision

_STAGES = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
_CHANNELS = [3, 64, 128, 256, 512, 512]
"""Of the image itself, and of the features of each stage."""
_STABLE = 1e-6
_POSITIVE = 1e-12


class DistsWeights(nn.Module):
    """Names and shapes of the published weights: alpha of the means (texture), beta of the rest (structure)."""

    alpha: Tensor
    beta: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("alpha", "beta"):
            self.register_buffer(name, torch.ones(1, sum(_CHANNELS), 1, 1))


def _pooled(x: Tensor) -> Tensor:
    """Halve by the root of the mean square over 3x3 pixels, weighted by a Hann window; never below float32."""
    x = at_least_float32(x)
    window = torch.tensor((0.25, 0.5, 0.25), dtype=x.dtype, device=x.device)
    kernel = torch.outer(window, window).expand(x.shape[1], 1, 3, 3)
    with full_precision(x.device):
        return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + _POSITIVE).sqrt()


class Dists(nn.Module):
    """DISTS between pairs of images, frozen, differentiable in both.

    Args:
        vgg: VGG16 with all convolutions up to conv5_3.
        weights: of its channels.

    Raises:
        ValueError: another network, or one that ends earlier.
    """

    def __init__(self, vgg: Vgg, weights: DistsWeights) -> None:
        super().__init__()
        if vgg.network != "vgg16" or vgg.taps[-1] != _STAGES[-1]:
            raise ValueError(f"DISTS takes VGG16 up to {_STAGES[-1]}, got {vgg.network} up to {vgg.taps[-1]}")
        self.vgg = vgg
        self.weights = weights
        self.requires_grad_(False).eval()

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the images (N, 3, H, W) themselves and the features of the five stages, after ReLU."""
        x, found = (images - self.vgg.mean) / self.vgg.deviation, [images]
        for tap, convolution in zip(self.vgg.taps, self.vgg.features.values(), strict=True):
            if tap.endswith("_1") and tap != "conv1_1":
                x = _pooled(x)
            x = F.relu(cast(Tensor, convolution(x)))
            if tap in _STAGES:
                found.append(x)
        return [at_least_float32(each) for each in found]

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the distance of each pair, (N,), of images (N, 3, H, W), RGB in [0, 1]; 0 for equal images.

        Raises:
            ValueError: the shapes differ.
        """
        if first.shape != second.shape:
            raise ValueError(f"DISTS takes images of one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
        return self.distance(self.features(first), self.features(second))

    def distance(self, first: list[Tensor], second: list[Tensor]) -> Tensor:
        """Return the distance of each pair, (N,), of images by their `features`."""
        total = self.weights.alpha.sum() + self.weights.beta.sum()
        alphas, betas = (torch.split(each.flatten(), _CHANNELS) for each in (self.weights.alpha, self.weights.beta))
        pairs = zip(first, second, alphas, betas, strict=True)
        return 1 - torch.stack([_similarity(*each) for each in pairs]).sum(0) / total


def _similarity(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the weighted sum over channels of the similarity of means and that of structure, (N,)."""
    x_mean, y_mean = (each.mean((2, 3), keepdim=True) for each in (x, y))
    x, y = x - x_mean, y - y_mean
    texture = (2 * x_mean * y_mean + _STABLE) / (x_mean.square() + y_mean.square() + _STABLE)
    covariance, variances = (x * y).mean((2, 3)), (x.square() + y.square()).mean((2, 3))
    structure = (2 * covariance + _STABLE) / (variances + _STABLE)
    return (alpha * texture.flatten(1) + beta * structure).sum(1)


def load_dists(vgg16: Path, weights: Path) -> Dists:
    """Build DISTS from two files of weights.

    Args:
        vgg16: torchvision's keys, `features.N.weight` and `.bias`.
        weights: the published ones, `alpha` and `beta`.

    Raises:
        WeightsError: a file is missing, damaged, or another network's.
        ValueError: the first file holds VGG19.
    """
    channels = DistsWeights()
    load_exactly(channels, read_state(weights), weights)
    return Dists(load_vgg(vgg16), channels)
