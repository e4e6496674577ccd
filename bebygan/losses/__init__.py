"""Losses of Beby-GAN (arXiv 2103.15295) and later: pure functions of tensors, the papers' values as defaults."""

from bebygan.losses.auto_encoded import auto_encoded_loss
from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import BestBuddies, best_buddy_loss, distance_to_buddies, find_best_buddies
from bebygan.losses.locally_discriminative import artefact_map, locally_discriminative_loss
from bebygan.losses.objective import Logits, Perceptual, generator_objective
from bebygan.losses.perceptual import perceptual_loss
from bebygan.losses.region_aware import region_mask, textured_regions
from bebygan.losses.relativistic import relativistic_discriminator_loss, relativistic_generator_loss

__all__ = [
    "BestBuddies",
    "Logits",
    "Perceptual",
    "artefact_map",
    "auto_encoded_loss",
    "back_projection_loss",
    "best_buddy_loss",
    "distance_to_buddies",
    "find_best_buddies",
    "generator_objective",
    "locally_discriminative_loss",
    "perceptual_loss",
    "region_mask",
    "relativistic_discriminator_loss",
    "relativistic_generator_loss",
    "textured_regions",
]
