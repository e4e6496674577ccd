"""Check from its logged values whether a training was healthy."""

from collections.abc import Mapping, Sequence
from statistics import median

from bebygan.training.delivery import stop_reason
from components.artifacts import Finding
from components.config import HealthLimits

CHANCE = 0.6931
"""The discriminator's loss, log 2, when it cannot tell SR from HR."""
_FEWEST = 5
_VALIDATED = {"psnr_y": ("PSNR-Y", ".2f", " dB"), "lpips": ("LPIPS", ".4f", ""), "lr_psnr": ("LR-PSNR", ".2f", " dB")}
"""Name, format and unit of the metrics of validation."""


def _finding(text: str, value: float, limits: tuple[float, float], form: str, *, below: str, above: str) -> Finding:
    """Compare a value with its limits; `below` and `above` explain a value outside of them."""
    low, high = (format(limit, form) for limit in limits)
    if value < limits[0]:
        return Finding(False, f"{text}, below {low}: {below}")
    if value > limits[1]:
        return Finding(False, f"{text}, above {high}: {above}")
    return Finding(True, f"{text}, between {low} and {high}")


def _outcome(history: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Say which iteration is delivered, and why the training stopped itself."""
    last = history[-1] if history else {}
    findings = []
    if "delivered" in last:
        findings.append(Finding(True, f"delivered iteration {last['delivered']:.0f} of {last['iteration']:.0f}"))
    if reason := stop_reason(last, last.get("iteration", 0)):
        findings.append(Finding(False, reason))
    return findings


def _validation(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Compare the average on the validation photographs at the end with the start."""
    findings = []
    for metric, limit in limits.validation_loss.items():
        name = f"validation.{metric}"
        measured = {entry["iteration"]: entry[name] for entry in history if name in entry}
        if 0 not in measured or len(measured) < 2:
            continue
        title, form, unit = _VALIDATED[metric]
        start, *_, end = measured.values()
        text = f"validation: {title} was {start:{form}}{unit} at the start and {end:{form}}{unit} at the end"
        if (end - start if metric == "lpips" else start - end) <= limit:
            findings.append(Finding(True, text))
        else:
            why = "the training was too long or its learning rate too high"
            findings.append(Finding(False, f"{text}, worse by more than {limit:g}{unit}: {why}"))
    return findings


def _back_projection(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Compare the back-projection loss of the last tenth with that of the first."""
    losses = [entry["back_projection"] for entry in history if "back_projection" in entry]
    if len(losses) < _FEWEST:
        return []
    few = max(1, len(losses) // 10)
    start, end = median(losses[:few]), median(losses[-few:])
    text = f"back-projection: its loss was {start:.4f} at the start and {end:.4f} at the end"
    if end <= limits.back_projection_growth * start:
        return [Finding(True, text)]
    times = f"more than {limits.back_projection_growth:g} times as much"
    return [Finding(False, f"{text}, {times}: downscaled results no longer show what their LR shows")]


def examine(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Check how a training ended, compared with its start, and its discriminator, as far as they were logged.

    Args:
        history: logged values, oldest first.
        limits: see `HealthLimits`.
    """
    return [
        *_outcome(history),
        *_validation(history, limits),
        *_back_projection(history, limits),
        *_discriminator(history, limits),
    ]


def _discriminator(history: Sequence[Mapping[str, float]], limits: HealthLimits) -> list[Finding]:
    """Check the discriminator by medians over the last share `limits.window` of the entries that have its values."""
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
