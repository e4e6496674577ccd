"""Which average of a run is delivered, the best by a metric of validation, and when a run that gets worse stops."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

from bebygan.networks.generator import Generator
from bebygan.networks.interpolation import interpolated
from bebygan.settings import HIGHER_IS_BETTER, Delivery, StopRule
from bebygan.training.state import Best, TrainState


def score(measured: Mapping[str, float], deliver: Delivery) -> tuple[float, float] | None:
    """Return the rank of an average, higher is better; None if it cannot be chosen.

    Args:
        measured: values of validation.
        deliver: see `Delivery`.
    """
    if deliver.by == "last" or not math.isfinite(measured.get(deliver.by, math.nan)):
        return None
    value = measured[deliver.by] if deliver.by in HIGHER_IS_BETTER else -measured[deliver.by]
    floor = deliver.lr_psnr_floor
    return (0.0 if floor is None else min(measured["validation.lr_psnr"], floor)), value


def keep_best(state: TrainState, result: Generator, measured: Mapping[str, float], deliver: Delivery) -> None:
    """Copy a result of the run to `state.best` if it is better than that one; of equal ones, the first stays."""
    found = score(measured, deliver)
    if found is not None and (state.best is None or found > state.best.score):
        weights = {name: value.clone() for name, value in result.state_dict().items()}
        state.best = Best(iteration=state.iteration, score=found, weights=weights)


def choose_share(
    state: TrainState, measure: Callable[[Generator], Mapping[str, float]], shares: Sequence[float], deliver: Delivery
) -> dict[float, Mapping[str, float]]:
    """Give what the run delivers the share of the start with the best rank; of equal ones, the first stays.

    Args:
        state: after training; its best average and its share are replaced.
        measure: validates a generator.
        shares: of the start, beside that in the best average.
        deliver: see `Delivery`.

    Returns:
        What was measured, by share; {} if the run delivers its last average.
    """
    if state.best is None or not state.start:
        return {}
    weights, before, measured = state.best.weights, state.start_share, {}
    chosen: Best | None = None
    candidate = copy.deepcopy(state.average)
    for share in dict.fromkeys((before, *shares)):
        mixed = interpolated(weights, state.start, before, share)
        candidate.load_state_dict(mixed)
        measured[share] = measure(candidate)
        found = score(measured[share], deliver)
        if found is not None and (chosen is None or found > chosen.score):
            chosen, state.start_share = Best(state.best.iteration, found, mixed), share
    state.best = chosen or state.best
    return measured


def worsening(history: Sequence[Mapping[str, float]], rule: StopRule) -> dict[str, float]:
    """Return by how much the last validation exceeds the limits that a run stops for; {} for a run that goes on.

    Args:
        history: logged values, oldest first.
        rule: see `StopRule`.

    Returns:
        stopped.psnr_y: dB below the start, and stopped.lpips: above the lowest, each if it was exceeded in the last
        `rule.validations` validations.
    """
    found = {}
    for name, limit in (("psnr_y", rule.psnr_y), ("lpips", rule.lpips)):
        values = {entry["iteration"]: entry[key] for key in [f"validation.{name}"] for entry in history if key in entry}
        start = values.pop(0, math.nan)
        if limit is None or len(values) < rule.validations:
            continue
        later = list(values.values())
        losses = [start - value if name == "psnr_y" else value - min(later) for value in later]
        if all(loss > limit for loss in losses[-rule.validations :]):
            found[f"stopped.{name}"] = losses[-1]
    return found


_REASONS = {
    "stopped.psnr_y": "PSNR-Y on the validation photographs was {:.2f} dB below that of the start",
    "stopped.lpips": "LPIPS on the validation photographs was {:.4f} above the lowest of the run",
}


def stop_reason(values: Mapping[str, float], iteration: float) -> str | None:
    """Return the sentence about a run that stopped itself after an iteration with these values; None if it did not."""
    reasons = [text.format(values[name]) for name, text in _REASONS.items() if name in values]
    if not reasons:
        return None
    return (
        f"training stopped itself after iteration {iteration:.0f}: {' and '.join(reasons)} (stop_when_worse); "
        "lower the learning rate to train for longer"
    )
