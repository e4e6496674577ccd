import numpy as np
import pytest

from components.artifacts import Gain
from components.config import Metric
from components.evaluate.charts import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Series,
    anchor_charts,
    forest,
    scatters,
    smoothed,
    ticks,
)
from components.evaluate.charts import training_curves as curves

Values = dict[Metric, Series]
"""Of each photograph, by metric."""


@pytest.mark.parametrize("history", [[], [{"iteration": 1, "l1": 0.5}], [{"iteration": 1}, {"iteration": 2}]])
def test_without_logged_values_there_are_no_curves(history: list[dict[str, float]]) -> None:
    assert curves(history) == []


def test_the_delivered_iteration_is_marked_and_is_no_curve() -> None:
    history: list[dict[str, float]] = [{"iteration": number, "l1": 0.5} for number in (1, 2, 3)]
    [curve] = curves([*history, {"iteration": 3, "delivered": 2}])
    assert curve.title == "l1"
    assert curve.mark == ((LEFT + RIGHT) / 2, "delivered")


def test_curves_are_reproducible_and_skip_missing_values() -> None:
    history = [
        {"iteration": 1, "l1": 0.5},
        {"iteration": 2, "l1": 0.4, "psnr": 20.0},
        {"iteration": 3, "l1": 0.3, "psnr": 22.0},
    ]
    assert curves(history) == curves(history)
    assert [curve.title for curve in curves(history)] == ["l1", "psnr"]


def test_validation_comes_first_as_it_was_measured_and_losses_are_smoothed_with_the_raw_line_behind() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 100)
    history = [{"iteration": number, "total": noise[number], "validation.lpips": 0.2} for number in range(100)]
    validation, loss = curves(history)
    assert (validation.title, validation.x.label, validation.y.label) == ("LPIPS, validation", "iteration", "LPIPS")
    assert [kind for kind, _ in validation.lines] == ["line"]
    assert len(validation.points) == 100
    assert [kind for kind, _ in loss.lines] == ["raw", "line"]
    assert smoothed(noise).std() < noise.std() / 2


def test_smoothing_keeps_a_constant_and_a_few_values() -> None:
    assert smoothed(np.full(50, 3.0)) == pytest.approx(np.full(50, 3.0))
    assert smoothed(np.array([1.0, 5.0, 2.0])) == pytest.approx([1.0, 5.0, 2.0])


def test_a_long_training_gives_a_short_path() -> None:
    [curve] = curves([{"iteration": number, "l1": 1 / (1 + number)} for number in range(100_000)])
    assert all(path.count("L") < 300 for _, path in curve.lines)


@pytest.mark.parametrize(
    ("limits", "texts"),
    [
        ((0.0, 1.0), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        ((0.031, 0.0352), ["0.031", "0.032", "0.033", "0.034", "0.035"]),
        ((0.0, 400_000.0), ["0", "100,000", "200,000", "300,000", "400,000"]),
        ((-2.2, 2.2), ["-2", "-1", "0", "1", "2"]),
        ((0.0, 1e-7), ["0e+00", "2e-08", "4e-08", "6e-08", "8e-08", "1e-07"]),
    ],
)
def test_ticks_are_round_numbers_between_the_limits(limits: tuple[float, float], texts: list[str]) -> None:
    assert [text for _, text in ticks(*limits)] == texts


def test_gains_in_other_units_have_one_scale_on_which_the_tolerance_is_marked() -> None:
    """Both gains are one standard deviation; the allowed loss of LPIPS is two."""
    gains = [
        Gain(opponent="champion", metric=metric, mean=mean, interval=(low, 2 * mean), better=9, ties=0, worse=1)
        for metric, mean, low in (("psnr_y", 0.5, -0.1), ("lpips", 0.01, 0.001))
    ]
    drawn = forest(gains, {"psnr_y": 0.5, "lpips": 0.01}, {"lpips": -0.02}, 0.95)
    psnr, lpips = drawn.rows
    assert psnr.mean == lpips.mean > 50
    assert (psnr.state, lpips.state) == ("open", "better")
    assert psnr.bound is None
    assert lpips.bound is not None
    assert lpips.bound - 50 == pytest.approx(-2 * (lpips.mean - 50), abs=0.02)
    assert lpips.required == "may lose at most 0.02 at 95% confidence"


def test_a_gain_without_spread_or_interval_is_drawn() -> None:
    gain = Gain(opponent="bicubic", metric="lpips", mean=0.0, interval=None, better=0, ties=1, worse=0)
    [row] = forest([gain], {"lpips": 0.0}, {"lpips": 5.0}, 0.95).rows
    assert (row.mean, row.limits, row.state) == (50, None, "open")
    assert row.bound is not None
    assert row.bound <= 100


def test_a_photograph_lies_on_the_side_of_the_diagonal_that_says_which_is_better() -> None:
    values: Values = {
        "lpips": np.array([0.2, 0.1]),
        "psnr_y": np.array([30.0, 20.0]),
        "lr_psnr": np.array([40.0, 40.0]),
    }
    better: Values = {
        "lpips": np.array([0.1, 0.2]),
        "psnr_y": np.array([31.0, 19.0]),
        "lr_psnr": np.array([40.0, 40.0]),
    }
    found = scatters({"champion": values, "challenger": better}, "champion", ["a.png", "b.png"])
    assert [[point.kind for point in chart.points] for chart in found] == [
        ["better", "worse"],
        ["better", "worse"],
        ["equal", "equal"],
    ]
    assert found[0].points[0].text == "a.png: champion 0.2000, challenger 0.1000"
    for point in (point for chart in found for point in chart.points):
        assert LEFT <= point.x <= RIGHT
        assert TOP <= point.y <= BOTTOM


def test_the_challenger_is_the_last_point_of_the_history_of_champions() -> None:
    rows: list[tuple[str, dict[Metric, float]]] = [
        (f"version {number}", {"lpips": 0.3 - number / 100}) for number in range(1, 21)
    ]
    [chart] = anchor_charts([*rows, ("challenger", {"lpips": 0.05})], ["lpips"])
    assert [point.kind for point in chart.points] == ["dot"] * 20 + ["newest"]
    assert len(chart.x.ticks) <= 8
    assert chart.x.ticks[-1][1] == "challenger"
    assert chart.about.startswith("version 1: 0.2900; version 2: 0.2800")
