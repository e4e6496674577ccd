import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bebygan.settings import Objective
from components.artifacts import Gain
from components.comparison import METRICS
from components.config import Thresholds, from_yaml, load_params
from components.evaluate.verdict import Measured, judge, summary_of

# Metrics that no test is about.
OTHERS = dict.fromkeys(METRICS, 0.0)
BICUBIC = OTHERS | {"psnr_y": 28.0, "ssim_y": 0.80, "lpips": 0.35, "lr_psnr": 45.0}
WARMUP = OTHERS | {"psnr_y": 30.0, "ssim_y": 0.85, "lpips": 0.25, "lr_psnr": 50.0}
CHAMPION = OTHERS | {"psnr_y": 29.0, "ssim_y": 0.82, "lpips": 0.12, "lr_psnr": 47.0}
CHALLENGER = OTHERS | {"psnr_y": 29.1, "ssim_y": 0.83, "lpips": 0.10, "lr_psnr": 47.5}
CONFIDENCE = 0.95


def thresholds(**bounds: Any) -> Thresholds:
    return from_yaml(Thresholds, json.dumps({"absolute": {}, "bicubic": {}, "warmup": {}, "champion": {}} | bounds))


USUAL = thresholds(
    absolute={"lr_psnr": 40, "lpips": 0.2},
    bicubic={"psnr_y": 0, "lpips": 0},
    warmup={"psnr": {"lpips": 0}},
    champion={"lpips": 0, "psnr_y": -0.25},
)
SHIPPED = load_params().evaluate.thresholds


def gain(metric: Any, challenger: float, other: float) -> float:
    return challenger - other if METRICS[metric] else other - challenger


def compared(
    rows: dict[str, Any], *, photographs: int = 12, spread: float = 0.0, objective: Objective = "psnr"
) -> Measured:
    """What would be measured if the mean gains were those of the rows, with intervals of a half width."""
    gains = []
    for opponent in [name for name in rows if name != "challenger"]:
        for metric in METRICS:
            mean = gain(metric, rows["challenger"][metric], rows[opponent][metric])
            same = rows["challenger"] == rows[opponent]
            gains.append(
                Gain(
                    opponent=opponent,  # type: ignore[arg-type]
                    metric=metric,
                    mean=mean,
                    interval=(mean - spread, mean + spread) if photographs >= 6 else None,
                    better=0 if same else photographs,
                    ties=photographs if same else 0,
                    worse=0,
                )
            )
    return Measured(means=rows, gains=gains, photographs=photographs, objective=objective)  # type: ignore[arg-type]


def means(champion: dict[str, float] | None = CHAMPION, **changed: float) -> dict[str, Any]:
    found = {"bicubic": BICUBIC, "warmup": WARMUP, "challenger": CHALLENGER | changed}
    return found | ({"champion": champion} if champion else {})


def verdict(rows: dict[str, Any], thresholds: Thresholds, **changed: Any) -> str:
    return judge(compared(rows, **changed), thresholds, CONFIDENCE, {})[0]


def failures(reasons: tuple[str, ...]) -> list[str]:
    return [reason for reason in reasons if reason.startswith("failed: ")]


def test_a_challenger_that_passes_every_threshold_is_promoted_with_all_reasons() -> None:
    found, reasons = judge(compared(means(), spread=0.01), USUAL, CONFIDENCE, {})
    assert found == "promote"
    assert reasons == (
        "passed: lr_psnr 47.5000, required: at least 40",
        "passed: lpips 0.1000, required: at most 0.2",
        "passed: psnr_y 29.1000, bicubic 28.0000: gain +1.1000, required: more than 0",
        "passed: lpips 0.1000, bicubic 0.3500: gain +0.2500, required: more than 0",
        "passed: lpips 0.1000, warmup 0.2500: gain +0.1500, required: more than 0",
        "passed: lpips 0.1000, champion 0.1200: gain +0.0200 [+0.0100, +0.0300], required: more than 0 "
        "at 95% confidence (what another seed alone can gain is unknown: bebygan calibrate measures it)",
        "passed: psnr_y 29.1000, champion 29.0000: gain +0.1000 [+0.0900, +0.1100], required: more than -0.25 "
        "at 95% confidence",
    )


