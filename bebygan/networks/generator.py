"""The generator: RRDBNet of ESRGAN, which Beby-GAN keeps (arXiv 1809.00219 section 3.1; arXiv 2103.15295 section 4)."""

from collections.abc import Iterable
from itertools import product
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


def _empty_like(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an uninitialised tensor of another shape, in the type, on the device and in the memory order of `x`."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


_TAPS = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
"""Which rows of a 3x3 kernel meet which of two neighbouring rows, in even and odd rows of an image enlarged twice."""


def _enlarged(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Enlarge twice by nearest neighbour, then apply a 3x3 convolution and the leaky ReLU, without gradients.

    Each of the 4 pixels that are made of one is computed by a 2x2 convolution of x, with sums of the kernel's weights:
    16 products instead of 36, and no enlarged map.

    Args:
        conv: with padding 1.
        x: (N, C, H, W).

    Returns:
        (N, features, 2H, 2W), up to rounding that of the formula above.
    """
    height, width = x.shape[2:]
    taps = _TAPS.to(conv.weight)
    weights = torch.einsum("aik,bjl,ockl->abocij", taps, taps, conv.weight)
    result: Tensor | None = None
    for row, column in product((0, 1), repeat=2):
        part = _leaky(F.conv2d(x, weights[row, column], conv.bias, padding=1))
        if result is None:
            result = _empty_like(part, (*part.shape[:2], 2 * height, 2 * width))
        result[:, :, row::2, column::2] = part[:, :, row : row + height, column : column + width]
    return cast(Tensor, result)


def _append(stack: Tensor, end: int, x: Tensor) -> int:
    """Write the leaky ReLU of x behind the first `end` channels of a buffer, and return where its channels end."""
    after = end + x.shape[1]
    torch.ops.aten.leaky_relu.out(x, 0.2, out=stack[:, end:after])
    return after


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
        stack = _empty_like(x, (len(x), weights[4].shape[1], *x.shape[2:]))
        stack[:, :end] = x
        for weight, bias in zip(weights[:4], biases, strict=False):
            end = _append(stack, end, F.conv2d(stack[:, :end], weight, bias, padding=1))
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

    @property
    def convs(self) -> tuple[nn.Conv2d, ...]:
        """The five convolutions in their order."""
        return self.conv1, self.conv2, self.conv3, self.conv4, self.conv5

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features, H, W) to the same shape."""
        convs = self.convs
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
        trunk = self.RRDB_trunk(first) if torch.is_grad_enabled() else self._trunk_in_place(first)
        return cast(Tensor, first + self.trunk_conv(trunk))

    def _trunk_in_place(self, x: Tensor) -> Tensor:
        """Compute the trunk without gradients: all dense blocks share one buffer, whose first channels are x.

        The values are those of the blocks' own forward passes.
        """
        features = self.shape.features
        stack = _empty_like(x, (len(x), features + 4 * self.shape.growth, *x.shape[2:]))
        first = stack[:, :features]
        first.copy_(x)
        for block in cast(Iterable[ResidualInResidualDenseBlock], self.RRDB_trunk):
            start = first.clone()
            for dense in (block.RDB1, block.RDB2, block.RDB3):
                end = features
                for conv in dense.convs[:4]:
                    end = _append(stack, end, conv(stack[:, :end]))
                first.add_(dense.conv5(stack), alpha=0.2)
            torch.add(start, first, alpha=0.2, out=first)
        return first

    def pixels(self, features: Tensor) -> Tensor:
        """Map the trunk's result, (N, features, H, W), to (N, 3, 4H, 4W), RGB, not clamped."""
        x = _leaky(self.upconv1(F.interpolate(features, scale_factor=2.0, mode="nearest")))
        x = _leaky(self.upconv2(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        result: Tensor = self.conv_last(_leaky(self.HRconv(x)))
        return result

    def _pixels_without_gradients(self, features: Tensor) -> Tensor:
        """Do what `pixels` does, with fewer products."""
        x = _enlarged(self.upconv2, _enlarged(self.upconv1, features))
        return cast(Tensor, self.conv_last(_leaky(self.HRconv(x))))

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale four times.

        Without gradients the last layers, whose maps are 16 times as large as the trunk's, are computed in bands of
        rows, and with fewer products: memory is that of the trunk.

        Args:
            lr: (N, 3, H, W), RGB in [0, 1].

        Returns:
            (N, 3, 4H, 4W), RGB, not clamped.
        """
        features = self.features(lr)
        if torch.is_grad_enabled():
            return self.pixels(features)
        height, width = features.shape[2:]
        rows = max(_LEAST_ROWS, BAND // width)
        result: Tensor | None = None
        for start in range(0, height, rows):
            first, end = max(start - _MARGIN, 0), min(start + rows, height)
            band = self._pixels_without_gradients(features[:, :, first : end + _MARGIN])
            if result is None:
                result = band.new_empty((len(lr), 3, SCALE * height, SCALE * width))
            result[:, :, SCALE * start : SCALE * end] = band[:, :, SCALE * (start - first) : SCALE * (end - first)]
        return cast(Tensor, result)
