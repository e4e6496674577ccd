"""From gradients to weights: average, check, clip, step. A step with non-finite numbers changes nothing.

That decision stays on the device, as a tensor that the fused optimisers read, so no step waits for the host.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from bebygan.distributed import average_over_processes
from bebygan.precision import resolve
from bebygan.settings import Optimisation
from bebygan.training.state import TrainState, decay_at, update_average

_STEPS_TO_DOUBLE = 2000
"""Steps without overflow after which fp16's scale doubles, as in torch's GradScaler."""
_CLIP_MARGIN = 1e-6
"""As torch.nn.utils.clip_grad_norm_ adds to the norm."""


def buffers_of(network: nn.Module | None) -> list[Tensor]:
    """Return copies of a network's buffers, which a forward pass changes even if the step is skipped."""
    return [] if network is None else [buffer.clone() for buffer in network.buffers()]


def _step(optimiser: torch.optim.Adam, divisor: Tensor | None, skip: Tensor) -> None:
    """Step with gradients divided by `divisor`, or not at all where `skip` is 1."""
    # Adam reads these attributes, which torch's GradScaler sets.
    optimiser.grad_scale, optimiser.found_inf = divisor, skip  # type: ignore[attr-defined]
    optimiser.step()


def _rescale(state: TrainState, skip: Tensor) -> None:
    """Halve fp16's scale after an overflow, double it after many steps without one."""
    guard = state.guard
    steps = (guard.since_change + 1) * (1 - skip)
    grow = steps >= _STEPS_TO_DOUBLE
    guard.scale = torch.where(skip > 0, guard.scale / 2, torch.where(grow, guard.scale * 2, guard.scale))
    guard.since_change = torch.where(grow, 0.0, steps)


@torch.no_grad()
def update(
    state: TrainState, optimisation: Optimisation, losses: Sequence[Tensor], buffers: Sequence[Tensor]
) -> Mapping[str, Tensor]:
    """Step every network that has gradients, and update the moving average, unless a loss or gradient is not finite.

    Args:
        state: its gradients are those of the losses times `state.guard.scale`, of this process's share of the batch.
        optimisation: see `Optimisation`.
        losses: scalars that gradients were taken of.
        buffers: of the discriminator, as they were before this iteration.

    Returns:
        Scalars: the norm of each network's gradient before it is clipped, and the scale where fp16 uses one.
    """
    pairs: dict[str, tuple[nn.Module, torch.optim.Adam]] = {"generator": (state.generator, state.generator_optimiser)}
    if state.discriminator is not None and state.discriminator_optimiser is not None:
        pairs["discriminator"] = (state.discriminator, state.discriminator_optimiser)
    gradients = {
        name: [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        for name, (network, _) in pairs.items()
    }
    gradients = {name: found for name, found in gradients.items() if found}
    every = [gradient for found in gradients.values() for gradient in found]
    total = torch.stack([loss.to(every[0].dtype) for loss in losses]).sum()
    average_over_processes([*every, total])
    norms = {name: get_total_norm(found) for name, found in gradients.items()}
    skip = 1 - torch.stack([total, *norms.values()]).isfinite().all().float()
    scaled = resolve(optimisation.precision, total.device) == "fp16"
    if scaled:
        norms = {name: norm / state.guard.scale for name, norm in norms.items()}
    for name, norm in norms.items():
        divisor = state.guard.scale if scaled else None
        if optimisation.clip_norm:
            excess = ((norm + _CLIP_MARGIN) / optimisation.clip_norm).clamp_min(1).float()
            divisor = excess if divisor is None else divisor * excess
        _step(pairs[name][1], divisor, skip)
    if state.discriminator is not None:
        for now, before in zip(state.discriminator.buffers(), buffers, strict=True):
            now.copy_(torch.where(skip > 0, before, now))
    decay = decay_at(state.iteration, optimisation.ema_decay)
    update_average(state.average, state.generator, (1 - decay) * (1 - skip))
    state.guard.skipped += skip
    state.guard.in_a_row = (state.guard.in_a_row + 1) * skip
    logged = {f"gradient_norm.{name}": norm for name, norm in norms.items()}
    if scaled:
        logged["loss_scale"] = state.guard.scale
        _rescale(state, skip)
    return logged
