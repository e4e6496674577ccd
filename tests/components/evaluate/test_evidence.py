import itertools
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap, norm, t

from components.comparison import METRICS
from components.config import load_params
from components.evaluate.evidence import expanded_tail, gains_of, intervals, photographs_required
from components.evaluate.verdict import Measured, judge

Array = npt.NDArray[np.float64]
CONFIDENCE = 0.95
SHIPPED = load_params(overrides=["evaluate.thresholds.absolute={}"]).evaluate
few = st.integers(6, 10).flatmap(lambda count: arrays(np.float64, count, elements=st.integers(-8, 8).map(float)))


def sign_flip_p(differences: Array, bound: float) -> float:
    """The share of all flips of signs that give no smaller sum than the one observed: the test, by its definition."""
    shifted = differences - bound
    flips = np.array(list(itertools.product((1.0, -1.0), repeat=len(shifted))))
    return float((flips @ shifted >= shifted.sum() - 1e-9).mean())


def limits(differences: Array, confidence: float = CONFIDENCE) -> tuple[float, float]:
    found = intervals(differences[:, None], confidence)
    assert found is not None
    return float(found[0, 0]), float(found[1, 0])


@settings(deadline=None)
@given(few, st.integers(-17, 17).map(lambda half: half / 2 + 0.123), st.sampled_from([0.8, 0.9, 0.95]))
def test_the_lower_limit_exceeds_a_bound_exactly_if_the_sign_flip_test_rejects_it(
    differences: Array, bound: float, confidence: float
) -> None:
    low, high = limits(differences, confidence)
    tail = (1 - confidence) / 2 + 1e-12
    assert (low > bound) == (sign_flip_p(differences, bound) <= tail)
    assert (high < bound) == (sign_flip_p(-differences, -bound) <= tail)


@settings(deadline=None)
@given(
    st.sampled_from([6, 9, 12, 20, 30]).flatmap(lambda count: arrays(np.float64, count, elements=st.floats(-50, 50)))
)
def test_an_interval_is_ordered_and_mirrored_and_contains_the_mean(differences: Array) -> None:
    low, high = limits(differences)
    assert low - 1e-9 <= differences.mean() <= high + 1e-9
    if len(differences) < 20:
        mirrored = limits(-differences)
        assert mirrored == pytest.approx((-high, -low), abs=1e-9)


def test_the_bootstrap_agrees_with_scipy() -> None:
    for seed, count in ((1, 20), (2, 57), (3, 400)):
        differences = np.random.default_rng(seed).gamma(1.5, 0.01, count) - 0.012
        expected = bootstrap(
            (differences,),
            np.mean,
            confidence_level=1 - 2 * expanded_tail(0.025, count),
            n_resamples=40_000,
            method="percentile",
            rng=seed,
        ).confidence_interval
        width = expected.high - expected.low
        assert limits(differences) == pytest.approx(tuple(expected), abs=0.03 * width)


@pytest.mark.parametrize("count", [20, 28, 200])
@pytest.mark.parametrize("tail", [0.1, 0.025, 0.005])
def test_the_expanded_tail_is_as_far_out_as_the_quantile_of_student(count: int, tail: float) -> None:
    expected = norm.cdf(t.ppf(tail, count - 1) * np.sqrt(count / (count - 1)))
    assert expanded_tail(tail, count) == pytest.approx(expected, rel=0.03)


def test_the_bootstrap_gives_the_same_interval_each_time_and_resamples_in_blocks() -> None:
    differences = np.random.default_rng(4).normal(size=(900, 2))
    first, second = (intervals(differences, CONFIDENCE) for _ in range(2))
    assert first is not None
    assert second is not None
    assert np.array_equal(first, second)
    error = differences.std(0) / 30
    assert first == pytest.approx(differences.mean(0) + np.array([[-1.96], [1.96]]) * error, abs=0.005)


@pytest.mark.parametrize(("confidence", "required"), [(0.8, 6), (0.95, 6), (0.97, 7), (0.99, 8), (0.999, 11)])
def test_photographs_that_are_needed_follow_from_the_confidence(confidence: float, required: int) -> None:
    assert photographs_required(confidence) == required
    assert intervals(np.ones((required - 1, 1)), confidence) is None
    assert limits(np.ones(required), confidence) == (1.0, 1.0)


def table(differences: Array) -> dict[Any, Array]:
    """Values of a challenger that is better by `differences` in every metric, and of a champion."""
    better = np.array([1 if higher else -1 for higher in METRICS.values()])
    base = np.full((len(differences), len(METRICS)), 0.5)
    return {"challenger": base + differences * better, "champion": base}


def test_gains_are_counted_in_the_better_direction() -> None:
    differences = np.array([0.25, 0.25, 0.0, -0.125, 0.25, 0.25, 0.25])[:, None]
    for gain, metric in zip(gains_of(table(differences), ["champion"], CONFIDENCE), METRICS, strict=True):
        assert (gain.opponent, gain.metric, gain.better, gain.ties, gain.worse) == ("champion", metric, 5, 1, 1)
        assert gain.mean == pytest.approx(differences.mean())


def promoted(differences: Array) -> bool:
    """Judge values whose gains in every metric are `differences`, with the shipped thresholds against a champion."""
    values = table(differences)
    gains = gains_of(values, ["champion"], SHIPPED.confidence)
    means: Any = {name: dict(zip(METRICS, rows.mean(0), strict=True)) for name, rows in values.items()}
    known = Measured(means=means, gains=gains, photographs=len(differences), objective="psnr")
    return judge(known, SHIPPED.thresholds, SHIPPED.confidence, {})[0] == "promote"


@pytest.mark.parametrize("photographs", [8, 28])
def test_two_models_of_the_same_quality_are_rarely_mistaken(photographs: int) -> None:
    random = np.random.default_rng(5)
    bound = SHIPPED.thresholds.champion["lpips"]
    trials = 300
    # The hardest case: the true gain is the required one. Heavy tails, as photographs have.
    count = sum(
        promoted(bound + 0.01 * random.standard_t(4, (photographs, 1)).repeat(len(METRICS), 1)) for _ in range(trials)
    )
    assert count <= 0.05 * trials


def test_a_planted_gain_is_found() -> None:
    random = np.random.default_rng(6)
    found = [promoted(random.normal(0.012, 0.01, (28, 1)).repeat(len(METRICS), 1)) for _ in range(40)]
    assert sum(found) >= 38


def test_evidence_for_a_thousand_photographs_takes_less_than_a_second() -> None:
    differences = np.random.default_rng(7).normal(size=(1000, 6))
    start = time.process_time()
    assert intervals(differences, CONFIDENCE) is not None
    assert time.process_time() - start < 1


def test_the_exact_test_of_nineteen_photographs_takes_less_than_a_second() -> None:
    differences = np.random.default_rng(8).normal(size=(19, 6))
    start = time.process_time()
    assert intervals(differences, CONFIDENCE) is not None
    assert time.process_time() - start < 1
