"""The auto-encoder of AESOP (arXiv 2412.00124): what a PSNR-oriented generator can restore of an image."""

from pathlib import Path
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from bebygan import SCALE
from bebygan.imaging.bicubic import resize
from bebygan.networks.generator import Generator, ResidualInResidualDenseBlock
from bebygan.networks.weights import load_exactly, read_state
from bebygan.precision import at_least_float32
from bebygan.settings import GeneratorShape

SHAPE = GeneratorShape(blocks=4, features=32, growth=16)
"""Of the decoder that this project trained."""
_BLOCKS = 2
_CHANNELS = 4
"""Of each pixel before the encoder puts 16 pixels into one; blocks and channels are those of the authors' code."""


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class AutoEncoder(nn.Module):
    """Shrinks an image four times by a trained encoder, and enlarges it by a generator.

    Both are trained with L1, so the result is the median of the images that shrink alike: texture that the shrunk image
    does not determine is not in it.

    Args:
        shape: of the decoder; the blocks of the encoder have its growth.
    """

    def __init__(self, shape: GeneratorShape = SHAPE) -> None:
        super().__init__()
        features = _CHANNELS * SCALE**2
        self.first = nn.Sequential(_conv(3, _CHANNELS), _conv(_CHANNELS, _CHANNELS))
        self.body = nn.Sequential(*(ResidualInResidualDenseBlock(features, shape.growth) for _ in range(_BLOCKS)))
        self.last = nn.Sequential(_conv(features, features), _conv(features, 3))
        for parameter in self.last[-1].parameters():
            nn.init.zeros_(parameter)
        self.decoder = Generator(shape)

    def encode(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 4H, 4W) to (N, 3, H, W).

        Other than in the authors' code, the layers learn what bicubic shrinking lacks, which takes less training.
        """
        height, width = (side // SCALE for side in images.shape[-2:])
        shrunk = resize(at_least_float32(images), height, width)
        return shrunk + cast(Tensor, self.last(self.body(F.pixel_unshuffle(self.first(images), SCALE))))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, 4H, 4W), RGB in [0, 1], to the same shape, not clamped.

        Two passes over an image, one with gradients and one without, give the same result in float32.
        """
        return self.decoder.pixels(self.decoder.features(self.encode(images)))


def load_auto_encoder(path: Path) -> AutoEncoder:
    """Build the frozen auto-encoder from a file of weights of `SHAPE`.

    Raises:
        WeightsError: the file is missing, damaged, or another network's.
    """
    network = AutoEncoder()
    load_exactly(network, read_state(path), path)
    return network.requires_grad_(False).eval()
