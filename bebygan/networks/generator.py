"""The generator: RRDBNet of ESRGAN, which Beby-GAN keeps (arXiv 1809.00219 section 3.1; arXiv 2103.15295 section 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.settings import GeneratorShape


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


class ResidualDenseBlock(nn.Module):
    """Five densely connected convolutions; the sum is scaled by 0.2 before it is added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = _conv(features, growth)
        self.conv2 = _conv(features + growth, growth)
        self.conv3 = _conv(features + 2 * growth, growth)
        self.conv4 = _conv(features + 3 * growth, growth)
        self.conv5 = _conv(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features, H, W) to the same shape."""
        stack = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            stack = torch.cat((stack, _leaky(conv(stack))), 1)
        return torch.add(x, self.conv5(stack), alpha=0.2)


class ResidualInResidualDenseBlock(nn.Module):
    """Three residual dense blocks in a residual of their own."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.RDB1 = ResidualDenseBlock(features, growth)
        self.RDB2 = ResidualDenseBlock(features, growth)
        self.RDB3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features, H, W) to the same shape."""
        return torch.add(x, self.RDB3(self.RDB2(self.RDB1(x))), alpha=0.2)


class Generator(nn.Module):
    """RRDBNet x4. Parameter names are those of ESRGAN and Simple-SR; see `naming` for the other public ones."""

    def __init__(self, shape: GeneratorShape) -> None:
        super().__init__()
        self.shape = shape
        features = shape.features
        self.conv_first = _conv(3, features)
        self.RRDB_trunk = nn.Sequential(
            *(ResidualInResidualDenseBlock(features, shape.growth) for _ in range(shape.blocks))
        )
        self.trunk_conv = _conv(features, features)
        self.upconv1 = _conv(features, features)
        self.upconv2 = _conv(features, features)
        self.HRconv = _conv(features, features)
        self.conv_last = _conv(features, 3)

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale four times.

        Args:
            lr: (N, 3, H, W), RGB in [0, 1].

        Returns:
            (N, 3, 4H, 4W), RGB, not clamped.
        """
        first = self.conv_first(lr)
        x = first + self.trunk_conv(self.RRDB_trunk(first))
        x = _leaky(self.upconv1(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        x = _leaky(self.upconv2(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        result: Tensor = self.conv_last(_leaky(self.HRconv(x)))
        return result
