"""The best-buddy loss (arXiv 2103.15295 section 3.1): each SR patch may follow any HR patch of its own image.

Patch i of the SR image, p_i, with the HR patch g_i at its place, is compared with its best buddy, the candidate c that
minimises alpha |p_i - c|^2 + beta |g_i - c|^2. Candidates are all patches of the HR image and of its half and quarter.
With q_i = (alpha p_i + beta g_i) / (alpha + beta) the same c minimises |c|^2 - 2 <q_i, c>, which is one matrix product
instead of two distance matrices. Subtracting the mean candidate from both sides changes no distance and saves digits.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.imaging import bicubic
from bebygan.precision import at_least_float32, full_precision
from bebygan.settings import BestBuddySettings, Pyramid

_BLOCK = 64
"""Candidates whose minimum is taken before the argmin: torch takes minima of short rows far faster than argmins."""

PAPER = BestBuddySettings()
ORIGINS = ("own", "full", "half", "quarter")
"""A patch's buddy is its own HR patch, another one of full size, one of half, or one of a quarter."""


@dataclass(frozen=True, slots=True)
class BestBuddies:
    """The chosen candidates: N patches per image out of M candidates, each of d = channels x patch x patch numbers."""

    patches: Tensor
    """(B, d, N): the chosen candidates."""
    index: Tensor
    """(B, N), int64: their places among the M candidates, full size first, then half, then quarter, each row by row."""
    level_sizes: tuple[int, ...]
    """Candidates per pyramid level; they sum to M."""

    def origins(self) -> Tensor:
        """Return where each patch found its buddy, (B, N), int64: the place of the name in `ORIGINS`."""
        own = self.index == torch.arange(self.index.shape[1], device=self.index.device)
        # Bounds are numbers on the host: copying them to a GPU as a tensor would wait for it at every step.
        full, half, _ = accumulate(self.level_sizes)
        return torch.where(own, 0, 1 + (self.index >= full).long() + (self.index >= half).long())

    def shares(self) -> dict[str, Tensor]:
        """Return the share of patches whose buddy is their own HR patch, another of full size, or of a coarser level.

        Returns:
            Scalars `own`, `full` (other patches of full size), `half` and `quarter`, which sum to 1.
        """
        origins = self.origins()
        return {name: (origins == number).float().mean() for number, name in enumerate(ORIGINS)}


def pyramid_levels(hr: Tensor, pyramid: Pyramid) -> tuple[Tensor, Tensor, Tensor]:
    """Return `hr` (B, C, H, W) itself, its half and its quarter, not clamped.

    Sides that do not divide: "official" rounds the coarser sides down as torch does, "matlab" up as MATLAB does.
    """
    if pyramid == "official":
        half, quarter = (
            F.interpolate(hr, scale_factor=scale, mode="bicubic", align_corners=False) for scale in (1 / 2, 1 / 4)
        )
    else:
        half, quarter = (_matlab_shrunk(hr, factor) for factor in (2, 4))
    return hr, half, quarter


