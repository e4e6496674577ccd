"""The generator's objective: the weighted sum of its losses (arXiv 2103.15295 section 3.4), and of later ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from bebygan.losses.auto_encoded import auto_encoded_loss
from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import PAPER, distance_to_buddies, find_best_buddies
from bebygan.losses.locally_discriminative import locally_discriminative_loss
from bebygan.losses.perceptual import perceptual_loss
from bebygan.losses.relativistic import Mean, relativistic_generator_loss
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.dists import Dists
from bebygan.networks.perceptual import Vgg
from bebygan.precision import at_least_float32
from bebygan.settings import BestBuddySettings, LossWeights

_PAPER_WEIGHTS = LossWeights()
Given = TypeVar("Given")


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


def _given(value: Given | None, otherwise: str) -> Given:
    if value is None:
        raise ValueError(otherwise)
    return value


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
    averaged: Tensor | None = None,
    dists: Dists | None = None,
    auto_encoder: AutoEncoder | None = None,
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
        averaged: SR of the averaged generator; needed where the locally discriminative weight is above 0.
        dists: needed where its weight is above 0.
        auto_encoder: needed where the auto-encoded weight is above 0.

    Returns:
        Scalars: each term of weight above 0 by its name in `LossWeights`, not weighted, their weighted sum `total`,
        and, beside the best-buddy loss, the shares of `BestBuddies.shares` as `buddies.own` and so on.

    Raises:
        ValueError: the network, the logits or the images of a term with a weight above 0 are missing.
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
        perceptual = _given(perceptual, f"the perceptual loss has weight {weights.perceptual} but no VGG was given")
        terms["perceptual"] = perceptual_loss(sr, hr, perceptual.vgg, perceptual.taps)
    if weights.adversarial:
        logits = _given(logits, f"the adversarial loss has weight {weights.adversarial} but no logits were given")
        terms["adversarial"] = relativistic_generator_loss(logits.real, logits.fake, mean)
    if weights.l1:
        terms["l1"] = F.l1_loss(at_least_float32(sr), at_least_float32(hr))
    if weights.locally_discriminative:
        averaged = _given(
            averaged,
            f"the locally discriminative loss has weight {weights.locally_discriminative} but no SR of the averaged "
            "generator was given",
        )
        terms["locally_discriminative"] = locally_discriminative_loss(sr, hr, averaged)
    if weights.dists:
        dists = _given(dists, f"DISTS has weight {weights.dists} but its network was not given")
        terms["dists"] = dists(sr, hr).mean()
    if weights.auto_encoded:
        missing = f"the auto-encoded loss has weight {weights.auto_encoded} but no auto-encoder was given"
        auto_encoder = _given(auto_encoder, missing)
        terms["auto_encoded"] = auto_encoded_loss(sr, hr, auto_encoder)
    return terms | {"total": weighted_sum(terms, weights)} | shares


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Return the sum of the scalars in `terms`, each times the weight of its name."""
    return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
