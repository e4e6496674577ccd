"""Plain references: each formula written down as it stands, slow and obvious.

Tests compare the fast forms with these; benchmarks time against them. The two distance matrices of `best_buddy`, the
unfolded windows of `flat_regions` and the five passes of `discriminator_step` are how the official code works.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from bebygan.losses.best_buddy import pyramid_levels
from bebygan.losses.objective import Perceptual
from bebygan.networks.generator import Generator, ResidualDenseBlock, ResidualInResidualDenseBlock
from bebygan.settings import GanSettings


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """(B, N, d) and (B, M, d) to (B, N, M), by the expansion of the square, clamped at 0."""
    cross = first @ second.transpose(1, 2)
    return (first.square().sum(2)[:, :, None] + second.square().sum(2)[:, None] - 2 * cross).clamp_min(0)


def best_buddy(
    sr: Tensor, levels: list[Tensor], *, alpha: float, beta: float, patch: int, stride: int
) -> tuple[Tensor, Tensor]:
    """Return the best-buddy loss and the index (B, N) of the chosen patches of `levels`: HR, its half, its quarter."""

    def patches(images: Tensor) -> Tensor:
        return F.unfold(images, patch, stride=stride).transpose(1, 2)

    mine, twins = patches(sr), patches(levels[0])
    candidates = torch.cat([patches(level) for level in levels], 1)
    scores = alpha * _squared_distances(mine, candidates) + beta * _squared_distances(twins, candidates)
    index = scores.argmin(2)
    chosen = torch.stack([image[row] for image, row in zip(candidates, index, strict=True)])
    return (mine - chosen).abs().mean(), index


def _cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def matlab_resize_rows(images: Tensor, rows: int) -> Tensor:
    """Resize the rows of (N, C, H, W) as MATLAB's imresize: gather each output row's taps, weigh them, add them."""
    height = images.shape[-2]
    scale = rows / height
    stretch = min(scale, 1.0)
    weights, positions = [], []
    for row in range(rows):
        centre = (row + 0.5) / scale - 0.5
        first = math.floor(centre - 2 / stretch)
        taps = range(first, first + math.ceil(4 / stretch) + 2)
        cubic = [_cubic((centre - tap) * stretch) for tap in taps]
        weights.append([weight / sum(cubic) for weight in cubic])
        mirrored = [tap % (2 * height) for tap in taps]
        positions.append([tap if tap < height else 2 * height - 1 - tap for tap in mirrored])
    gathered = images[..., torch.tensor(positions, device=images.device), :]
    return (gathered * torch.tensor(weights, dtype=torch.float64).to(images)[..., None]).sum(-2)


def matlab_resize(images: Tensor, height: int, width: int) -> Tensor:
    """Resize (N, C, H, W) as MATLAB's imresize(image, [height width])."""
    rows = matlab_resize_rows(images, height)
    return matlab_resize_rows(rows.transpose(2, 3), width).transpose(2, 3)


def matlab_shrink_by_four(images: Tensor) -> Tensor:
    """Shrink (N, C, H, W) by four as one 16x16 convolution over symmetric borders."""
    taps = torch.tensor([_cubic((tap - 7.5) / 4) for tap in range(16)], dtype=torch.float64)
    kernel = torch.outer(taps, taps)
    kernel = (kernel / kernel.sum()).to(images)
    for axis in (-1, -2):
        before, after = images.narrow(axis, 0, 6).flip(axis), images.narrow(axis, -6, 6).flip(axis)
        images = torch.cat((before, images, after), axis)
    channels = images.shape[1]
    return F.conv2d(images, kernel.expand(channels, 1, 16, 16), stride=4, groups=channels)


