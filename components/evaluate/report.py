"""The comparison as one self-contained HTML page."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bebygan.imaging import Image
from components.artifacts import Means, Verdict
from components.evaluate.pictures import SIDE, embedded, training_curves
from components.evaluate.table import NAMES, TITLES, shown
from components.evaluate.verdict import METRICS


def html_report(
    verdict: Verdict,
    means: Means,
    rows: Sequence[Mapping[Hashable, Any]],
    panels: Mapping[str, Mapping[str, Image]],
    history: Sequence[Mapping[str, float]],
) -> str:
    """Return the page.

    Args:
        verdict: as written to verdict.json.
        means: finite, of each metric by candidate.
        rows: "photograph", "candidate" and the metrics, ordered by photograph.
        panels: images by photograph and caption.
        history: logged values of the challenger's training, oldest first; may be empty.
    """
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    return page.render(
        verdict=verdict,
        titles=TITLES,
        names=NAMES,
        shown=shown,
        means=means,
        best={
            metric: (max if higher else min)(row[metric] for row in means.values())
            for metric, higher in METRICS.items()
        },
        photographs=len({row["photograph"] for row in rows}),
        side=SIDE,
        pictures={name: {caption: embedded(image) for caption, image in row.items()} for name, row in panels.items()},
        curves=training_curves(history),
        rows=rows,
    )
