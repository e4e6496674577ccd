"""The page of an ablation: means, paired differences with intervals, what becomes of the claims, and pictures."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tabulate import tabulate

from bebygan.files import whole_file
from bebygan.imaging.texture import local_deviation
from bebygan.precision import resolve, training_device
from components.evaluate.evidence import intervals
from components.evaluate.pictures import most_textured, side_by_side, square_with_most
from pipelines.ablation.measures import DEFINITIONS, METRICS, Photograph, Upscale, flat_regions
from pipelines.ablation.plan import Ablation, Cell, Training
from pipelines.measured import Row

Rows = Mapping[str, Sequence[Row]]
"""Rows by candidate, of the same photographs in the same order."""
Values = npt.NDArray[np.float64]
TITLES = {
    "psnr_y": "PSNR-Y ↑", "lpips": "LPIPS ↓", "dists": "DISTS ↓", "lr_psnr": "LR-PSNR ↑", "flat_lpips": "flat LPIPS ↓",
    "false_texture": "false texture ↓",
}  # fmt: skip
_DIGITS = {"psnr_y": 2, "lpips": 4, "dists": 4, "lr_psnr": 2, "flat_lpips": 4, "false_texture": 2}
_CONFIDENCE = 0.95
_WHAT = {"texture": "most texture", "flat": "most texture of the start in flat regions"}
_SIDE = 128
"""Side of the crops, pixels."""


def _values(rows: Sequence[Row], benchmark: str) -> Values:
    """Return the metrics of a benchmark's photographs, (N, M)."""
    return np.array([[row[name] for name in METRICS] for row in rows if row["benchmark"] == benchmark], np.float64)


def _of_seeds(rows: Rows, cell: str, seeds: Sequence[int], benchmark: str) -> Values:
    """Return the metrics of a cell, (seeds, N, M)."""
    return np.stack([_values(rows[Training.name_of(cell, seed)], benchmark) for seed in seeds])


def _means(values: Values) -> list[float]:
    """Return the mean of each metric over the photographs that have it."""
    return [float(np.nanmean(column)) if np.isfinite(column).any() else math.nan for column in values.T]


def _shown(metric: str, value: float, *, sign: bool = False) -> str:
    return "-" if math.isnan(value) else f"{value:{'+' if sign else ''}.{_DIGITS[metric]}f}"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text: str = tabulate(lines, headings, tablefmt="github", disable_numparse=True)
    return text


def means_table(ablation: Ablation, rows: Rows, benchmark: str) -> str:
    """Return the means of every candidate; of cells over all seeds, and how far LPIPS differs between seeds."""
    lines = []
    for name in ("bicubic", "start"):
        means = zip(METRICS, _means(_values(rows[name], benchmark)), strict=True)
        lines.append([name, *(_shown(metric, value) for metric, value in means), ""])
    for cell in ablation.cells:
        values = _of_seeds(rows, cell, ablation.seeds, benchmark)
        means = zip(METRICS, _means(values.mean(0)), strict=True)
        spread = np.ptp(values[:, :, list(METRICS).index("lpips")].mean(1))
        lines.append([cell, *(_shown(metric, value) for metric, value in means), f"{spread:.4f}"])
    return _table(["", *TITLES.values(), "LPIPS, seeds apart"], lines)


def differences(
    ablation: Ablation, rows: Rows, benchmark: str, cell: str, before: str
) -> dict[str, tuple[float, float, float]]:
    """Return mean and both limits of (cell - before) of each metric, over photographs, the seeds averaged.

    The limits are NaN where too few photographs have the metric for an interval.
    """
    mine, theirs = (_of_seeds(rows, each, ablation.seeds, benchmark).mean(0) for each in (cell, before))
    found = {}
    for number, metric in enumerate(METRICS):
        column = (mine - theirs)[:, number]
        column = column[np.isfinite(column)]
        limits = intervals(column[:, None], _CONFIDENCE) if len(column) else None
        low, high = (math.nan, math.nan) if limits is None else (float(limits[0, 0]), float(limits[1, 0]))
        found[metric] = (float(column.mean()) if len(column) else math.nan, low, high)
    return found


def verdict(cell: Cell, found: Mapping[str, tuple[float, float, float]]) -> str:
    """Return whether a claim is reproduced, refuted, or undecided on one benchmark, and why.

    A metric in which the cell must be better decides against the claim only if its interval is on the other side of 0.
    """
    reasons, outcomes = [], []
    for metric, allowed in {**dict.fromkeys(cell.better, 0.0), **cell.not_worse}.items():
        mean, low, high = found[metric]
        if not METRICS[metric]:
            low, high = -high, -low
        gains, loses = low > -allowed, high < -allowed
        outcomes.append("reproduced" if gains else "refuted" if loses else "undecided")
        reasons.append(f"{TITLES[metric]} {_shown(metric, mean, sign=True)}")
    for outcome in ("refuted", "undecided"):
        if outcome in outcomes:
            return f"{outcome} ({', '.join(reasons)})"
    return f"reproduced ({', '.join(reasons)})"


def _steps(ablation: Ablation) -> Iterator[tuple[str, str]]:
    """Yield each cell but the first with the one before it."""
    names = list(ablation.cells)
    yield from zip(names[1:], names[:-1], strict=True)