@pytest.mark.parametrize(
    ("changed", "failure"),
    [
        ({"lr_psnr": 39.9}, "lr_psnr 39.9000, required: at least 40"),
        ({"lpips": 0.21}, "lpips 0.2100, required: at most 0.2"),
        ({"psnr_y": 27.0}, "psnr_y 27.0000, bicubic 28.0000: gain -1.0000, required: more than 0"),
        (
            {"psnr_y": 28.7},
            "psnr_y 28.7000, champion 29.0000: gain -0.3000 [-0.3000, -0.3000], required: more than -0.25 "
            "at 95% confidence",
        ),
    ],
)
def test_one_failed_threshold_keeps_the_champion(changed: dict[str, float], failure: str) -> None:
    found, reasons = judge(compared(means(**changed)), USUAL, CONFIDENCE, {})
    assert found == "keep"
    assert f"failed: {failure}" in reasons


def test_a_loss_within_a_negative_threshold_passes() -> None:
    assert verdict(means(psnr_y=28.8), USUAL) == "promote"


def test_a_gain_over_the_champion_must_be_sure() -> None:
    assert verdict(means(), USUAL, spread=0.019) == "promote"
    assert verdict(means(), USUAL, spread=0.021) == "keep"


def test_an_allowed_loss_against_the_champion_must_be_sure_not_to_be_exceeded() -> None:
    assert verdict(means(psnr_y=28.85), USUAL, spread=0.01) == "promote"
    assert verdict(means(psnr_y=28.76), USUAL, spread=0.015) == "keep"


def test_a_required_gain_must_exceed_what_another_seed_alone_can_gain() -> None:
    measured = compared(means(), spread=0.001)
    assert judge(measured, USUAL, CONFIDENCE, {"lpips": 0.018})[0] == "promote"
    found, reasons = judge(measured, USUAL, CONFIDENCE, {"lpips": 0.0195})
    assert found == "keep"
    assert failures(reasons) == [
        "failed: lpips 0.1000, champion 0.1200: gain +0.0200 [+0.0190, +0.0210], required: more than 0.0195 at 95% "
        "confidence (which another seed alone can gain)"
    ]


def test_noise_below_the_threshold_and_noise_of_a_tolerated_loss_change_nothing() -> None:
    measured = compared(means(), spread=0.001)
    asked = thresholds(champion={"lpips": 0.01, "psnr_y": -0.25})
    without = judge(measured, asked, CONFIDENCE, {"lpips": 0.0})
    assert judge(measured, asked, CONFIDENCE, {"lpips": 0.005, "psnr_y": 3.0}) == without


def test_bicubic_and_warmup_are_compared_by_means_alone() -> None:
    assert verdict(means(champion=None), USUAL, spread=9.0) == "promote"
    assert verdict(means(champion=None), USUAL, photographs=1) == "promote"


@pytest.mark.parametrize("photographs", [0, 1, 5])
def test_with_too_few_photographs_the_champion_stays(photographs: int) -> None:
    measured = compared(means(), photographs=photographs)
    found, reasons = judge(measured, USUAL, CONFIDENCE, {})
    assert found == "keep"
    assert failures(reasons) == [f"failed: too few photographs to tell ({photographs} held out, 6 are needed)"]
    said = summary_of(found, reasons, measured.gains, USUAL, "3")
    assert said == f"Version 3 stays champion: too few photographs to tell ({photographs} held out, 6 are needed)."


@pytest.mark.parametrize("bound", [0.0, -0.5])
def test_an_equal_challenger_is_never_promoted(bound: float) -> None:
    found, reasons = judge(compared(means(champion=CHALLENGER)), thresholds(champion={"lpips": bound}), CONFIDENCE, {})
    assert found == "keep"
    assert failures(reasons) == ["failed: challenger and champion measure the same on every photograph"]


def test_without_a_champion_only_the_other_thresholds_apply() -> None:
    found, reasons = judge(compared(means(champion=None)), USUAL, CONFIDENCE, {})
    assert found == "promote"
    assert "passed: there is no champion to compare with" in reasons
    assert verdict(means(champion=None, lpips=0.4), USUAL) == "keep"


def test_no_thresholds_keep_the_champion_even_if_there_is_none() -> None:
    for found in (means(), means(champion=None)):
        assert judge(compared(found), thresholds(), CONFIDENCE, {}) == ("keep", ("failed: no thresholds are set",))


def test_a_champion_is_never_replaced_without_a_threshold_against_it() -> None:
    asked = thresholds(bicubic={"lpips": 0})
    assert verdict(means(champion=None), asked) == "promote"
    found, reasons = judge(compared(means()), asked, CONFIDENCE, {})
    assert found == "keep"
    assert failures(reasons) == ["failed: no threshold compares with the champion: set evaluate.thresholds.champion"]


