"""The decision whether a challenger replaces the champion: a pure function of measured means and thresholds."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from components.config import Metric, Thresholds

Candidate = Literal["bicubic", "warmup", "challenger", "champion"]
Means = Mapping[Candidate, Mapping[Metric, float]]
Verdict = Literal["promote", "keep"]

METRICS: dict[Metric, bool] = {"psnr_y": True, "ssim_y": True, "lpips": False, "lr_psnr": True}
"""Metrics in the order in which they are shown, and whether a higher value is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A verdict and why."""

    verdict: Verdict
    reasons: tuple[str, ...]
    """One sentence a threshold, each beginning with "passed" or "failed"."""


def gain(metric: Metric, challenger: float, other: float) -> float:
    """Return by how much the challenger is better; not a number where nothing can be said."""
    return challenger - other if METRICS[metric] else other - challenger


def _said(passed: bool, sentence: str) -> str:
    return f"{'passed' if passed else 'failed'}: {sentence}"


def _absolute(metric: Metric, value: float, bound: float) -> str:
    # Comparisons with not-a-number are false, so that it fails.
    passed = value >= bound if METRICS[metric] else value <= bound
    return _said(passed, f"{metric} {value:.4f}, {'at least' if METRICS[metric] else 'at most'} {bound:g} asked")


def _relative(metric: Metric, opponent: Candidate, means: Means, bound: float) -> str:
    challenger, other = means["challenger"][metric], means[opponent][metric]
    better = gain(metric, challenger, other)
    if math.isnan(better):
        return _said(False, f"{metric} cannot be compared with {opponent}: {challenger:.4f} and {other:.4f}")
    change = f"{abs(better):.4f} {'better' if better >= 0 else 'worse'} than {opponent}'s {other:.4f}"
    asked = f"better by more than {bound:g}" if bound >= 0 else f"worse by less than {-bound:g}"
    return _said(better > bound, f"{metric} {challenger:.4f} is {change}, {asked} asked")


def _checks(means: Means, thresholds: Thresholds) -> Iterator[str]:
    for metric, bound in thresholds.absolute.items():
        yield _absolute(metric, means["challenger"][metric], bound)
    opponents: dict[Candidate, dict[Metric, float]] = {
        "bicubic": thresholds.bicubic,
        "warmup": thresholds.warmup,
        "champion": thresholds.champion,
    }
    for opponent, bounds in opponents.items():
        if opponent not in means:
            yield _said(True, f"there is no {opponent} yet to be better than")
        elif opponent == "champion" and not bounds:
            yield _said(False, "no threshold says what a challenger must do better than the champion")
        else:
            for metric, bound in bounds.items():
                yield _relative(metric, opponent, means, bound)


def decide(means: Means, thresholds: Thresholds) -> Decision:
    """Promote a challenger that passes every threshold; keep the champion otherwise, and when there are no thresholds.

    A gain must exceed its threshold, so that with 0 an equal model changes nothing.

    Args:
        means: mean of each metric by candidate; without "champion" when there is none yet.
        thresholds: of the parameters.
    """
    if not (thresholds.absolute or thresholds.bicubic or thresholds.warmup or thresholds.champion):
        return Decision(verdict="keep", reasons=(_said(False, "no thresholds are set"),))
    reasons = tuple(_checks(means, thresholds))
    passed = all(reason.startswith("passed") for reason in reasons)
    return Decision(verdict="promote" if passed else "keep", reasons=reasons)
