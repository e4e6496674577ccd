from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bebygan.settings import LearningRateSchedule
from bebygan.training.schedules import learning_rate


def schedule(**changes: Any) -> LearningRateSchedule:
    values: dict[str, Any] = {
        "shape": "cosine",
        "peak": 1e-4,
        "floor": 1e-7,
        "cycle": 200_000,
        "warmup": 2_000,
        "warmup_from": 0.1,
        "milestones": (),
        "decay": 0.5,
    }
    return LearningRateSchedule(**values | changes)


@pytest.mark.official("lr_schedule")
def test_cosine_with_restarts_and_warmup_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    rates = [learning_rate(int(iteration), schedule(), 600_000) for iteration in official["iteration"]]
    np.testing.assert_allclose(rates, official["lr"], rtol=1e-12)


@given(st.integers(1, 200_000), st.integers(0, 2))
def test_each_cycle_repeats_the_first(iteration: int, cycle: int) -> None:
    assert learning_rate(iteration + cycle * 200_000, schedule(), 600_000) == learning_rate(
        iteration, schedule(), 600_000
    )


@given(st.integers(0, 600_000))
def test_the_rate_stays_between_floor_and_peak(iteration: int) -> None:
    assert 1e-7 <= learning_rate(iteration, schedule(), 600_000) <= 1e-4


def test_without_a_cycle_the_run_is_one() -> None:
    one = schedule(cycle=0, warmup=10)
    assert learning_rate(10, one, 100) == 1e-4
    assert learning_rate(55, one, 100) == pytest.approx((1e-4 + 1e-7) / 2)
    assert learning_rate(100, one, 100) == pytest.approx(1e-7)


def test_without_warmup_training_starts_at_the_peak() -> None:
    assert learning_rate(0, schedule(warmup=0), 10) == 1e-4
    assert learning_rate(0, schedule(warmup=0, shape="steps"), 10) == 1e-4


def test_steps_multiply_the_rate_at_each_milestone() -> None:
    steps = schedule(shape="steps", peak=2e-4, warmup=0, milestones=(50, 80), decay=0.5)
    assert [learning_rate(iteration, steps, 100) for iteration in (0, 49, 50, 79, 80, 99)] == [
        2e-4, 2e-4, 1e-4, 1e-4, 5e-5, 5e-5,
    ]  # fmt: skip


def test_steps_without_milestones_are_constant_after_a_linear_warmup() -> None:
    steps = schedule(shape="steps", peak=1.0, floor=0.0, warmup=4, warmup_from=0.2)
    rates = [learning_rate(iteration, steps, 100) for iteration in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
