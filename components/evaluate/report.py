"""The comparison as one self-contained HTML page."""

import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bebygan.imaging import Image
from components.artifacts import Means, Verdict
from components.config import Metric
from components.evaluate.pictures import SIDE, embedded, training_curves
from components.evaluate.table import NAMES, TITLES, shown
from components.evaluate.verdict import METRICS


def _best(means: Means, metric: Metric) -> float:
    values = [row[metric] for row in means.values() if not math.isnan(row[metric])]
    if not values:
        return math.nan
    return max(values) if METRICS[metric] else min(values)


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
        means: of each metric by candidate.
        rows: "photograph", "candidate" and the metrics, those of one photograph one after the other.
        panels: by photograph, images by caption.
        history: what the challenger's training logged, oldest first; may be empty.
    """
    best = {metric: _best(means, metric) for metric in METRICS}
    table = {
        candidate: [{"text": shown(metric, row[metric]), "best": row[metric] == best[metric]} for metric in METRICS]
        for candidate, row in means.items()
    }
    photographs = [row["photograph"] for row in rows]
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    ).get_template("report.html")
    return page.render(
        model=verdict.model,
        verdict=verdict,
        titles=TITLES,
        names=NAMES,
        table=table,
        photographs=len(set(photographs)),
        side=SIDE,
        pictures={name: {caption: embedded(image) for caption, image in row.items()} for name, row in panels.items()},
        curves=training_curves(history),
        rows=[
            {
                "photograph": row["photograph"],
                "first": number == 0 or row["photograph"] != photographs[number - 1],
                "candidate": row["candidate"],
                "texts": [shown(metric, row[metric]) for metric in METRICS],
            }
            for number, row in enumerate(rows)
        ],
    )
