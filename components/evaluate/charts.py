"""Where everything in the report's charts lies. The page draws them, in colours for light and dark."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from components.artifacts import Candidate, Gain
from components.comparison import METRICS, NAMES, TITLES, changed, shown
from components.config import Metric

LEFT, RIGHT, TOP, BOTTOM = 54.0, 304.0, 10.0, 178.0
"""Edges of the area of a chart that is 320 wide and 220 high."""
_MARKS = ("iteration", "delivered", "stopped.")
"""What values of the history begin with that are no curves."""
_FIRST = ("validation.lpips", "validation.lr_psnr", "validation.psnr_y", "total", "pixel")
"""Curves that a reader looks at first."""
_MOST_POINTS = 300
"""Of a line; the values of a long training are thinned."""
_MOST_LABELS = 8
Series = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its label, and position and text of each tick."""

    label: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A point of a chart."""

    x: float
    y: float
    kind: str
    """Class of the style sheet."""
    text: str
    photograph: str = ""
    """What it stands for, if it is a photograph."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of lines and points."""

    title: str
    about: str
    """What it shows, for those who do not see it."""
    x: Axis
    y: Axis
    lines: Sequence[tuple[str, str]] = ()
    """Class of the style sheet, and path."""
    points: Sequence[Point] = ()
    mark: tuple[float, str] | None = None
    """Position and text of a vertical line."""


@dataclass(frozen=True, kw_only=True)
class ForestRow:
    """A gain with its interval; positions are in percent of the width, 50 is no change."""

    gain: Gain
    title: str
    change: str
    interval: str
    mean: float
    limits: tuple[float, float] | None
    bound: float | None
    """Where the required gain is, or the largest loss that is allowed."""
    required: str
    state: str
    """better or worse if the interval excludes no change, else open."""


@dataclass(frozen=True, kw_only=True)
class Forest:
    """The gains over one opponent on one axis."""

    opponent: str
    rows: Sequence[ForestRow]
    ticks: Sequence[tuple[float, str]]


def ticks(low: float, high: float, most: int = 5) -> list[tuple[float, str]]:
    """Return round values between two limits, at most `most` + 1, with their texts."""
    rough = (high - low) / most
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    form = f",.{digits}f" if digits < 5 else ".0e"
    return [(number * step, f"{number * step + 0.0:{form}}") for number in numbers]


def _padded(values: Series) -> tuple[float, float]:
    """Return limits that are a little wider than the values."""
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - pad, high + pad


def _scale(limits: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    low, high = limits
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _axis(label: str, limits: tuple[float, float], position: Callable[[float], float]) -> Axis:
    return Axis(label=label, ticks=[(position(value), text) for value, text in ticks(*limits)])


def _path(x: Sequence[float], y: Sequence[float]) -> str:
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in zip(x, y, strict=True))


