"""The losses and the region mask, each beside the same formula written plainly."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan import SCALE
from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import best_buddy_loss, find_best_buddies, pyramid_levels
from bebygan.losses.region_aware import textured_regions
from bebygan.settings import BestBuddySettings, RegionSettings
from benchmarks import plain
from benchmarks.comparing import GRADIENT_NOISE, LOSS_NOISE, Crops, compare
from benchmarks.figures import Figure, no_worse
from benchmarks.measuring import Outputs, Rounds, Work

BEST_BUDDY_NOISE = {"loss": 1e-3, "gradient": GRADIENT_NOISE}
"""Of two candidates at nearly equal distances float32 may choose either. Their L1 distances differ a little more."""
_EQUAL_SCORES = 1e-14
"""Scores of equal candidates, such as patches of a flat sky, differ by at most this in float64."""


def _enlarged(lr: Tensor) -> Tensor:
    """A stand-in for SR that is as blurred as an early one."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic")


def _with_gradient(loss_of: Callable[[Tensor], Tensor], sr: Tensor) -> Outputs:
    leaf = sr.detach().requires_grad_()
    loss = loss_of(leaf)
    torch.autograd.backward(loss)
    assert leaf.grad is not None
    return {"loss": loss, "gradient": leaf.grad}


def ours_best_buddy(crops: Crops, settings: BestBuddySettings) -> Work:
    lr, hr = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: best_buddy_loss(leaf, hr, **vars(settings)), sr)


def _plain_search(sr: Tensor, hr: Tensor, settings: BestBuddySettings) -> tuple[Tensor, Tensor]:
    levels = list(pyramid_levels(hr, settings.pyramid))
    return plain.best_buddy(
        sr, levels, alpha=settings.alpha, beta=settings.beta, patch=settings.patch, stride=settings.stride
    )


def plain_best_buddy(crops: Crops, settings: BestBuddySettings) -> Work:
    lr, hr = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: _plain_search(leaf, hr, settings)[0], sr)


def best_buddy(crops: Crops, settings: BestBuddySettings, rounds: Rounds) -> list[Figure]:
    """The best-buddy loss with its gradient: one chunked product beside two distance matrices."""
    name = f"best-buddy loss, {crops}"
    return compare(
        name,
        ours_best_buddy,
        plain_best_buddy,
        (crops, settings),
        rounds,
        limits=BEST_BUDDY_NOISE,
        least_speed=20,
        least_memory=50,
    )


def missed(sr: Tensor, hr: Tensor, index: Tensor, settings: BestBuddySettings) -> int:
    """Count choices for which float64 knows a candidate with a lower score."""
    exact = [level.double() for level in pyramid_levels(hr, settings.pyramid)]
    mine, twins = (F.unfold(images.double(), settings.patch, stride=settings.stride).mT for images in (sr, hr))
    candidates = torch.cat([F.unfold(level, settings.patch, stride=settings.stride).mT for level in exact], 1)
    worse = 0
    for image in range(len(sr)):
        centre = candidates[image].mean(0)
        share = settings.alpha / (settings.alpha + settings.beta)
        queries = torch.lerp(twins[image], mine[image], share) - centre
        moved = candidates[image] - centre
        scores = moved.square().sum(1) - 2 * queries @ moved.T
        chosen = scores.gather(1, index[image, :, None])[:, 0]
        worse += int((chosen > scores.amin(1) + _EQUAL_SCORES).sum())
    return worse


def search(crops: Crops, settings: BestBuddySettings) -> list[Figure]:
    """How often float32 chooses another buddy than float64."""
    lr, hr = crops.read()
    sr = _enlarged(lr)
    ours = reference = queries = 0
    for image in range(len(sr)):
        pair = sr[image : image + 1], hr[image : image + 1]
        index = find_best_buddies(*pair, settings).index
        queries += index.numel()
        ours += missed(*pair, index, settings)
        reference += missed(*pair, _plain_search(*pair, settings)[1], settings)
    name = f"best-buddy search, {crops}: choices that float64 does not make"
    return [no_worse(name, ours, reference, f"of {queries}")]


def _ours_mask(crops: Crops, settings: RegionSettings) -> Work:
    _, hr = crops.read()
    return lambda: {"mask": textured_regions(hr, window=settings.window, threshold=settings.threshold)}


def _plain_mask(crops: Crops, settings: RegionSettings) -> Work:
    _, hr = crops.read()
    return lambda: {"mask": 1 - plain.flat_regions(hr, settings.window, settings.threshold)}


def region_mask(crops: Crops, settings: RegionSettings, rounds: Rounds) -> list[Figure]:
    """The region mask: box sums beside unfolded windows."""
    name = f"region mask, {crops}"
    # The root of the share of pixels that differ: one in a thousand may lie on the threshold.
    return compare(name, _ours_mask, _plain_mask, (crops, settings), rounds, limits={"mask": 1e-3**0.5}, least_speed=4)


def _ours_back_projection(crops: Crops) -> Work:
    lr, _ = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: back_projection_loss(leaf, lr, SCALE), sr)


def _plain_back_projection(crops: Crops) -> Work:
    lr, _ = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: (plain.matlab_resize(leaf, *lr.shape[-2:]) - lr).abs().mean(), sr)


def back_projection(crops: Crops, rounds: Rounds) -> list[Figure]:
    """The back-projection loss with its gradient: two matrix products beside gathered taps."""
    name = f"back-projection loss, {crops}"
    limits = {"loss": LOSS_NOISE, "gradient": GRADIENT_NOISE}
    return compare(name, _ours_back_projection, _plain_back_projection, (crops,), rounds, limits=limits, least_speed=5)
