"""Learning rate over the iterations."""

import math

from bebygan.settings import LearningRateSchedule


def learning_rate(iteration: int, schedule: LearningRateSchedule, iterations: int) -> float:
    """Return the learning rate in force at an iteration.

    The cosine is the official one (Simple-SR, cosine with restarts and linear warm-up): each cycle ends on the floor
    itself, so that the second cycle of 200,000 starts at iteration 200,001.

    Args:
        iteration: counted from 0.
        schedule: see `LearningRateSchedule`.
        iterations: of the whole run; the length of the cycle where `schedule.cycle` is 0.
    """
    if schedule.shape == "steps":
        passed = sum(iteration >= milestone for milestone in schedule.milestones)
        return _warm(iteration, schedule, 0.0, schedule.peak * schedule.decay**passed)
    cycle = schedule.cycle or iterations
    position = (iteration - 1) % cycle + 1 if iteration else 0
    if position <= schedule.warmup:
        return _warm(position, schedule, schedule.floor, schedule.peak)
    progress = (position - schedule.warmup) / (cycle - schedule.warmup)
    return schedule.floor + (schedule.peak - schedule.floor) * (1 + math.cos(math.pi * progress)) / 2


def _warm(position: int, schedule: LearningRateSchedule, floor: float, rate: float) -> float:
    """Return `rate`, or during the warm-up its part on the line up to it."""
    if position >= schedule.warmup:
        return rate
    share = schedule.warmup_from + (1 - schedule.warmup_from) * position / schedule.warmup
    return floor + (rate - floor) * share