def smoothed(values: Series) -> Series:
    """Return the centred moving average over a tenth of the values, and over fewer at the ends."""
    window = np.ones(max(1, len(values) // 10) | 1)
    half = len(window) // 2
    total: Series = np.convolve(values, window)[half : half + len(values)]
    total /= np.convolve(np.ones(len(values)), window)[half : half + len(values)]
    return total


def _curve(name: str, x: Series, y: Series, delivered: float | None) -> Chart:
    checked = name.startswith("validation.")
    across, up = _scale((float(x.min()), float(x.max())), LEFT, RIGHT), _padded(y)
    height = _scale(up, BOTTOM, TOP)
    thinned = slice(None, None, -(-len(x) // _MOST_POINTS))
    columns = [across(value) for value in x[thinned]]
    raw = _path(columns, [height(value) for value in y[thinned]])
    soft = _path(columns, [height(value) for value in smoothed(y)[thinned]])
    metric = name.removeprefix("validation.")
    quantity = {str(known): title[:-2] for known, title in TITLES.items()}.get(metric, metric.replace("_", " "))
    return Chart(
        title=f"{quantity}, validation" if checked else quantity,
        about=f"{quantity} from {y[0]:.4g} at iteration {x[0]:g} to {y[-1]:.4g} at iteration {x[-1]:g}, "
        f"between {y.min():.4g} and {y.max():.4g}",
        x=_axis("iteration", (float(x.min()), float(x.max())), across),
        y=_axis(f"{quantity}, dB" if "psnr" in name else quantity, up, height),
        lines=[("line", raw)] if checked else [("raw", raw), ("line", soft)],
        points=[
            Point(x=across(a), y=height(b), kind="dot", text=f"iteration {a:g}: {b:.4g}")
            for a, b in zip(x[thinned], y[thinned], strict=True)
        ]
        if checked
        else (),
        mark=None if delivered is None or not x.min() <= delivered <= x.max() else (across(delivered), "delivered"),
    )


def training_curves(history: Sequence[Mapping[str, float]]) -> list[Chart]:
    """Return a chart for each value that a training logged at least twice: validation and total loss first."""
    names = dict.fromkeys(name for entry in history for name in entry if not name.startswith(_MARKS))
    delivered = next((entry["delivered"] for entry in reversed(history) if "delivered" in entry), None)
    charts = []
    for name in (*(name for name in _FIRST if name in names), *(name for name in names if name not in _FIRST)):
        x, y = np.array([(entry["iteration"], entry[name]) for entry in history if name in entry], float).T
        if len(x) > 1 and x[0] < x[-1]:
            charts.append(_curve(name, x, y, delivered))
    return charts


def scatters(
    values: Mapping[Candidate, Mapping[Metric, Series]], opponent: Candidate, photographs: Sequence[str]
) -> list[Chart]:
    """Return charts of the challenger against an opponent, photograph by photograph, for the main metrics.

    Args:
        values: by candidate and metric, in the order of the photographs.
        opponent: a candidate.
        photographs: their names.
    """
    charts = []
    for metric in ("lpips", "psnr_y", "lr_psnr"):
        theirs, ours = values[opponent][metric], values["challenger"][metric]
        limits = _padded(np.concatenate((theirs, ours)))
        across, height = _scale(limits, LEFT, RIGHT), _scale(limits, BOTTOM, TOP)
        gains = (ours - theirs) * (1 if METRICS[metric] else -1)
        corner = f"{LEFT} {TOP}" if METRICS[metric] else f"{RIGHT} {BOTTOM}"
        points = [
            Point(
                x=across(a),
                y=height(b),
                kind="better" if gain > 0 else "worse" if gain < 0 else "equal",
                text=f"{name}: {NAMES[opponent]} {shown(metric, a)}, challenger {shown(metric, b)}",
                photograph=name,
            )
            for name, a, b, gain in zip(photographs, theirs, ours, gains, strict=True)
        ]
        charts.append(
            Chart(
                title=TITLES[metric],
                about=f"{TITLES[metric]}: better on {(gains > 0).sum()} of {len(gains)} photographs",
                x=_axis(NAMES[opponent], limits, across),
                y=_axis("challenger", limits, height),
                lines=[
                    ("side", f"M{LEFT} {BOTTOM}L{RIGHT} {TOP}L{corner}Z"),
                    ("equal", f"M{LEFT} {BOTTOM}L{RIGHT} {TOP}"),
                ],
                points=points,
            )
        )
    return charts


def anchor_charts(rows: Sequence[tuple[str, Mapping[Metric, float]]], metrics: Sequence[Metric]) -> list[Chart]:
    """Return a chart for each metric over the champions, oldest first, with the challenger as the last point."""
    charts = []
    for metric in metrics if rows else ():
        known = [(name, means[metric]) for name, means in rows]
        limits = _padded(np.array([value for _, value in known]))
        across, height = _scale((-0.5, len(known) - 0.5), LEFT, RIGHT), _scale(limits, BOTTOM, TOP)
        columns, heights = [across(number) for number in range(len(known))], [height(value) for _, value in known]
        points = [
            Point(x=x, y=y, kind="newest" if name == "challenger" else "dot", text=f"{name}: {shown(metric, value)}")
            for (name, value), x, y in zip(known, columns, heights, strict=True)
        ]
        each = -(-len(known) // _MOST_LABELS)
        labels = [(x, name.removeprefix("version ")) for (name, _), x in zip(known, columns, strict=True)]
        charts.append(
            Chart(
                title=TITLES[metric],
                about="; ".join(point.text for point in points),
                x=Axis(label="version", ticks=labels[::-each][::-1]),
                y=_axis("dB" if "psnr" in metric else TITLES[metric][:-2], limits, height),
                lines=[("line", _path(columns, heights))] if len(known) > 1 else (),
                points=points,
            )
        )
    return charts


def forest(
    gains: Sequence[Gain], spreads: Mapping[Metric, float], bounds: Mapping[Metric, float], confidence: float
) -> Forest:
    """Return the gains over one opponent on one axis.

    Args:
        gains: over the same opponent.
        spreads: standard deviation of the gain over the photographs, by metric; gains are drawn in units of it, so that
            metrics with other units compare.
        bounds: gains that are required; a negative one is the largest loss allowed.
        confidence: of the intervals.
    """
    units = {gain.metric: spreads.get(gain.metric) or abs(gain.mean) or 1.0 for gain in gains}
    reach = [abs(value) / units[gain.metric] for gain in gains for value in (gain.mean, *(gain.interval or ()))]
    limit = 1.05 * max(reach, default=0.0) or 1.0

    def position(value: float, unit: float = 1.0) -> float:
        return round(50 + 48 * min(1.0, max(-1.0, value / unit / limit)), 2)

    rows = []
    for gain in gains:
        unit, bound, (change, interval) = units[gain.metric], bounds.get(gain.metric), changed(gain)
        low, high = gain.interval or (-math.inf, math.inf)
        sure = f" at {confidence:.0%} confidence" if gain.opponent == "champion" else ""
        kind = "must gain more than" if (bound or 0.0) >= 0 else "may lose at most"
        rows.append(
            ForestRow(
                gain=gain,
                title=TITLES[gain.metric],
                change=change,
                interval=interval,
                mean=position(gain.mean, unit),
                limits=(position(low, unit), position(high, unit)) if gain.interval else None,
                bound=None if bound is None else position(bound, unit),
                required="" if bound is None else f"{kind} {abs(bound):g}{sure}",
                state="better" if low > 0 else "worse" if high < 0 else "open",
            )
        )
    marks = [(position(value), text) for value, text in ticks(-limit, limit, 4)]
    return Forest(opponent=NAMES[gains[0].opponent], rows=rows, ticks=marks)