def flat_regions(images: Tensor, window: int, threshold: float) -> Tensor:
    """Return 1 where (N, 3, H, W) is flat, from every pixel's window and torch.std."""
    weights = torch.tensor([0.2989, 0.587, 0.114]).to(images).view(1, 3, 1, 1)
    luma = F.pad((images * weights).sum(1, keepdim=True), (window // 2,) * 4, mode="reflect")
    deviation = F.unfold(luma, window).std(1, unbiased=True)
    return (deviation < threshold).to(images).view(len(images), 1, *images.shape[-2:])


def _entropy(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def generator_adversarial(discriminator: nn.Module, sr: Tensor, hr: Tensor) -> Tensor:
    """Return the relativistic average loss of the generator: passes one and two of five."""
    real = discriminator(hr).detach()
    fake = discriminator(sr)
    return (_entropy(real - fake.mean(), 0.0) + _entropy(fake - real.mean(), 1.0)) / 2


def discriminator_step(discriminator: nn.Module, sr: Tensor, hr: Tensor) -> float:
    """Add the discriminator's gradients to its parameters, return its loss: passes three, four and five of five."""
    fake = discriminator(sr.detach()).detach()
    real = discriminator(hr)
    on_real = _entropy(real - fake.mean(), 1.0) / 2
    torch.autograd.backward(on_real)
    fake = discriminator(sr.detach())
    on_fake = _entropy(fake - real.detach().mean(), 0.0) / 2
    torch.autograd.backward(on_fake)
    return float(on_real.detach() + on_fake.detach())


def _dense(block: ResidualDenseBlock, x: Tensor) -> Tensor:
    stack = [x]
    for conv in (block.conv1, block.conv2, block.conv3, block.conv4):
        stack.append(F.leaky_relu(conv(torch.cat(stack, 1)), 0.2, inplace=True))
    return torch.add(0.2 * block.conv5(torch.cat(stack, 1)), x)


def _residual_in_residual(block: ResidualInResidualDenseBlock, x: Tensor) -> Tensor:
    return 0.2 * _dense(block.RDB3, _dense(block.RDB2, _dense(block.RDB1, x))) + x


def generate(generator: Generator, lr: Tensor) -> Tensor:
    """Return SR from the weights of `generator`, layer by layer (arXiv 1809.00219 section 3.1)."""
    first = x = generator.conv_first(lr)
    for block in generator.RRDB_trunk.children():
        assert isinstance(block, ResidualInResidualDenseBlock)
        x = _residual_in_residual(block, x)
    x = torch.add(first, generator.trunk_conv(x))
    for conv in (generator.upconv1, generator.upconv2):
        x = F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2, inplace=True)
    sr: Tensor = generator.conv_last(F.leaky_relu(generator.HRconv(x), 0.2, inplace=True))
    return sr


def perceptual(network: Perceptual, sr: Tensor, hr: Tensor) -> Tensor:
    """Return the weighted sum of the mean distances of VGG's features."""
    taps = tuple(network.taps)
    found, wanted = network.vgg(sr, taps), network.vgg(hr, taps)
    return torch.stack([network.taps[tap] * (found[tap] - wanted[tap]).abs().mean() for tap in taps]).sum()


def training_iteration(
    generator: Generator,
    discriminator: nn.Module,
    optimisers: tuple[torch.optim.Optimizer, torch.optim.Optimizer],
    *,
    network: Perceptual,
    settings: GanSettings,
    lr: Tensor,
    hr: Tensor,
) -> Mapping[str, Tensor]:
    """Train generator and discriminator once (arXiv 2103.15295 section 3): five passes of the discriminator.

    The mask is made from HR. Returns the losses as `bebygan.training.step.gan_step` does.
    """
    weights, search = settings.losses, settings.best_buddy
    for optimiser in optimisers:
        optimiser.zero_grad()
    sr = generate(generator, lr)
    mask = 1 - flat_regions(hr, settings.region.window, settings.region.threshold)
    best, _ = best_buddy(
        sr,
        list(pyramid_levels(hr, search.pyramid)),
        alpha=search.alpha,
        beta=search.beta,
        patch=search.patch,
        stride=search.stride,
    )
    losses = {
        "best_buddy": best,
        "back_projection": (matlab_resize(sr, *lr.shape[-2:]) - lr).abs().mean(),
        "perceptual": perceptual(network, sr, hr),
        "adversarial": generator_adversarial(discriminator, sr * mask, hr * mask),
    }
    total = torch.stack([getattr(weights, name) * loss for name, loss in losses.items()]).sum()
    torch.autograd.backward(total)
    optimisers[0].step()
    optimisers[1].zero_grad()
    judged = discriminator_step(discriminator, sr * mask, hr * mask)
    optimisers[1].step()
    return {**losses, "total": total, "discriminator": torch.tensor(judged)}


def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move each parameter of the average towards the network's."""
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), network.parameters(), strict=True):
            slow.copy_(decay * slow + (1 - decay) * fast)


def decode_batch(files: Sequence[tuple[bytes, bytes]], crop: int) -> tuple[Tensor, Tensor]:
    """Decode image files of LR and HR sub-images, cut a corner off each, return LR and HR (N, 3, H, W) in [0, 1]."""
    batches = []
    for side, scale in ((0, 4), (1, 1)):
        images = [np.asarray(Image.open(io.BytesIO(pair[side]))) for pair in files]
        corners = np.stack([image[: crop // scale, : crop // scale] for image in images])
        batches.append(torch.from_numpy(corners).permute(0, 3, 1, 2).float() / 255)
    return batches[0], batches[1]


def ssim(first: Tensor, second: Tensor) -> float:
    """Return SSIM of two (H, W) images in [0, 255], the 11x11 Gaussian window (sigma 1.5) applied as a whole."""
    axis = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(axis, axis) / axis.sum() ** 2

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image[None, None].double(), window[None, None])[0, 0]

    mean1, mean2 = blur(first), blur(second)
    variance1, variance2 = blur(first * first) - mean1**2, blur(second * second) - mean2**2
    covariance = blur(first * second) - mean1 * mean2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    numerator = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return float((numerator / ((mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2))).mean())