def test_the_threshold_against_the_start_depends_on_what_it_was_trained_for() -> None:
    asked = thresholds(warmup={"psnr": {"lpips": 0}, "perceptual": {"lpips": -0.01, "psnr_y": 0.5}})
    worse = means(champion=None, lpips=0.255, psnr_y=31.0)
    assert verdict(worse, asked, objective="psnr") == "keep"
    assert verdict(worse, asked, objective="perceptual") == "promote"
    assert verdict(means(champion=None, lpips=0.255, psnr_y=30.4), asked, objective="perceptual") == "keep"


def row(psnr_y: float, lpips: float, lr_psnr: float) -> dict[str, float]:
    return OTHERS | {"psnr_y": psnr_y, "ssim_y": 0.75, "lpips": lpips, "lr_psnr": lr_psnr}


SET14 = row(26.09, 0.438, 36.7)
COMPACT, FULL_SIZE = row(27.41, 0.338, 43.5), row(26.63, 0.1446, 37.8)


@pytest.mark.parametrize(
    ("start", "objective", "challenger", "expected"),
    [
        (FULL_SIZE, "perceptual", row(27.34, 0.1426, 41.2), "promote"),
        (FULL_SIZE, "perceptual", row(26.75, 0.1484, 42.4), "promote"),
        (FULL_SIZE, "perceptual", row(27.42, 0.1663, 40.3), "keep"),
        (FULL_SIZE, "perceptual", FULL_SIZE, "keep"),
        (COMPACT, "psnr", row(27.12, 0.335, 39.2), "promote"),
        (COMPACT, "psnr", row(23.98, 0.332, 31.1), "keep"),
    ],
    ids=[
        "adapted",
        "adapted with more adversarial weight",
        "blurred by a cold discriminator",
        "the start itself",
        "compact",
        "ruined by four times the iterations",
    ],
)
def test_the_shipped_thresholds_admit_what_was_seen_to_be_better_on_set14(
    start: Any, objective: Objective, challenger: Any, expected: str
) -> None:
    rows = {"bicubic": SET14, "warmup": start, "challenger": challenger}
    assert verdict(rows, SHIPPED, objective=objective) == expected


def test_the_summary_of_a_promotion_names_the_change_with_its_interval() -> None:
    measured = compared(means(), spread=0.005)
    found, reasons = judge(measured, USUAL, CONFIDENCE, {})
    assert summary_of(found, reasons, measured.gains, USUAL, "3") == (
        "The challenger replaces champion version 3: "
        "LPIPS -0.0200 [-0.0250, -0.0150], 12 better, 0 ties, 0 worse against champion."
    )
    first = compared(means(champion=None), spread=0.005)
    said = summary_of(*judge(first, USUAL, CONFIDENCE, {}), first.gains, USUAL, None)
    assert said.startswith("The challenger becomes the first champion: LPIPS -0.2500 [")


def test_the_summary_of_a_refusal_names_the_first_failure_and_counts_the_others() -> None:
    measured = compared(means(lpips=0.21, lr_psnr=39.0), spread=0.005)
    assert summary_of(*judge(measured, USUAL, CONFIDENCE, {}), measured.gains, USUAL, "3") == (
        "Version 3 stays champion: lr_psnr 39.0000, required: at least 40 (2 more thresholds failed)."
    )
    measured = compared(means(champion=None, lr_psnr=39.0))
    said = summary_of(*judge(measured, USUAL, CONFIDENCE, {}), measured.gains, USUAL, None)
    assert said == "The challenger does not become champion: lr_psnr 39.0000, required: at least 40."


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
    assert any("gain +nan" in reason for reason in judge(compared(other), asked, CONFIDENCE, {})[1])


values = st.fixed_dictionaries({metric: st.floats(0, 60) for metric in METRICS})
bounds = st.dictionaries(st.sampled_from(list(METRICS)), st.floats(-5, 5))


@given(values, values, bounds, st.sampled_from(list(METRICS)), st.floats(0, 10))
def test_being_better_never_loses_a_promotion(
    challenger: dict[str, float], champion: dict[str, float], asked: dict[str, float], metric: Any, more: float
) -> None:
    rules = thresholds(champion=asked, absolute=asked)
    before = verdict(means(champion=champion, **challenger), rules)
    improved = challenger | {metric: challenger[metric] + (more if METRICS[metric] else -more)}
    if improved != champion:
        assert (before, verdict(means(champion=champion, **improved), rules)) != ("promote", "keep")


@given(values, values, bounds)
def test_a_promotion_needs_every_threshold_and_nothing_else(
    challenger: dict[str, float], champion: dict[str, float], asked: dict[str, float]
) -> None:
    found = verdict(means(champion=champion, **challenger), thresholds(champion=asked))
    passed = [gain(metric, challenger[metric], champion[metric]) > bound for metric, bound in asked.items()]
    assert (found == "promote") == (bool(asked) and challenger != champion and all(passed))
