import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.config import Thresholds, from_yaml
from components.evaluate.verdict import METRICS, decide, gain

BICUBIC = {"psnr_y": 28.0, "ssim_y": 0.80, "lpips": 0.35, "lr_psnr": 45.0}
WARMUP = {"psnr_y": 30.0, "ssim_y": 0.85, "lpips": 0.25, "lr_psnr": 50.0}
CHAMPION = {"psnr_y": 29.0, "ssim_y": 0.82, "lpips": 0.12, "lr_psnr": 47.0}
CHALLENGER = {"psnr_y": 29.1, "ssim_y": 0.83, "lpips": 0.10, "lr_psnr": 47.5}


def thresholds(**bounds: dict[str, float]) -> Thresholds:
    return from_yaml(Thresholds, json.dumps({"absolute": {}, "bicubic": {}, "warmup": {}, "champion": {}} | bounds))


USUAL = thresholds(
    absolute={"lr_psnr": 40, "lpips": 0.2},
    bicubic={"psnr_y": 0, "lpips": 0},
    warmup={"lpips": 0},
    champion={"lpips": 0, "psnr_y": -0.25},
)


def means(champion: dict[str, float] | None = CHAMPION, **changed: float) -> dict[str, Any]:
    found = {"bicubic": BICUBIC, "warmup": WARMUP, "challenger": CHALLENGER | changed}
    return found | ({"champion": champion} if champion else {})


def failures(decision: Any) -> list[str]:
    return [reason for reason in decision.reasons if reason.startswith("failed: ")]


def test_a_challenger_that_passes_every_threshold_is_promoted_and_each_reason_is_said() -> None:
    decision = decide(means(), USUAL)
    assert decision.verdict == "promote"
    assert decision.reasons == (
        "passed: lr_psnr 47.5000, at least 40 asked",
        "passed: lpips 0.1000, at most 0.2 asked",
        "passed: psnr_y 29.1000 is 1.1000 better than bicubic's 28.0000, better by more than 0 asked",
        "passed: lpips 0.1000 is 0.2500 better than bicubic's 0.3500, better by more than 0 asked",
        "passed: lpips 0.1000 is 0.1500 better than warmup's 0.2500, better by more than 0 asked",
        "passed: lpips 0.1000 is 0.0200 better than champion's 0.1200, better by more than 0 asked",
        "passed: psnr_y 29.1000 is 0.1000 better than champion's 29.0000, worse by less than 0.25 asked",
    )


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"lr_psnr": 39.9}, "lr_psnr 39.9000, at least 40 asked"),
        ({"lpips": 0.21}, "lpips 0.2100, at most 0.2 asked"),
        ({"psnr_y": 27.0}, "psnr_y 27.0000 is 1.0000 worse than bicubic's 28.0000, better by more than 0 asked"),
        ({"psnr_y": 28.7}, "psnr_y 28.7000 is 0.3000 worse than champion's 29.0000, worse by less than 0.25 asked"),
    ],
)
def test_one_threshold_missed_keeps_the_champion(changed: dict[str, float], failure: str) -> None:
    decision = decide(means(**changed), USUAL)
    assert decision.verdict == "keep"
    assert f"failed: {failure}" in decision.reasons


def test_a_loss_within_what_is_let_is_no_failure() -> None:
    assert decide(means(psnr_y=28.8), USUAL).verdict == "promote"


def test_a_tie_keeps_the_champion() -> None:
    decision = decide(means(champion=CHALLENGER), USUAL)
    assert decision.verdict == "keep"
    assert failures(decision) == [
        "failed: lpips 0.1000 is 0.0000 better than champion's 0.1000, better by more than 0 asked"
    ]


def test_without_a_champion_only_the_other_thresholds_are_asked_for() -> None:
    decision = decide(means(champion=None), USUAL)
    assert decision.verdict == "promote"
    assert "passed: there is no champion yet to be better than" in decision.reasons
    assert decide(means(champion=None, lpips=0.4), USUAL).verdict == "keep"


def test_no_thresholds_keep_the_champion_even_if_there_is_none() -> None:
    for found in (means(), means(champion=None)):
        decision = decide(found, thresholds())
        assert (decision.verdict, decision.reasons) == ("keep", ("failed: no thresholds are set",))


def test_a_champion_is_never_replaced_without_a_threshold_against_it() -> None:
    asked = thresholds(bicubic={"lpips": 0})
    assert decide(means(champion=None), asked).verdict == "promote"
    decision = decide(means(), asked)
    assert decision.verdict == "keep"
    assert failures(decision) == ["failed: no threshold says what a challenger must do better than the champion"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_no_number_never_promotes(metric: str, value: float) -> None:
    everywhere = dict.fromkeys(METRICS, -1e9)
    asked = thresholds(champion=everywhere)
    if math.isnan(value):
        assert decide(means(**{metric: value}), asked).verdict == "keep"
        assert (
            decide(means(**{metric: value}), thresholds(absolute={metric: -1e9 if METRICS[metric] else 1e9})).verdict
            == "keep"
        )
    other = means(champion=CHAMPION | {metric: value}, **{metric: value})
    assert decide(other, asked).verdict == "keep"
    assert any("cannot be compared" in reason for reason in decide(other, asked).reasons)


numbers = st.floats(-1000, 1000)


@given(metric=st.sampled_from(list(METRICS)), challenger=numbers, other=numbers)
def test_a_gain_is_counted_in_the_direction_that_is_better(metric: Any, challenger: float, other: float) -> None:
    better = challenger > other if METRICS[metric] else challenger < other
    assert (gain(metric, challenger, other) > 0) == better
    assert gain(metric, challenger, other) == -gain(metric, other, challenger)


values = st.fixed_dictionaries({metric: st.floats(0, 60) for metric in METRICS})
bounds = st.dictionaries(st.sampled_from(list(METRICS)), st.floats(-5, 5))


@given(values, values, bounds, st.sampled_from(list(METRICS)), st.floats(0, 10))
def test_being_better_never_loses_a_promotion(
    challenger: dict[str, float], champion: dict[str, float], asked: dict[str, float], metric: Any, more: float
) -> None:
    rules = thresholds(champion=asked, absolute=asked)
    before = decide(means(champion=champion, **challenger), rules).verdict
    improved = challenger | {metric: challenger[metric] + (more if METRICS[metric] else -more)}
    after = decide(means(champion=champion, **improved), rules).verdict
    assert (before, after) != ("promote", "keep")


@given(values, values, bounds)
def test_a_promotion_needs_every_threshold_and_nothing_else(
    challenger: dict[str, float], champion: dict[str, float], asked: dict[str, float]
) -> None:
    verdict = decide(means(champion=champion, **challenger), thresholds(champion=asked)).verdict
    passed = [gain(metric, challenger[metric], champion[metric]) > bound for metric, bound in asked.items()]  # type: ignore[arg-type]
    assert (verdict == "promote") == (bool(asked) and all(passed))
