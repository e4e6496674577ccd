"""Check from its logged values whether adversarial training was healthy."""

from collections.abc import Mapping, Sequence
from statistics import median

from components.artifacts import Finding
from components.config import HealthLimits

CHANCE = 0.6931
"""The discriminator's loss, log 2, when it cannot tell SR from HR."""
_FEWEST = 5


def _finding(text: str, value: float, limits: tuple[float, float], form: str, *, below: str, above: str) -> Finding:
    """Compare a value with its limits; `below` and `above` explain a value outside of them."""
    low, high = (format(limit, form) for limit in limits)
    if value < limits[0]:
        return Finding(False, f"{text}, below {low}: {below}")
    if value > limits[1]:
        return Finding(False, f"{text}, above {high}: {above}")
    return Finding(True, f"{text}, between {low} and {high}")


def examine(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Check the end of a training; return [] for a training without a discriminator.

    Args:
        history: logged values, oldest first.
        limits: of the medians over the last share `limits.window` of the entries that have all values.
    """
    names = ("discriminator", "logit_real", "logit_fake", "textured_share")
    entries = [entry for entry in history if all(name in entry for name in names)]
    if not entries:
        return []
    entries = entries[-max(1, round(len(entries) * limits.window)) :]
    if len(entries) < _FEWEST:
        return [Finding(False, f"too short to judge: {len(entries)} logged values, {_FEWEST} are needed")]
    loss = median(entry["discriminator"] for entry in entries)
    margin = median(abs(entry["logit_real"] - entry["logit_fake"]) for entry in entries)
    share = median(entry["textured_share"] for entry in entries)
    return [
        _finding(
            f"discriminator: its loss was {loss:.3f} ({CHANCE:.3f} is chance)",
            loss,
            limits.discriminator_loss,
            "g",
            below="it always tells SR from HR, and the generator learns little",
            above="it collapsed or never learnt, and the generator learns nothing from it",
        ),
        _finding(
            f"logits: those of HR and SR differ by {margin:.2f}",
            margin,
            (0, limits.logit_margin),
            "g",
            below="",
            above="the loss saturates and its gradient vanishes",
        ),
        _finding(
            f"mask: {share:.0%} of the pixels counted as textured",
            share,
            limits.textured_share,
            ".0%",
            below="the discriminator sees almost nothing; lower the threshold",
            above="the mask hides nothing; raise the threshold",
        ),
    ]
