"""Whether adversarial training was healthy, told from the values that it logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from components.config import HealthLimits

CHANCE = 0.6931
"""The discriminator's loss, log 2, when it tells nothing apart."""
_FEWEST = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer of the examination."""

    healthy: bool
    text: str


def _discriminator(losses: Sequence[float], limits: HealthLimits) -> Finding:
    low, high = limits.discriminator_loss
    loss = median(losses)
    told = f"discriminator: its loss was {loss:.3f} ({CHANCE:.3f} is chance)"
    if loss < low:
        return Finding(False, f"{told}, below {low:g}: it tells SR from HR every time, and the generator learns little")
    if loss > high:
        return Finding(
            False, f"{told}, above {high:g}: it collapsed or never learnt, and says nothing to the generator"
        )
    return Finding(True, f"{told}, between {low:g} and {high:g}")


def _logits(real: Sequence[float], fake: Sequence[float], limits: HealthLimits) -> Finding:
    margin = median(abs(a - b) for a, b in zip(real, fake, strict=True))
    told = f"logits: those of HR and SR lay {margin:.2f} apart"
    if margin > limits.logit_margin:
        return Finding(
            False, f"{told}, more than {limits.logit_margin:g}: the loss saturates and its gradient vanishes"
        )
    return Finding(True, f"{told}, at most {limits.logit_margin:g}")


def _mask(shares: Sequence[float], limits: HealthLimits) -> Finding:
    low, high = limits.textured_share
    share = median(shares)
    told = f"mask: {share:.0%} of the pixels counted as textured"
    if share < low:
        return Finding(
            False, f"{told}, less than {low:.0%}: the discriminator sees next to nothing; lower the threshold"
        )
    if share > high:
        return Finding(False, f"{told}, more than {high:.0%}: the mask hides nothing; raise the threshold")
    return Finding(True, f"{told}, between {low:.0%} and {high:.0%}")


def examine(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Return what the end of a training tells about its health; nothing where there was no discriminator.

    Args:
        history: logged values, oldest first, as history.jsonl holds them. Judged are medians over the last
            `limits.window` of those entries that have them.
        limits: see `HealthLimits`.
    """
    names = ("discriminator", "logit_real", "logit_fake", "textured_share")
    entries = [entry for entry in history if all(name in entry for name in names)]
    if not entries:
        return []
    entries = entries[-max(1, round(len(entries) * limits.window)) :]
    if len(entries) < _FEWEST:
        return [Finding(False, f"too short to judge: {len(entries)} logged values, {_FEWEST} are needed")]
    loss, real, fake, textured = ([entry[name] for entry in entries] for name in names)
    return [_discriminator(loss, limits), _logits(real, fake, limits), _mask(textured, limits)]
