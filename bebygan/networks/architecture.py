"""Layouts of the networks that settings are checked against; needs no torch."""

from collections.abc import Mapping
from typing import Literal

VggName = Literal["vgg16", "vgg19"]
ALEXNET_SMALLEST = 31
"""Smallest side of an image that AlexNet, and so LPIPS, takes, pixels."""
_CONVOLUTIONS: dict[VggName, tuple[int, ...]] = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
PAPER_TAPS: Mapping[VggName, Mapping[str, float]] = {
    "vgg19": {"conv3_4": 1 / 8, "conv4_4": 1 / 4, "conv5_4": 1 / 2},
    "vgg16": {"conv3_3": 1 / 8, "conv4_3": 1 / 4, "conv5_3": 1 / 2},
}
"""The convolutions of Beby-GAN's perceptual loss and their weights, and the corresponding ones of VGG16."""


def vgg_layers(network: VggName) -> dict[str, int]:
    """Return torchvision's index in `features` of each convolution by name: {"conv1_1": 0, "conv1_2": 2, ...}."""
    layers, index = {}, 0
    for block, count in enumerate(_CONVOLUTIONS[network], start=1):
        for position in range(1, count + 1):
            layers[f"conv{block}_{position}"] = index
            index += 2
        index += 1
    return layers


def discriminator_stages(crop: int) -> int:
    """Return how often the discriminator halves a square crop: until its feature map would be smaller than 3.

    Args:
        crop: side, pixels.

    Raises:
        ValueError: the last feature map would be larger than 7, and its linear layer larger than the rest of the
            network.
    """
    side, stages = crop, 0
    while side % 2 == 0 and side // 2 >= 3:
        side //= 2
        stages += 1
    if stages == 0 or side > 7:
        raise ValueError(
            f"the discriminator takes crops of 3, 4, 5 or 7 times a power of two (96, 128, 160, 192, 224, 256, ...), "
            f"got {crop}"
        )
    return stages
