"""Metrics and candidates of the comparison, and how they are written as text."""

import math
from collections.abc import Collection, Sequence
from typing import get_args

from tabulate import tabulate

from components.artifacts import PSNR_CAP, Candidate, Gain, Means
from components.config import Metric

METRICS: dict[Metric, bool] = {
    "psnr_y": True,
    "ssim_y": True,
    "lpips": False,
    "lr_psnr": True,
    "dists": False,
    "psnr_y_textured": True,
    "psnr_y_flat": True,
    "lpips_textured": False,
    "lpips_flat": False,
    "artefacts": False,
}
"""Metrics in their order in tables, and whether a higher value is better."""
MAIN: tuple[Metric, ...] = ("psnr_y", "ssim_y", "lpips", "lr_psnr")
"""Metrics that terminal, notification and tags show; the report shows all."""
NAMES: dict[Candidate, str] = {name: name for name in get_args(Candidate)} | {"warmup": "warm-up"}
_NAMES: dict[Metric, str] = {
    "psnr_y": "PSNR-Y",
    "ssim_y": "SSIM-Y",
    "lpips": "LPIPS",
    "lr_psnr": "LR-PSNR",
    "dists": "DISTS",
    "psnr_y_textured": "PSNR-Y, textured",
    "psnr_y_flat": "PSNR-Y, flat",
    "lpips_textured": "LPIPS, textured",
    "lpips_flat": "LPIPS, flat",
    "artefacts": "artefacts",
}
TITLES: dict[Metric, str] = {metric: f"{name} {'↑' if METRICS[metric] else '↓'}" for metric, name in _NAMES.items()}
"""Heading of each metric, with an arrow in the direction that is better."""


def shown(metric: Metric, value: float, sign: str = "") -> str:
    """Format a value with the digits that are usual for its metric; `sign` is that of a format specification.

    A PSNR that was capped is marked by "≥", a value that was not measured is "-".
    """
    digits = 2 if "psnr" in metric else 4
    if math.isnan(value):
        return "-"
    if not sign and "psnr" in metric and value >= PSNR_CAP:
        return f"≥{PSNR_CAP:.0f}"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def changed(gain: Gain) -> tuple[str, str]:
    """Return the mean change of a metric's value and its interval, "" without one.

    A change is negative where the value became lower: a gain of LPIPS is a negative change.
    """
    way = 1 if METRICS[gain.metric] else -1
    low, high = sorted(way * limit for limit in gain.interval or (0.0, 0.0))
    interval = f"[{shown(gain.metric, low, '+')}, {shown(gain.metric, high, '+')}]" if gain.interval else ""
    return shown(gain.metric, way * gain.mean, "+"), interval


def change(gain: Gain) -> str:
    """Return the change of a metric's value with its interval, and the numbers of photographs."""
    text = " ".join(filter(None, (_NAMES[gain.metric], *changed(gain))))
    ties = f"{gain.ties} {'tie' if gain.ties == 1 else 'ties'}"
    return f"{text}, {gain.better} better, {ties}, {gain.worse} worse"


def main_opponent(candidates: Collection[Candidate]) -> Candidate:
    """Return the candidate that a challenger is compared with first: the champion, else the warm-up, else bicubic."""
    opponents: tuple[Candidate, ...] = ("champion", "warmup")
    return next((name for name in opponents if name in candidates), "bicubic")


def main_gains(gains: Sequence[Gain]) -> list[Gain]:
    """Return the gains in the main metrics over the main opponent."""
    main = main_opponent({gain.opponent for gain in gains})
    return [gain for gain in gains if gain.opponent == main and gain.metric in MAIN]


def gain_lines(gains: Sequence[Gain], confidence: float) -> list[str]:
    """Return lines about the main gains: a heading, and the change in each metric; [] without gains."""
    found = main_gains(gains)
    if not found:
        return []
    heading = f"change against the {NAMES[found[0].opponent]}, with {confidence:.0%} intervals:"
    return [heading, *(f"  {change(gain)}" for gain in found)]


def text_table(means: Means) -> str:
    """Format means as text: a line of headings, and one line per candidate."""
    rows = [["", *(TITLES[metric] for metric in MAIN)]]
    rows += [[NAMES[name], *(shown(metric, row[metric]) for metric in MAIN)] for name, row in means.items()]
    align = ("left", *["right"] * len(MAIN))
    table: str = tabulate(rows, tablefmt="plain", colalign=align, disable_numparse=True)
    return table