def differences_table(ablation: Ablation, rows: Rows, benchmark: str) -> str:
    """Return each cell's difference to the one before it."""
    lines = []
    for cell, before in _steps(ablation):
        found = differences(ablation, rows, benchmark, cell, before)
        cells = [
            _shown(metric, mean, sign=True)
            + ("" if math.isnan(low) else f" [{_shown(metric, low, sign=True)}, {_shown(metric, high, sign=True)}]")
            for metric, (mean, low, high) in found.items()
        ]
        lines.append([f"{cell} - {before}", *cells])
    return _table(["", *TITLES.values()], lines)


def _claims(ablation: Ablation, rows: Rows, benchmarks: Sequence[str]) -> Iterator[str]:
    for cell, before in _steps(ablation):
        described = ablation.cells[cell]
        if not described.claim:
            continue
        yield f"- **{described.claim}** ({cell} beside {before}):"
        for benchmark in benchmarks:
            found = differences(ablation, rows, benchmark, cell, before)
            yield f"  {benchmark}: {verdict(described, found)};"


def _pictures(
    ablation: Ablation,
    of_start: Sequence[Row],
    photographs: Sequence[Photograph],
    upscalers: Mapping[str, Callable[[], Upscale]],
    folder: Path,
) -> Iterator[str]:
    """Write two pictures for each benchmark, and yield the lines that show them."""
    seed = ablation.seeds[0]
    candidates = {"start": "start", **{cell: Training.name_of(cell, seed) for cell in ablation.cells}}
    for benchmark in dict.fromkeys(each.benchmark for each in photographs):
        distances = _values(of_start, benchmark)[:, list(METRICS).index("lpips")]
        median = [each for each in photographs if each.benchmark == benchmark][
            int(np.argsort(distances)[len(distances) // 2])
        ]
        hr, lr = median.read()
        found = {name: upscalers[candidate]()(lr) for name, candidate in candidates.items()}
        error = local_deviation(found["start"], 5) * flat_regions(hr)
        squares = {"texture": most_textured(hr, _SIDE), "flat": square_with_most(error, _SIDE)}
        for what, square in squares.items():
            panels = {name: sr[square] for name, sr in found.items()} | {"original": hr[square]}
            path = folder / f"ablation-{benchmark}-{what}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            side_by_side(panels).save(path, optimize=True)
            yield f"![{benchmark}, {median.path.name}, {what}](images/{path.name})\n"
            yield f"*{median.path.name} of {benchmark}, {_WHAT[what]}*\n"


def write_page(
    output: Path,
    ablation: Ablation,
    *,
    trainings: Sequence[Training],
    rows: Rows,
    photographs: Sequence[Photograph],
    upscalers: Mapping[str, Callable[[], Upscale]],
    shown: Sequence[Photograph],
    of_shown: Sequence[Row],
    data_version: str,
    hours: float,
) -> None:
    """Write the page, and its pictures into the folder images beside it.

    Args:
        output: the Markdown file.
        ablation: what was asked for.
        trainings: all of them.
        rows: see `Rows`: bicubic, start, and every training by name.
        photographs: in the order of the rows.
        upscalers: makes each candidate.
        shown: photographs of which the pictures are.
        of_shown: the rows of the start of them.
        data_version: of the photographs that the cells were trained on.
        hours: that all trainings took.
    """
    settings = trainings[0].params.train
    benchmarks = list(dict.fromkeys(each.benchmark for each in photographs))
    lines = [
        "# Ablation",
        "",
        "Written by `bebygan ablate`; every number is from a real training through the steps of the pipeline.",
        f"{len(ablation.cells)} objectives, seeds {', '.join(map(str, ablation.seeds))}, {settings.iterations} "
        f"iterations of batch {settings.batch} and crop {settings.crop} each, from "
        f"`{trainings[0].params.warmup.weights}`, on data version `{data_version}`.",
        f"The trainings took {hours:.1f} hours in all.",
        "",
        _table(["cell", "objective"], [[name, cell.title] for name, cell in ablation.cells.items()]),
        "",
        "Metrics as in `bebygan.metrics.PROTOCOL`, of whole photographs; grey ones count as RGB. Generators compute in "
        f"{resolve(trainings[0].params.evaluate.precision, training_device())}. Flat regions are those that the paper "
        "hides from the discriminator.",
        *(f"{TITLES[name]}: {text}." for name, text in DEFINITIONS.items()),
        "",
        "## The paper's claims",
        "",
        "A claim is reproduced if all its metrics support it with 95 % confidence, refuted if one contradicts it with "
        "95 % confidence, and undecided otherwise.",
        "",
        *_claims(ablation, rows, benchmarks),
        "",
    ]
    for benchmark in benchmarks:
        count = sum(each.benchmark == benchmark for each in photographs)
        lines += [f"## {benchmark} ({count} photographs)", "", means_table(ablation, rows, benchmark), ""]
        lines += [
            "Each cell beside the one before it: mean paired difference over photographs, seeds averaged, and its 95 % "
            "interval, for which fewer than six photographs are too few.",
            "",
            differences_table(ablation, rows, benchmark),
            "",
        ]
    lines += [
        "## Pictures",
        "",
        f"Of {', '.join(dict.fromkeys(each.benchmark for each in shown))} the photograph whose LPIPS of the start is "
        "the median, and of it the square with most texture and the one where the start has most texture in flat "
        "regions; first seed.",
        "",
        *_pictures(ablation, of_shown, shown, upscalers, output.parent / "images"),
    ]
    output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(output) as temporary:
        temporary.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
