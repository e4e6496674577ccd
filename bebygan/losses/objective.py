"""The generator's objective: the weighted sum of its four losses (arXiv 2103.15295 section 3.4)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import PAPER, distance_to_buddies, find_best_buddies
from bebygan.losses.perceptual import perceptual_loss
from bebygan.losses.relativistic import Mean, relativistic_generator_loss
from bebygan.networks.perceptual import Vgg
from bebygan.settings import BestBuddySettings, LossWeights

_PAPER_WEIGHTS = LossWeights()


@dataclass(frozen=True, slots=True)
class Perceptual:
    """The frozen network of the perceptual loss and the weight of each of its taps."""

    vgg: Vgg
    taps: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Logits:
    """The discriminator's logits of one batch: `real` of HR, `fake` of SR with its graph to the generator; (N, 1)."""

    real: Tensor
    fake: Tensor


def generator_objective(
    sr: Tensor,
    hr: Tensor,
    lr: Tensor,
    *,
    weights: LossWeights = _PAPER_WEIGHTS,
    best_buddy: BestBuddySettings = PAPER,
    perceptual: Perceptual | None = None,
    logits: Logits | None = None,
    mean: Mean = Tensor.mean,
) -> dict[str, Tensor]:
    """Return the generator's losses.

    Args:
        sr: (N, 3, 4H, 4W), RGB, not clamped.
        hr: the same shape, in [0, 1].
        lr: (N, 3, H, W), in [0, 1].
        weights: of the terms.
        best_buddy: settings of the best-buddy loss.
        perceptual: needed where its weight is above 0.
        logits: needed where the adversarial weight is above 0.
        mean: mean of logits over the batch, see `relativistic`.

    Returns:
        Scalars: each term of weight above 0 by its name in `LossWeights`, not weighted, their weighted sum `total`,
        and, beside the best-buddy loss, the shares of `BestBuddies.shares` as `buddies.own` and so on.

    Raises:
        ValueError: the network or the logits of a term with a weight above 0 are missing.
    """
    terms: dict[str, Tensor] = {}
    shares: dict[str, Tensor] = {}
    if weights.best_buddy:
        buddies = find_best_buddies(sr, hr, best_buddy)
        terms["best_buddy"] = distance_to_buddies(sr, buddies, best_buddy)
        shares = {f"buddies.{level}": share for level, share in buddies.shares().items()}
    if weights.back_projection:
        terms["back_projection"] = back_projection_loss(sr, lr, sr.shape[-1] // lr.shape[-1])
    if weights.perceptual:
        if perceptual is None:
            raise ValueError(f"the perceptual loss has weight {weights.perceptual} but no VGG was given")
        terms["perceptual"] = perceptual_loss(sr, hr, perceptual.vgg, perceptual.taps)
    if weights.adversarial:
        if logits is None:
            raise ValueError(f"the adversarial loss has weight {weights.adversarial} but no logits were given")
        terms["adversarial"] = relativistic_generator_loss(logits.real, logits.fake, mean)
    return terms | {"total": weighted_sum(terms, weights)} | shares


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Return the sum of the scalars in `terms`, each times the weight of its name."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
