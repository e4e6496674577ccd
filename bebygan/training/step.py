"""One iteration of each phase."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from bebygan.losses.objective import Logits, Perceptual, generator_objective
from bebygan.losses.region_aware import region_mask
from bebygan.losses.relativistic import discriminator_loss
from bebygan.settings import GanSettings, Precision
from bebygan.training.loop import Step
from bebygan.training.precision import autocast
from bebygan.training.state import TrainState


def warmup_step(precision: Precision) -> Step:
    """Return the PSNR-oriented iteration: mean absolute difference to the HR crop."""

    def step(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        with autocast(precision, lr.device):
            sr = state.generator(lr)
        loss = F.l1_loss(sr.float(), hr)
        state.generator_optimiser.zero_grad()
        torch.autograd.backward(loss)
        state.generator_optimiser.step()
        return {"pixel": loss.detach()}

    return step


def _discriminator_turn(state: TrainState, logits: Logits) -> Tensor:
    """Update the discriminator by the passes that the generator's losses were made of; returns its loss."""
    if state.discriminator is None or state.discriminator_optimiser is None:
        raise ValueError("GAN training needs a state with a discriminator")
    loss = discriminator_loss(logits.real, logits.fake)
    state.discriminator_optimiser.zero_grad()
    torch.autograd.backward(loss, inputs=list(state.discriminator.parameters()))
    state.discriminator_optimiser.step()
    return loss.detach()


def gan_step(settings: GanSettings, perceptual: Perceptual | None) -> Step:
    """Return Beby-GAN's iteration (arXiv 2103.15295 section 3): generator and discriminator, each once.

    Both gradients come from one pass of the discriminator over HR and one over SR; see `losses.relativistic`.

    Args:
        settings: weights and settings of the losses; where the adversarial one has no weight, the state needs no
            discriminator.
        perceptual: frozen network on the device of training; needed where its loss has a weight.
    """

    def step(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        generator, discriminator = state.generator, state.discriminator
        with autocast(settings.precision, lr.device):
            sr = generator(lr)
        logits = None
        mask = None
        if settings.losses.adversarial and discriminator is not None:
            mask = region_mask(hr, lr, settings.region)
            with autocast(settings.precision, lr.device):
                logits = Logits(real=discriminator(hr * mask), fake=discriminator(sr * mask))
        with autocast(settings.precision, lr.device):
            losses = generator_objective(
                sr,
                hr,
                lr,
                weights=settings.losses,
                best_buddy=settings.best_buddy,
                perceptual=perceptual,
                logits=logits,
            )
        state.generator_optimiser.zero_grad()
        torch.autograd.backward(losses["total"], inputs=list(generator.parameters()), retain_graph=logits is not None)
        logged = {name: loss.detach() for name, loss in losses.items()}
        if logits is not None and mask is not None:
            logged |= {
                "discriminator": _discriminator_turn(state, logits),
                "logit_real": logits.real.detach().float().mean(),
                "logit_fake": logits.fake.detach().float().mean(),
                "textured_share": mask.mean(),
            }
        state.generator_optimiser.step()
        return logged

    return step
