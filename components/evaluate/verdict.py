"""The decision whether a challenger replaces the champion: a pure function of measured means and thresholds."""

import math
from collections.abc import Iterator

from components.artifacts import Candidate, Means, Recommendation
from components.config import Metric, Thresholds

METRICS: dict[Metric, bool] = {"psnr_y": True, "ssim_y": True, "lpips": False, "lr_psnr": True}
"""Metrics in the order in which they are shown, and whether a higher value is better."""


def gain(metric: Metric, challenger: float, other: float) -> float:
    """Return by how much the challenger is better; NaN if the two cannot be compared."""
    return challenger - other if METRICS[metric] else other - challenger


def _absolute(metric: Metric, value: float, bound: float) -> tuple[bool, str]:
    # A comparison with NaN is false, so the threshold fails.
    passed = value >= bound if METRICS[metric] else value <= bound
    return passed, f"{metric} {value:.4f}, required: at {'least' if METRICS[metric] else 'most'} {bound:g}"


def _relative(metric: Metric, opponent: Candidate, means: Means, bound: float) -> tuple[bool, str]:
    challenger, other = means["challenger"][metric], means[opponent][metric]
    better = gain(metric, challenger, other)
    if math.isnan(better):
        return False, f"{metric} {challenger:.4f} cannot be compared with {opponent} {other:.4f}"
    # Two equal means differ by +0 and not by -0.
    text = f"{metric} {challenger:.4f}, {opponent} {other:.4f}: gain {better + 0.0:+.4f}, required: more than {bound:g}"
    return better > bound, text


def _checks(means: Means, thresholds: Thresholds) -> Iterator[tuple[bool, str]]:
    for metric, bound in thresholds.absolute.items():
        yield _absolute(metric, means["challenger"][metric], bound)
    opponents: dict[Candidate, dict[Metric, float]] = {
        "bicubic": thresholds.bicubic,
        "warmup": thresholds.warmup,
        "champion": thresholds.champion,
    }
    for opponent, bounds in opponents.items():
        if opponent not in means:
            yield True, f"there is no {opponent} to compare with"
        elif opponent == "champion" and not bounds:
            yield False, "no threshold compares with the champion: set evaluate.thresholds.champion"
        else:
            for metric, bound in bounds.items():
                yield _relative(metric, opponent, means, bound)


def judge(means: Means, thresholds: Thresholds) -> tuple[Recommendation, tuple[str, ...]]:
    """Promote a challenger that passes every threshold; keep the champion otherwise, and if no threshold is set.

    A gain must exceed its threshold. With a threshold of 0, an equal model does not replace the champion.

    Args:
        means: mean of each metric by candidate; without "champion" if there is none.
        thresholds: of the parameters.

    Returns:
        The recommendation, and one sentence per threshold that begins with "passed: " or "failed: ".
    """
    if not (thresholds.absolute or thresholds.bicubic or thresholds.warmup or thresholds.champion):
        return "keep", ("failed: no thresholds are set",)
    checks = list(_checks(means, thresholds))
    reasons = tuple(f"{'passed' if passed else 'failed'}: {text}" for passed, text in checks)
    return "promote" if all(passed for passed, _ in checks) else "keep", reasons
