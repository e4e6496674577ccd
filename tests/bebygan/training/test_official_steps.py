import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bebygan.losses.best_buddy import pyramid_levels
from bebygan.losses.objective import Logits, generator_objective
from bebygan.losses.region_aware import region_mask
from bebygan.losses.relativistic import relativistic_discriminator_loss
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import BestBuddySettings, GeneratorShape, LearningRateSchedule, LossWeights, RegionSettings
from bebygan.training.schedules import learning_rate
from benchmarks import plain

SCHEDULE = LearningRateSchedule(
    shape="cosine", peak=1e-4, floor=1e-7, cycle=200_000, warmup=2_000, warmup_from=0.1, milestones=(), decay=1.0
)
BEST_BUDDY = BestBuddySettings(alpha=1, beta=1, patch=3, stride=3, pyramid="official", chunk=512)
REGION = RegionSettings(mask_from="lr", window=11, threshold=0.025)
WEIGHTS = LossWeights(best_buddy=1, back_projection=1, perceptual=0, adversarial=0.005)


class Run:
    """Generator and discriminator with their optimisers, stepped as the official code does, in two passes of D."""

    def __init__(self, generator: Generator, discriminator: Discriminator) -> None:
        self.generator, self.discriminator = generator, discriminator
        self.optimisers = [torch.optim.Adam(network.parameters()) for network in (generator, discriminator)]

    def _begin(self, iteration: int) -> None:
        for optimiser in self.optimisers:
            optimiser.zero_grad()
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(iteration, SCHEDULE, 600_000)

    def _end(self) -> None:
        for optimiser in self.optimisers:
            optimiser.step()

    def step(self, iteration: int, lr: Tensor, hr: Tensor) -> list[float]:
        """Return best-buddy, back-projection, weighted adversarial and discriminator loss; gradients stay in .grad."""
        self._begin(iteration)
        sr = self.generator(lr)
        mask = region_mask(hr, lr, **vars(REGION))
        logits = Logits(self.discriminator(hr * mask), self.discriminator(sr * mask))
        terms = generator_objective(sr, hr, lr, weights=WEIGHTS, best_buddy=BEST_BUDDY, perceptual=None, logits=logits)
        terms["total"].backward(inputs=list(self.generator.parameters()), retain_graph=True)
        judged = relativistic_discriminator_loss(logits.real, logits.fake)
        judged.backward(inputs=list(self.discriminator.parameters()))
        self._end()
        adversarial = WEIGHTS.adversarial * terms["adversarial"]
        return [loss.item() for loss in (terms["best_buddy"], terms["back_projection"], adversarial, judged)]

    def plain_step(self, iteration: int, lr: Tensor, hr: Tensor) -> list[float]:
        """The same with every formula written down as it stands, in five passes of D."""
        self._begin(iteration)
        sr = self.generator(lr)
        enlarged = F.interpolate(lr, scale_factor=4, mode="bicubic")
        mask = 1 - plain.flat_regions(enlarged, REGION.window, REGION.threshold)
        best_buddy, _ = plain.best_buddy(sr, list(pyramid_levels(hr, "official")), alpha=1, beta=1, patch=3, stride=3)
        back_projection = (plain.matlab_shrink_by_four(sr) - lr).abs().mean()
        adversarial = 0.005 * plain.generator_adversarial(self.discriminator, sr * mask, hr * mask)
        (best_buddy + back_projection + adversarial).backward()
        self.optimisers[1].zero_grad()
        judged = plain.discriminator_step(self.discriminator, sr * mask, hr * mask)
        self._end()
        return [best_buddy.item(), back_projection.item(), adversarial.item(), judged]


def test_three_steps_equal_three_plain_ones() -> None:
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2)).double()
    discriminator = Discriminator(48, 4).double()
    fast = Run(copy.deepcopy(generator), copy.deepcopy(discriminator))
    slow = Run(generator, discriminator)
    hr = F.interpolate(torch.rand(2, 3, 12, 12, dtype=torch.float64), size=(48, 48), mode="bilinear")
    hr[..., :20] = 0.5
    lr = F.interpolate(hr, scale_factor=0.25, mode="bicubic", antialias=True)
    assert 0.1 < region_mask(hr, lr, **vars(REGION)).mean() < 0.9
    for iteration in range(3):
        np.testing.assert_allclose(fast.step(iteration, lr, hr), slow.plain_step(iteration, lr, hr), rtol=0, atol=1e-12)
    for ours, theirs in zip(_parameters(fast), _parameters(slow), strict=True):
        # Adam's first steps are the sign of the gradient: where that is all rounding, they may go either way.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def _parameters(run: Run) -> list[Tensor]:
    return [*run.generator.parameters(), *run.discriminator.parameters()]


@pytest.mark.official("train3_nopcp_*")
def test_three_steps_equal_the_official_ones(official: dict[str, np.ndarray]) -> None:
    def state(prefix: str) -> dict[str, Tensor]:
        found = {name: torch.from_numpy(value) for name, value in official.items() if name.startswith(f"{prefix}.")}
        return {name.removeprefix(f"{prefix}."): value for name, value in found.items()}

    lr, hr = torch.from_numpy(official["lr"]), torch.from_numpy(official["hr"])
    exact = lr.dtype == torch.float64
    run = Run(
        Generator(GeneratorShape(blocks=1, features=8, growth=4)).to(lr.dtype), Discriminator(192, 4).to(lr.dtype)
    )
    run.generator.load_state_dict(state("G0"))
    run.discriminator.load_state_dict(state("D0"))
    np.testing.assert_allclose(run.generator(lr).detach(), official["sr1"], rtol=0, atol=1e-14 if exact else 1e-6)
    networks: dict[str, nn.Module] = {"G": run.generator, "D": run.discriminator}
    for iteration in range(3):
        losses = run.step(iteration, lr, hr)
        np.testing.assert_allclose(
            losses, official["losses"][iteration, [0, 1, 3, 4]], rtol=0, atol=1e-12 if exact else 1e-5
        )
        for kind, network in networks.items() if iteration == 0 else ():
            for name, parameter in network.named_parameters():
                expected = state(f"grad{kind}1")[name]
                atol = (1e-12 if exact else 5e-3) * expected.abs().max().item()
                torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=atol)
    for kind, network in networks.items():
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(parameter.data, state(f"{kind}3")[name], rtol=0, atol=1e-12 if exact else 1e-6)
