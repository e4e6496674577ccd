"""Everything that a training run carries from one iteration to the next."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bebygan.distributed import sum_over_processes
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.networks.interpolation import interpolated
from bebygan.precision import compile_in_place, resolve
from bebygan.settings import Optimisation, Precision

FIRST_SCALE = 2.0**16
"""First factor of the losses in fp16, as in torch's GradScaler."""


@dataclass(slots=True)
class Guard:
    """Counts of steps that were skipped because losses or gradients were not finite, on the device.

    The host reads them only when it logs, so no step waits for the device.
    """

    skipped: Tensor
    """Steps skipped so far."""
    in_a_row: Tensor
    """Steps skipped since the last one that was not."""
    scale: Tensor
    """Factor of the losses before gradients are computed: 1 except in fp16."""
    since_change: Tensor
    """Steps since the scale last changed."""


def _new_guard(precision: Precision, device: torch.device) -> Guard:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=device)

    scale = FIRST_SCALE if resolve(precision, device) == "fp16" else 1.0
    return Guard(skipped=number(0), in_a_row=number(0), scale=number(scale), since_change=number(0))


@dataclass(slots=True)
class Best:
    """The best average of a run so far, see `training.delivery`."""

    iteration: int
    score: tuple[float, float]
    """Higher is better."""
    weights: dict[str, Tensor]
    """Its `state_dict`."""


@dataclass(slots=True)
class TrainState:
    """Networks, optimisers and the number of iterations done. Without a discriminator it is a warm-up's state."""

    generator: Generator
    average: Generator
    """Exponential moving average of the generator."""
    start: dict[str, Tensor]
    """The generator's weights before training; empty if the result cannot have a share of them."""
    start_share: float
    """Of the weights in the result."""
    generator_optimiser: torch.optim.Adam
    discriminator: Discriminator | None
    discriminator_optimiser: torch.optim.Adam | None
    guard: Guard
    iteration: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged values, oldest first; each with its iteration."""
    best: Best | None = None
    """What the run delivers, unless it delivers the last average or none was measured yet."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Sum over all processes and count, (2,) float64, of each scalar since values were last logged."""

    @property
    def stopped(self) -> bool:
        """Whether the run has stopped itself, see `training.delivery.worsening`."""
        return bool(self.history) and any(name.startswith("stopped.") for name in self.history[-1])

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add the scalars of an iteration to `sums`, without waiting for the device; those not finite are left out."""
        scalars = torch.stack([value.double() for value in values.values()])
        finite = scalars.isfinite()
        pairs = sum_over_processes(torch.stack([scalars.where(finite, 0.0), finite.double()]))
        for name, pair in zip(values, pairs.unbind(1), strict=True):
            self.sums[name] = self.sums.get(name, 0) + pair

    def tensors(self) -> Iterator[Tensor]:
        """Yield the weights and buffers of all networks."""
        for network in (self.generator, self.average, self.discriminator):
            if network is not None:
                yield from (parameter.data for parameter in network.parameters())
                yield from network.buffers()

    @torch.no_grad()
    def result(self) -> Generator:
        """Return the average, mixed with the start: see `Optimisation.start_share`."""
        if not self.start_share:
            return self.average
        mixed = copy.deepcopy(self.average)
        mixed.load_state_dict(interpolated(mixed.state_dict(), self.start, 0.0, self.start_share))
        return mixed

    def delivered(self) -> tuple[Generator, int]:
        """Return the generator that the run delivers, and its iteration."""
        if self.best is None:
            return self.result(), self.iteration
        generator = copy.deepcopy(self.average)
        generator.load_state_dict(self.best.weights)
        return generator, self.best.iteration

    def state_dict(self) -> dict[str, Any]:
        """Return all state by reference, for a checkpoint."""
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "history": self.history,
            "generator": self.generator.state_dict(),
            "average": self.average.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "guard": asdict(self.guard),
            "sums": self.sums,
        }
        if self.best is not None:
            best = self.best
            state["best"] = {"iteration": best.iteration, "score": best.score, "weights": best.weights}
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
        device = self.guard.scale.device
        self.guard = Guard(**{name: value.to(device) for name, value in state["guard"].items()})
        self.sums = {name: value.to(device) for name, value in state.get("sums", {}).items()}
        self.best = Best(**state["best"]) if "best" in state else None
        if self.discriminator is not None and self.discriminator_optimiser is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])


def _adam(network: nn.Module, betas: tuple[float, float]) -> torch.optim.Adam:
    # The schedule sets the rate before each step. Only the fused kernels can skip a step on the device.
    return torch.optim.Adam(network.parameters(), lr=0.0, betas=betas, fused=True)


M = TypeVar("M", bound=nn.Module)


def place(network: M, device: torch.device, *, channels_last: bool) -> M:
    """Move a network to a device, in place, with its weights in the memory order that suits it."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return network.to(device).to(memory_format=memory_format)  # type: ignore[call-overload, no-any-return]


def new_state(
    generator: Generator, discriminator: Discriminator | None, optimisation: Optimisation, device: torch.device
) -> TrainState:
    """Move networks to a device, create their optimisers and the moving average, and compile them if configured."""
    networks = [network for network in (generator, discriminator) if network is not None]
    for network in networks:
        place(network, device, channels_last=optimisation.channels_last).train()
    average = copy.deepcopy(generator).requires_grad_(False)
    share = optimisation.start_share
    mixed = share or optimisation.start_shares
    start = {name: weights.clone() for name, weights in average.state_dict().items()} if mixed else {}
    if optimisation.compile:
        for network in networks:
            compile_in_place(network)
    return TrainState(
        generator=generator,
        average=average,
        start=start,
        start_share=share,
        generator_optimiser=_adam(generator, optimisation.betas),
        discriminator=discriminator,
        discriminator_optimiser=None if discriminator is None else _adam(discriminator, optimisation.betas),
        guard=_new_guard(optimisation.precision, device),
    )


def decay_at(iteration: int, decay: float) -> float:
    """Return the moving average's decay at an iteration: min(decay, (1 + iteration) / (10 + iteration)).

    A young average forgets faster. With the full decay from the start, a share decay^iteration of the first, random
    weights would stay in it: 3 % after 3,500 iterations at 0.999.
    """
    return min(decay, (1 + iteration) / (10 + iteration))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, weight: Tensor) -> None:
    """Move the average towards the network: average += weight * (network - average), in place.

    Args:
        average: changed.
        network: of the same parameters.
        weight: scalar in [0, 1], on their device; 0 changes nothing.
    """
    averaged: list[Tensor] = [parameter.data for parameter in average.parameters()]
    current: list[Tensor] = [parameter.data for parameter in network.parameters()]
    difference = torch._foreach_sub(current, averaged)
    torch._foreach_mul_(difference, weight)
    torch._foreach_add_(averaged, difference)
