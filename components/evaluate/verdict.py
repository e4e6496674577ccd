"""Decide from measured means and thresholds whether a challenger replaces the champion."""

import math
from collections.abc import Iterator
from dataclasses import astuple

from components.artifacts import Candidate, Means, Recommendation
from components.config import Metric, Thresholds

METRICS: dict[Metric, bool] = {"psnr_y": True, "ssim_y": True, "lpips": False, "lr_psnr": True}
"""Metrics in their order in tables, and whether a higher value is better."""


def gain(metric: Metric, challenger: float, other: float) -> float:
    """Return by how much the challenger is better; NaN if a value is NaN."""
    return challenger - other if METRICS[metric] else other - challenger


def _relative(metric: Metric, opponent: Candidate, means: Means, bound: float) -> tuple[bool, str]:
    challenger, other = means["challenger"][metric], means[opponent][metric]
    better = gain(metric, challenger, other)
    if math.isnan(better):
        return False, f"{metric} {challenger:.4f} cannot be compared with {opponent} {other:.4f}"
    # Adding 0.0 turns -0 into +0.
    text = f"{metric} {challenger:.4f}, {opponent} {other:.4f}: gain {better + 0.0:+.4f}, required: more than {bound:g}"
    return better > bound, text


def _checks(means: Means, thresholds: Thresholds) -> Iterator[tuple[bool, str]]:
    for metric, bound in thresholds.absolute.items():
        value, higher = means["challenger"][metric], METRICS[metric]
        # A comparison with NaN is false, so the threshold fails.
        passed = value >= bound if higher else value <= bound
        yield passed, f"{metric} {value:.4f}, required: at {'least' if higher else 'most'} {bound:g}"
    opponents: tuple[Candidate, ...] = ("bicubic", "warmup", "champion")
    for opponent in opponents:
        bounds: dict[Metric, float] = getattr(thresholds, opponent)
        if opponent not in means:
            yield True, f"there is no {opponent} to compare with"
        elif opponent == "champion" and not bounds:
            yield False, "no threshold compares with the champion: set evaluate.thresholds.champion"
        else:
            for metric, bound in bounds.items():
                yield _relative(metric, opponent, means, bound)


def judge(means: Means, thresholds: Thresholds) -> tuple[Recommendation, tuple[str, ...]]:
    """Promote a challenger that passes every threshold; keep the champion otherwise, and if no threshold is set.

    A gain must exceed its threshold: with a threshold of 0, an equal model does not replace the champion.

    Returns:
        The recommendation, and one sentence per threshold with the prefix "passed: " or "failed: ".
    """
    if not any(astuple(thresholds)):
        return "keep", ("failed: no thresholds are set",)
    checks = list(_checks(means, thresholds))
    reasons = tuple(f"{'passed' if passed else 'failed'}: {text}" for passed, text in checks)
    return "promote" if all(passed for passed, _ in checks) else "keep", reasons
