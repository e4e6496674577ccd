import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.config import Thresholds, from_yaml
from components.evaluate.verdict import METRICS, gain, judge

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


def verdict(means: dict[str, Any], thresholds: Thresholds) -> str:
    return judge(means, thresholds)[0]  # type: ignore[arg-type]


def failures(reasons: tuple[str, ...]) -> list[str]:
    return [reason for reason in reasons if reason.startswith("failed: ")]


def test_a_challenger_that_passes_every_threshold_is_promoted_with_all_reasons() -> None:
    found, reasons = judge(means(), USUAL)
    assert found == "promote"
    assert reasons == (
        "passed: lr_psnr 47.5000, required: at least 40",
        "passed: lpips 0.1000, required: at most 0.2",
        "passed: psnr_y 29.1000, bicubic 28.0000: gain +1.1000, required: more than 0",
        "passed: lpips 0.1000, bicubic 0.3500: gain +0.2500, required: more than 0",
        "passed: lpips 0.1000, warmup 0.2500: gain +0.1500, required: more than 0",
        "passed: lpips 0.1000, champion 0.1200: gain +0.0200, required: more than 0",
        "passed: psnr_y 29.1000, champion 29.0000: gain +0.1000, required: more than -0.25",
    )


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"lr_psnr": 39.9}, "lr_psnr 39.9000, required: at least 40"),
        ({"lpips": 0.21}, "lpips 0.2100, required: at most 0.2"),
        ({"psnr_y": 27.0}, "psnr_y 27.0000, bicubic 28.0000: gain -1.0000, required: more than 0"),
        ({"psnr_y": 28.7}, "psnr_y 28.7000, champion 29.0000: gain -0.3000, required: more than -0.25"),
    ],
)
def test_one_failed_threshold_keeps_the_champion(changed: dict[str, float], failure: str) -> None:
    found, reasons = judge(means(**changed), USUAL)
    assert found == "keep"
    assert f"failed: {failure}" in reasons


def test_a_loss_within_a_negative_threshold_passes() -> None:
    assert verdict(means(psnr_y=28.8), USUAL) == "promote"


def test_a_tie_keeps_the_champion() -> None:
    found, reasons = judge(means(champion=CHALLENGER), USUAL)
    assert found == "keep"
    assert failures(reasons) == ["failed: lpips 0.1000, champion 0.1000: gain +0.0000, required: more than 0"]


def test_without_a_champion_only_the_other_thresholds_apply() -> None:
    found, reasons = judge(means(champion=None), USUAL)
    assert found == "promote"
    assert "passed: there is no champion to compare with" in reasons
    assert verdict(means(champion=None, lpips=0.4), USUAL) == "keep"


def test_no_thresholds_keep_the_champion_even_if_there_is_none() -> None:
    for found in (means(), means(champion=None)):
        assert judge(found, thresholds()) == ("keep", ("failed: no thresholds are set",))


def test_a_champion_is_never_replaced_without_a_threshold_against_it() -> None:
    asked = thresholds(bicubic={"lpips": 0})
    assert verdict(means(champion=None), asked) == "promote"
    found, reasons = judge(means(), asked)
    assert found == "keep"
    assert failures(reasons) == ["failed: no threshold compares with the champion: set evaluate.thresholds.champion"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_challenger_with_nan_is_never_promoted(metric: str, value: float) -> None:
    everywhere = dict.fromkeys(METRICS, -1e9)
    asked = thresholds(champion=everywhere)
    if math.isnan(value):
        assert verdict(means(**{metric: value}), asked) == "keep"
        assert (
            verdict(means(**{metric: value}), thresholds(absolute={metric: -1e9 if METRICS[metric] else 1e9})) == "keep"
        )
    other = means(champion=CHAMPION | {metric: value}, **{metric: value})
    assert verdict(other, asked) == "keep"
    assert any("cannot be compared" in reason for reason in judge(other, asked)[1])


numbers = st.floats(-1000, 1000)


@given(metric=st.sampled_from(list(METRICS)), challenger=numbers, other=numbers)
def test_a_gain_is_positive_in_the_better_direction(metric: Any, challenger: float, other: float) -> None:
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
    before = verdict(means(champion=champion, **challenger), rules)
    improved = challenger | {metric: challenger[metric] + (more if METRICS[metric] else -more)}
    after = verdict(means(champion=champion, **improved), rules)
    assert (before, after) != ("promote", "keep")


@given(values, values, bounds)
def test_a_promotion_needs_every_threshold_and_nothing_else(
    challenger: dict[str, float], champion: dict[str, float], asked: dict[str, float]
) -> None:
    found = verdict(means(champion=champion, **challenger), thresholds(champion=asked))
    passed = [gain(metric, challenger[metric], champion[metric]) > bound for metric, bound in asked.items()]  # type: ignore[arg-type]
    assert (found == "promote") == (bool(asked) and all(passed))
