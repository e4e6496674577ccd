"""Everything that a training run carries from one iteration to the next."""

import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import Optimisation


@dataclass(slots=True)
class TrainState:
    """Networks, optimisers and the number of iterations done. Without a discriminator it is a warm-up's state."""

    generator: Generator
    average: Generator
    """Exponential moving average of the generator: what a run delivers."""
    generator_optimiser: torch.optim.Adam
    discriminator: Discriminator | None
    discriminator_optimiser: torch.optim.Adam | None
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged values, oldest first; each with its iteration."""

    def state_dict(self) -> dict[str, Any]:
        """Return all state by reference, for a checkpoint."""
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "history": self.history,
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
        }
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.iteration = state["iteration"]
        self.history = state["history"]
        self.generator.load_state_dict(state["generator"])
        self.average.load_state_dict(state["average"])
        self.generator_optimiser.load_state_dict(state["generator_optimiser"])
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


def _adam(network: nn.Module) -> torch.optim.Adam:
    # The schedule sets the rate before each step; betas are the paper's.
    return torch.optim.Adam(network.parameters(), lr=0.0, betas=(0.9, 0.999), foreach=True)


M = TypeVar("M", bound=nn.Module)


def place(network: M, device: torch.device, *, channels_last: bool) -> M:
    """Move a network to a device, in place, with its weights in the memory order that suits it."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def new_state(
    generator: Generator, discriminator: Discriminator | None, optimisation: Optimisation, device: torch.device
) -> TrainState:
    """Place networks on a device and make their optimisers and average."""
    for network in (generator, discriminator):
        if network is not None:
            place(network, device, channels_last=optimisation.channels_last).train()
    return TrainState(
        generator=generator,
        average=copy.deepcopy(generator).requires_grad_(False),
        generator_optimiser=_adam(generator),
        discriminator=discriminator,
        discriminator_optimiser=None if discriminator is None else _adam(discriminator),
    )


def decay_at(iteration: int, decay: float) -> float:
    """Return the average's decay after so many iterations: min(decay, (1 + iteration) / (10 + iteration)).

    A young average forgets faster. With the full decay from the start, a share decay^iteration of the first, random
    weights would stay in it: 3 % after 3,500 iterations at 0.999.
    """
    return min(decay, (1 + iteration) / (10 + iteration))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move the average towards the network: average = decay * average + (1 - decay) * network, in place."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
