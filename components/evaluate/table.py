"""The comparison as a table of text."""

from components.config import Metric
from components.evaluate.verdict import METRICS, Candidate, Means

NAMES: dict[Candidate, str] = {
    "bicubic": "bicubic",
    "warmup": "warm-up",
    "challenger": "challenger",
    "champion": "champion",
}
TITLES: dict[Metric, str] = {"psnr_y": "PSNR-Y ↑", "ssim_y": "SSIM-Y ↑", "lpips": "LPIPS ↓", "lr_psnr": "LR-PSNR ↑"}
"""Heading of each metric, with an arrow to where it is better."""
_DIGITS: dict[Metric, int] = {"psnr_y": 2, "ssim_y": 4, "lpips": 4, "lr_psnr": 2}


def shown(metric: Metric, value: float) -> str:
    """Return a value with the digits that its metric is published with."""
    return f"{value:.{_DIGITS[metric]}f}"


def text_table(means: Means) -> str:
    """Return the means as lines of text, one candidate each, below a heading."""
    rows = [["", *TITLES.values()]]
    rows += [[NAMES[name], *(shown(metric, row[metric]) for metric in METRICS)] for name, row in means.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows)