def _matlab_shrunk(images: Tensor, factor: int) -> Tensor:
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        return bicubic.resize(images, -(-height // factor), -(-width // factor), 1 / factor)
    return bicubic.downscale(images, factor)


def _patches(images: Tensor, settings: BestBuddySettings) -> Tensor:
    return F.unfold(images, settings.patch, stride=settings.stride)


def find_best_buddies(sr: Tensor, hr: Tensor, settings: BestBuddySettings = PAPER) -> BestBuddies:
    """Search each SR patch's best buddy among all candidates of its image, exactly; of equals the first.

    Never inside autocast and never in less than float32, even when called there: in bfloat16 the official formula
    chooses another candidate for more than half of all patches.

    Args:
        sr: (B, C, H, W), any range.
        hr: the same shape.
        settings: see `BestBuddySettings`; the default holds the paper's values. A pyramid level smaller than one patch
            has no candidates.

    Raises:
        ValueError: the shapes differ or no patch fits into the images.
    """
    if sr.shape != hr.shape:
        raise ValueError(f"SR and HR must have one shape, got {tuple(sr.shape)} and {tuple(hr.shape)}")
    if min(hr.shape[-2:]) < settings.patch:
        raise ValueError(f"no patch of {settings.patch} pixels fits into images of {tuple(hr.shape[-2:])}")
    with torch.no_grad(), full_precision(sr.device):
        sr, hr = at_least_float32(sr), at_least_float32(hr)
        levels = [
            _patches(level, settings)
            for level in pyramid_levels(hr, settings.pyramid)
            if min(level.shape[-2:]) >= settings.patch
        ]
        candidates = torch.cat(levels, 2)
        alpha = settings.alpha / (settings.alpha + settings.beta)
        queries = torch.lerp(levels[0], _patches(sr, settings), alpha)
        mean = candidates.mean(2, keepdim=True)
        index = _nearest(queries - mean, candidates - mean, settings.chunk)
        chosen = candidates.gather(2, index[:, None].expand(-1, candidates.shape[1], -1))
        # In flat regions many candidates differ by less than the rounding of the product. The direct distance decides
        # whether the HR patch at the same position, usually the best one there, is nearer.
        own = (queries - levels[0]).square_().sum(1) < (queries - chosen).square_().sum(1)
        index = torch.where(own, torch.arange(index.shape[1], device=index.device), index)
        chosen = torch.where(own[:, None], levels[0], chosen)
    sizes = [level.shape[2] for level in levels]
    return BestBuddies(chosen, index, (*sizes, *(0,) * (3 - len(sizes))))


def _nearest(queries: Tensor, candidates: Tensor, chunk: int) -> Tensor:
    """Return (B, N), the index of the candidate (B, d, M) nearest to each query (B, d, N).

    No N x M matrix is kept: one buffer of `chunk` rows serves all products. |c|^2 is one more row of the
    candidates, multiplied by a column of ones, so that the product is the whole score.
    """
    (batch, _, count), blocks = queries.shape, -(-candidates.shape[2] // _BLOCK)
    padding = blocks * _BLOCK - candidates.shape[2]
    norms = F.pad(candidates.square().sum(1, keepdim=True), (0, padding), value=torch.inf)
    columns = torch.cat((F.pad(candidates, (0, padding)), norms), 1)
    rows = F.pad(-2 * queries.transpose(1, 2), (0, 1), value=1.0)
    buffer = rows.new_empty(min(chunk, count), blocks * _BLOCK)
    index = torch.empty(batch, count, dtype=torch.int64, device=rows.device)
    for image in range(batch):
        for start in range(0, count, chunk):
            part = rows[image, start : start + chunk]
            scores = torch.mm(part, columns[image], out=buffer[: len(part)]).view(len(part), blocks, _BLOCK)
            block = scores.amin(2).argmin(1)
            within = scores[torch.arange(len(part), device=rows.device), block].argmin(1)
            index[image, start : start + chunk] = block * _BLOCK + within
    return index


def distance_to_buddies(sr: Tensor, buddies: BestBuddies, settings: BestBuddySettings = PAPER) -> Tensor:
    """Return the mean |p - c| over the numbers of all SR patches (L1; gradient to `sr` alone), a scalar."""
    return F.l1_loss(_patches(at_least_float32(sr), settings), buddies.patches)


def best_buddy_loss(
    sr: Tensor,
    hr: Tensor,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    patch: int = 3,
    stride: int = 3,
    pyramid: Pyramid = "matlab",
    chunk: int = 512,
) -> Tensor:
    """Return the best-buddy loss (arXiv 2103.15295 formulas 3 and 4), a scalar with a gradient to `sr` only.

    Args:
        sr: (B, C, H, W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        alpha: weight of the distance from a candidate to the SR patch.
        beta: weight of the distance from a candidate to the HR patch at the same position.
        patch: side of the square patches, pixels.
        stride: distance between neighbouring patches, pixels.
        pyramid: how HR is shrunk to its half and quarter. matlab: antialiased bicubic, as in the paper. official:
            bicubic with a = -0.75 without antialiasing, as in the official code.
        chunk: patches of SR searched at a time; changes speed and memory, never the result.

    Raises:
        ValueError: the shapes differ, no patch fits into the images, or a value is out of range.
    """
    settings = BestBuddySettings(alpha=alpha, beta=beta, patch=patch, stride=stride, pyramid=pyramid, chunk=chunk)
    return distance_to_buddies(sr, find_best_buddies(sr, hr, settings), settings)
