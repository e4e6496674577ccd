"""The discriminator: the VGG-style network of SRGAN and ESRGAN, for any crop size (arXiv 1609.04802 section 2.1.1).

At a crop of 192 and width 32 it is the official one: 5,291,913 parameters, the same parameter names.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.networks.architecture import discriminator_stages
from bebygan.networks.batch_norm import BatchNorm

_HIDDEN = 100


class Discriminator(nn.Module):
    """Stages of a 3x3 convolution and a 4x4 one that halves, then two linear layers.

    Batch norm (over all processes' batches) and leaky ReLU follow every convolution, the first without batch norm.

    Args:
        size: side of the square input; see `discriminator_stages`.
        width: channels of the first stage; they double up to eight times that.

    Raises:
        ValueError: `size` cannot be halved to a small map, or `width` is below 1.
    """

    def __init__(self, size: int = 192, width: int = 32) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"the discriminator's width must be at least 1, got {width}")
        self.size = size
        self.width = width
        self.stages = discriminator_stages(size)
        inputs = 3
        for stage in range(self.stages):
            outputs = width * min(2**stage, 8)
            first = stage == 0
            self.add_module(f"conv{stage}_0", nn.Conv2d(inputs, outputs, 3, padding=1, bias=first))
            if not first:
                self.add_module(f"bn{stage}_0", BatchNorm(outputs))
            self.add_module(f"conv{stage}_1", nn.Conv2d(outputs, outputs, 4, 2, 1, bias=False))
            self.add_module(f"bn{stage}_1", BatchNorm(outputs))
            inputs = outputs
        self.linear1 = nn.Linear(inputs * (size >> self.stages) ** 2, _HIDDEN)
        self.linear2 = nn.Linear(_HIDDEN, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return how real images look.

        Args:
            images: (N, 3, size, size), RGB, multiplied by the region mask.

        Returns:
            Logits (N, 1): the higher, the more real.

        Raises:
            ValueError: the images have another size.
        """
        if images.shape[-2:] != (self.size, self.size):
            raise ValueError(f"this discriminator takes {self.size}x{self.size} crops, got {tuple(images.shape[-2:])}")
        x = images
        for stage in range(self.stages):
            for half in (0, 1):
                x = cast(Tensor, self.get_submodule(f"conv{stage}_{half}")(x))
                if (stage, half) != (0, 0):
                    x = cast(Tensor, self.get_submodule(f"bn{stage}_{half}")(x))
                x = F.leaky_relu(x, 0.2, inplace=True)
        x = F.leaky_relu(cast(Tensor, self.linear1(torch.flatten(x, 1))), 0.2, inplace=True)
        return cast(Tensor, self.linear2(x))
