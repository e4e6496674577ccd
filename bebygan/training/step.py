"""One iteration of each phase."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from bebygan.distributed import mean_over_processes
from bebygan.losses.objective import Logits, Perceptual, generator_objective
from bebygan.losses.region_aware import region_mask
from bebygan.losses.relativistic import Mean, relativistic_discriminator_loss
from bebygan.networks.auto_encoder import AutoEncoder
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.dists import Dists
from bebygan.precision import at_least_float32, autocast
from bebygan.settings import GanSettings, Optimisation
from bebygan.training.loop import TrainStep
from bebygan.training.state import TrainState
from bebygan.training.update import buffers_of, update

_Part = Callable[[TrainState, Tensor, Tensor, Tensor], Mapping[str, Tensor]]
"""Adds the gradients of one part of a batch, (state, LR, HR, weight of the part), and returns named scalars."""


def _in_parts(part: _Part, optimisation: Optimisation, minimised: tuple[str, ...]) -> TrainStep:
    """Return the iteration that accumulates the gradients of a batch's parts, then updates the networks.

    Args:
        part: one pass forward and backward.
        optimisation: see `Optimisation`.
        minimised: names of the losses that gradients are taken of.
    """

    def step(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
            if optimiser is not None:
                optimiser.zero_grad()
        buffers = buffers_of(state.discriminator)
        count = optimisation.accumulate
        weight = state.guard.scale / count
        parts = [part(state, *pair, weight) for pair in zip(lr.chunk(count), hr.chunk(count), strict=True)]
        values = {name: torch.stack([each[name] for each in parts]).mean() for name in parts[0]}
        losses = [values[name] for name in minimised if name in values]
        return values | dict(update(state, optimisation, losses, buffers))

    return step


def warmup_step(optimisation: Optimisation) -> TrainStep:
    """Return the PSNR-oriented iteration: mean absolute difference to the HR crop."""

    def part(state: TrainState, lr: Tensor, hr: Tensor, weight: Tensor) -> Mapping[str, Tensor]:
        with autocast(optimisation.precision, lr.device):
            sr = state.generator(lr)
        loss = F.l1_loss(sr.float(), hr)
        torch.autograd.backward(weight * loss)
        return {"pixel": loss.detach()}

    return _in_parts(part, optimisation, ("pixel",))


def _judgement(logits: Logits, loss: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return what is logged of the discriminator: its loss, mean logits and verdicts, the share of pixels it sees."""
    real, fake = at_least_float32(logits.real.detach()), at_least_float32(logits.fake.detach())
    return {
        "discriminator": loss.detach(),
        "logit_real": real.mean(),
        "logit_fake": fake.mean(),
        "judged_real": real.sigmoid().mean(),
        "judged_fake": fake.sigmoid().mean(),
        "textured_share": mask.mean(),
    }


def gan_step(
    settings: GanSettings,
    perceptual: Perceptual | None,
    dists: Dists | None = None,
    auto_encoder: AutoEncoder | None = None,
) -> TrainStep:
    """Return Beby-GAN's iteration (arXiv 2103.15295 section 3): generator and discriminator, each once.

    Both gradients come from one pass of the discriminator over HR and one over SR; see `losses.relativistic`.

    Args:
        settings: weights and settings of the losses; where the adversarial one has no weight, the state needs no
            discriminator.
        perceptual: frozen network on the device of training; needed where its loss has a weight.
        dists: the same.
        auto_encoder: the same.
    """
    mean: Mean = mean_over_processes if settings.relativistic_mean == "global" else Tensor.mean

    def judge(discriminator: Discriminator, sr: Tensor, hr: Tensor, mask: Tensor) -> Logits:
        with autocast(settings.precision, hr.device):
            return Logits(real=discriminator(hr * mask), fake=discriminator(sr * mask))

    def learn_to_judge(discriminator: Discriminator, logits: Logits, weight: Tensor) -> Tensor:
        loss = relativistic_discriminator_loss(logits.real, logits.fake, mean)
        torch.autograd.backward(weight * loss, inputs=list(discriminator.parameters()))
        return loss

    def part(state: TrainState, lr: Tensor, hr: Tensor, weight: Tensor) -> Mapping[str, Tensor]:
        generator, discriminator = state.generator, state.discriminator
        if settings.losses.adversarial and discriminator is None:
            raise ValueError("the adversarial loss has a weight, but the state has no discriminator")
        alone = state.iteration < settings.discriminator_first
        with torch.set_grad_enabled(not alone), autocast(settings.precision, lr.device):
            sr = generator(lr)
        logits = None
        judged: dict[str, Tensor] = {}
        if settings.losses.adversarial and discriminator is not None:
            mask = region_mask(hr, lr, **vars(settings.region))
            logits = judge(discriminator, sr, hr, mask)
            if alone:
                return _judgement(logits, learn_to_judge(discriminator, logits, weight), mask)
        averaged = None
        if settings.losses.locally_discriminative:
            with torch.no_grad(), autocast(settings.precision, lr.device):
                averaged = state.average(lr)
        with autocast(settings.precision, lr.device):
            losses = generator_objective(
                sr,
                hr,
                lr,
                weights=settings.losses,
                best_buddy=settings.best_buddy,
                perceptual=perceptual,
                logits=logits,
                mean=mean,
                averaged=averaged,
                dists=dists,
                auto_encoder=auto_encoder,
            )
        parameters = list(generator.parameters())
        torch.autograd.backward(weight * losses["total"], inputs=parameters, retain_graph=logits is not None)
        if logits is not None and discriminator is not None:
            judged = _judgement(logits, learn_to_judge(discriminator, logits, weight), mask)
        return {name: loss.detach() for name, loss in losses.items()} | judged

    return _in_parts(part, settings, ("total", "discriminator"))
