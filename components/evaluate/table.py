"""Names, headings and digits of the comparison, and the comparison as a table of text."""

from typing import get_args

from tabulate import tabulate

from components.artifacts import Candidate, Means
from components.config import Metric
from components.evaluate.verdict import METRICS

NAMES: dict[Candidate, str] = {name: name for name in get_args(Candidate)} | {"warmup": "warm-up"}
TITLES: dict[Metric, str] = {"psnr_y": "PSNR-Y ↑", "ssim_y": "SSIM-Y ↑", "lpips": "LPIPS ↓", "lr_psnr": "LR-PSNR ↑"}
"""Heading of each metric, with an arrow in the direction that is better."""
_DIGITS: dict[Metric, int] = {"psnr_y": 2, "ssim_y": 4, "lpips": 4, "lr_psnr": 2}


def shown(metric: Metric, value: float) -> str:
    """Format a value with the digits that are usual for its metric."""
    return f"{value:.{_DIGITS[metric]}f}"


def text_table(means: Means) -> str:
    """Format means as text: a line of headings, and one line per candidate."""
    rows = [["", *TITLES.values()]]
    rows += [[NAMES[name], *(shown(metric, row[metric]) for metric in METRICS)] for name, row in means.items()]
    align = ("left", *["right"] * len(TITLES))
    table: str = tabulate(rows, tablefmt="plain", colalign=align, disable_numparse=True)
    return table
