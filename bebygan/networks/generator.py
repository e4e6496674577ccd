"""The generator: RRDBNet of ESRGAN, which Beby-GAN keeps (arXiv 1809.00219 section 3.1; arXiv 2103.15295 section 4)."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bebygan import SCALE
from bebygan.settings import GeneratorShape

_PAPER = GeneratorShape()
BAND = 2**14
"""LR pixels of a band of rows, so that its maps stay small enough for the allocator to reuse them."""
_LEAST_ROWS = 8
_MARGIN = 2
"""LR rows on each side that the layers after the trunk see."""


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2, inplace=True)


class _DenseConvolutions(torch.autograd.Function):
    """Five convolutions, each over the input and all outputs before its own, which share one buffer.

    Autograd would keep a concatenation for each of the five, 5 features + 10 growth channels; the buffer has
    features + 4 growth. The numbers are the same, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """Map (N, features, H, W) to the same shape; `parameters` are five weights, then five biases."""
        weights, biases = parameters[:5], parameters[5:]
        end = x.shape[1]
        shape = (len(x), weights[4].shape[1], *x.shape[2:])
        last = x.is_contiguous(memory_format=torch.channels_last)
        memory_format = torch.channels_last if last else torch.contiguous_format
        stack = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)
        stack[:, :end] = x
        for weight, bias in zip(weights[:4], biases, strict=False):
            out = _leaky(F.conv2d(stack[:, :end], weight, bias, padding=1))
            stack[:, end : end + len(weight)] = out
            end += len(weight)
        ctx.save_for_backward(stack, *weights)
        return F.conv2d(stack, weights[4], biases[4], padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, weights and biases."""
        stack, *weights = ctx.saved_tensors
        trained = any(ctx.needs_input_grad[1:])
        total, *last = _convolution_gradients(gradient, stack, weights[4], trained)
        found = [last]
        for weight in reversed(weights[:4]):
            start = weight.shape[1]
            mine = slice(start, start + len(weight))
            # The sign of the leaky ReLU's output is that of its input.
            out = torch.ops.aten.leaky_relu_backward(total[:, mine], stack[:, mine], 0.2, True)
            before, *of_parameters = _convolution_gradients(out, stack[:, :start], weight, trained)
            total[:, :start] += before
            found.append(of_parameters)
        of_weights, of_biases = zip(*reversed(found), strict=True)
        return (total[:, : weights[0].shape[1]], *of_weights, *of_biases)


def _convolution_gradients(gradient: Tensor, x: Tensor, weight: Tensor, trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of a 3x3 convolution's input and, where it is trained (else None), of weight and bias."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, trained, trained]
    )
    return found


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
        convs = (self.conv1, self.conv2, self.conv3, self.conv4, self.conv5)
        operands = [x, *(conv.weight for conv in convs), *(cast(Tensor, conv.bias) for conv in convs)]
        if torch.is_autocast_enabled(x.device.type):
            # Backward runs outside of autocast: what it is given must have one type already.
            dtype = torch.get_autocast_dtype(x.device.type)
            operands = [operand.to(dtype) for operand in operands]
        return torch.add(x, cast(Tensor, _DenseConvolutions.apply(*operands)), alpha=0.2)  # type: ignore[no-untyped-call]


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
    """RRDBNet x4. Parameter names are those of ESRGAN and Simple-SR; see `naming` for the other public ones.

    Args:
        shape: size of the network; the default is the paper's.
    """

    def __init__(self, shape: GeneratorShape = _PAPER) -> None:
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

    def features(self, lr: Tensor) -> Tensor:
        """Map (N, 3, H, W), RGB in [0, 1], to the trunk's result, (N, features, H, W)."""
        first = self.conv_first(lr)
        return cast(Tensor, first + self.trunk_conv(self.RRDB_trunk(first)))

    def pixels(self, features: Tensor) -> Tensor:
        """Map the trunk's result, (N, features, H, W), to (N, 3, 4H, 4W), RGB, not clamped."""
        x = _leaky(self.upconv1(F.interpolate(features, scale_factor=2.0, mode="nearest")))
        x = _leaky(self.upconv2(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        result: Tensor = self.conv_last(_leaky(self.HRconv(x)))
        return result

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale four times.

        Without gradients the last layers, whose maps are 16 times as large as the trunk's, are computed in bands of
        rows: memory is that of the trunk.

        Args:
            lr: (N, 3, H, W), RGB in [0, 1].

        Returns:
            (N, 3, 4H, 4W), RGB, not clamped.
        """
        features = self.features(lr)
        height, width = features.shape[2:]
        rows = max(_LEAST_ROWS, BAND // width)
        if height <= rows or torch.is_grad_enabled():
            return self.pixels(features)
        result: Tensor | None = None
        for start in range(0, height, rows):
            first, end = max(start - _MARGIN, 0), min(start + rows, height)
            band = self.pixels(features[:, :, first : end + _MARGIN])
            if result is None:
                result = band.new_empty((len(lr), 3, SCALE * height, SCALE * width))
            result[:, :, SCALE * start : SCALE * end] = band[:, :, SCALE * (start - first) : SCALE * (end - first)]
        return cast(Tensor, result)
