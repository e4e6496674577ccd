"""Decide from measured means, gains and thresholds whether a challenger replaces the champion."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass

from bebygan.settings import Objective
from components.artifacts import Candidate, Gain, Means, Recommendation
from components.comparison import METRICS, NAMES, change
from components.config import Metric, Thresholds
from components.evaluate.evidence import photographs_required

TOO_FEW = "too few photographs to tell"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known about a challenger."""

    means: Means
    gains: Sequence[Gain]
    """Over each other candidate in `means`, in each metric."""
    photographs: int
    """Number that the means and gains are about."""
    objective: Objective
    """What the warm-up generator was trained for."""


def _relative(measured: Measured, gain: Gain, bound: float, confidence: float | None = None) -> tuple[bool, str]:
    """Compare a gain, or with a confidence the lower limit of its interval, with a bound; with NaN it fails."""
    challenger, other = (measured.means[name][gain.metric] for name in ("challenger", gain.opponent))
    # Adding 0.0 turns -0 into +0.
    text = f"{gain.metric} {challenger:.4f}, {gain.opponent} {other:.4f}: gain {gain.mean + 0.0:+.4f}"
    required = f"required: more than {bound:g}"
    if confidence is None:
        return gain.mean > bound, f"{text}, {required}"
    low, high = gain.interval or (float("nan"), float("nan"))
    return low > bound, f"{text} [{low + 0.0:+.4f}, {high + 0.0:+.4f}], {required} at {confidence:.0%} confidence"


def _unmeasured(metric: Metric) -> str:
    return f"{metric} was not measured: no held-out photograph has such regions"


def beyond_noise(bounds: Mapping[Metric, float], noise: Mapping[Metric, float]) -> dict[Metric, float]:
    """Return the gains over the champion that are required: those of `bounds`, raised to those that noise can bring."""
    # A tolerated loss is no claim to be better.
    return {name: max(bound, noise.get(name, bound)) if bound >= 0 else bound for name, bound in bounds.items()}


def _over_champion(
    measured: Measured,
    gains: dict[Metric, Gain],
    bounds: Mapping[Metric, float],
    confidence: float,
    noise: Mapping[Metric, float],
) -> Iterator[tuple[bool, str]]:
    photographs, required = photographs_required(confidence), beyond_noise(bounds, noise)
    if not bounds:
        yield False, "no threshold compares with the champion: set evaluate.thresholds.champion"
    elif measured.photographs < photographs:
        yield False, f"{TOO_FEW} ({measured.photographs} held out, {photographs} are needed)"
    elif all(gain.better == gain.worse == 0 for gain in gains.values()):
        yield False, "challenger and champion measure the same on every photograph"
    else:
        for metric, bound in bounds.items():
            least = required[metric]
            if metric not in gains:
                yield False, _unmeasured(metric)
                continue
            passed, text = _relative(measured, gains[metric], least, confidence)
            if least > bound:
                text += " (which another seed alone can gain)"
            elif bound >= 0 and metric not in noise:
                text += " (what another seed alone can gain is unknown: bebygan calibrate measures it)"
            yield passed, text


def _checks(
    measured: Measured, thresholds: Thresholds, confidence: float, noise: Mapping[Metric, float]
) -> Iterator[tuple[bool, str]]:
    for metric, bound in thresholds.absolute.items():
        if metric not in measured.means["challenger"]:
            yield False, _unmeasured(metric)
            continue
        value, higher = measured.means["challenger"][metric], METRICS[metric]
        # A comparison with NaN is false, so the threshold fails.
        passed = value >= bound if higher else value <= bound
        yield passed, f"{metric} {value:.4f}, required: at {'least' if higher else 'most'} {bound:g}"
    floors: dict[Candidate, dict[Metric, float]] = {
        "bicubic": thresholds.bicubic,
        "warmup": thresholds.warmup.get(measured.objective, {}),
    }
    gains: dict[Candidate, dict[Metric, Gain]] = {}
    for gain in measured.gains:
        gains.setdefault(gain.opponent, {})[gain.metric] = gain
    for opponent, bounds in floors.items():
        if opponent not in gains:
            yield True, f"there is no {opponent} to compare with"
        else:
            for metric, bound in bounds.items():
                known = metric in gains[opponent]
                yield _relative(measured, gains[opponent][metric], bound) if known else (False, _unmeasured(metric))
    if "champion" in gains:
        yield from _over_champion(measured, gains["champion"], thresholds.champion, confidence, noise)
    else:
        yield True, "there is no champion to compare with"


def judge(
    measured: Measured, thresholds: Thresholds, confidence: float, noise: Mapping[Metric, float]
) -> tuple[Recommendation, tuple[str, ...]]:
    """Promote a challenger that passes every threshold; keep the champion otherwise, and if no threshold is set.

    Bicubic and the warm-up are floors for the means. A champion is replaced only by a challenger whose gains exceed
    their thresholds with confidence: with a threshold of 0, an equal model does not replace the champion.

    Args:
        measured: means and gains of the challenger.
        thresholds: that it must pass.
        confidence: of the intervals of gains over the champion.
        noise: gain in a metric that another seed alone can bring; a required gain over the champion must exceed it.

    Returns:
        The recommendation, and one sentence per threshold with the prefix "passed: " or "failed: ".
    """
    if not any(astuple(thresholds)):
        return "keep", ("failed: no thresholds are set",)
    checks = list(_checks(measured, thresholds, confidence, noise))
    reasons = tuple(f"{'passed' if passed else 'failed'}: {text}" for passed, text in checks)
    return "promote" if all(passed for passed, _ in checks) else "keep", reasons


def summary_of(
    recommendation: Recommendation,
    reasons: Sequence[str],
    gains: Sequence[Gain],
    thresholds: Thresholds,
    champion: str | None,
    *,
    lost: str | None = None,
) -> str:
    """Return the verdict in one sentence.

    Args:
        recommendation: from `judge`.
        reasons: from `judge`.
        gains: over all candidates.
        thresholds: as given to `judge`.
        champion: version of the champion, if there is one.
        lost: what shows that a champion existed before, if none exists now.
    """
    if recommendation == "promote":
        if champion is None:
            shown = [gain for gain in gains if (gain.opponent, gain.metric) == ("bicubic", "lpips")]
            new = f"The challenger becomes champion after the loss of the one before ({lost})"
            new = new if lost else "The challenger becomes the first champion"
        else:
            shown = [gain for gain in gains if gain.opponent == "champion" and gain.metric in thresholds.champion]
            new = f"The challenger replaces champion version {champion}"
        # Gains that were required come first, then losses that were allowed.
        shown.sort(key=lambda gain: -thresholds.champion.get(gain.metric, 0.0))
        return f"{new}: {change(shown[0])} against {NAMES[shown[0].opponent]}." if shown else f"{new}."
    kept = f"Version {champion} stays champion" if champion else "The challenger does not become champion"
    failed = [reason.removeprefix("failed: ") for reason in reasons if reason.startswith("failed: ")]
    failed.sort(key=lambda reason: not reason.startswith(TOO_FEW))
    more = f" ({len(failed) - 1} more thresholds failed)" if len(failed) > 1 else ""
    return f"{kept}: {failed[0]}{more}."
