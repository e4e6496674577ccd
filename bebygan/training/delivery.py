"""Which average of a run is delivered: the best by a metric of validation."""

import math
from collections.abc import Mapping

from bebygan.settings import HIGHER_IS_BETTER, Delivery
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


def keep_best(state: TrainState, measured: Mapping[str, float], deliver: Delivery) -> None:
    """Copy the result of a state to `state.best` if it is better than that one; of equal ones, the first stays."""
    found = score(measured, deliver)
    if found is not None and (state.best is None or found > state.best.score):
        weights = {name: value.clone() for name, value in state.result().state_dict().items()}
        state.best = Best(iteration=state.iteration, score=found, weights=weights)
