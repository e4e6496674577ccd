"""The comparison as one self-contained HTML page."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bebygan.imaging import Image
from components.artifacts import Anchor, Candidate, DataSummary, Gain, Means, Verdict
from components.comparison import MAIN, METRICS, NAMES, TITLES, changed, main_gains, main_opponent, shown
from components.config import Metric
from components.evaluate.background import Background
from components.evaluate.charts import Forest, Series, anchor_charts, forest, scatters, training_curves
from components.evaluate.gallery import ROLES, Mask, Sight
from components.evaluate.pictures import SIDE, embedded
from components.progress import printable
from components.stores.dataset import NAMED, counts_of, notices_of, reasons_of

Values = Mapping[Candidate, Mapping[Metric, Series]]
_MOST_CHARACTERS = 3_500_000
"""Of the pictures in the page, which stays below 5 MB with everything else."""
_MOST_PHOTOGRAPHS = 500
"""In charts and in the table of single photographs; per_photograph.csv has all."""
_FAILED = "failed: "
_OVERVIEW_QUALITY = 75
_TEXTURE_COLOUR, _ARTEFACT_COLOUR = (30, 120, 220, 110), (225, 30, 60, 150)
"""RGBA."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sight with its pictures as data URLs."""

    sight: Sight
    overview: str
    panels: Mapping[str, str]
    textured: str
    artefacts: str


def _coloured(mask: Mask, colour: tuple[int, int, int, int]) -> str:
    return embedded(np.where(mask[..., None], np.array(colour, np.uint8), np.uint8(0)))


def _encoded(sights: Iterable[Sight]) -> list[Shown]:
    """Return as many sights as the page may hold, by role; those that rank first are kept."""
    found: list[Shown] = []
    total = 0
    for sight in sights:
        each = Shown(
            sight=sight,
            overview=embedded(sight.overview, _OVERVIEW_QUALITY),
            panels={name: embedded(image) for name, image in sight.panels.items()},
            textured=_coloured(sight.textured, _TEXTURE_COLOUR),
            artefacts=_coloured(sight.artefacts, _ARTEFACT_COLOUR),
        )
        total += sum(map(len, (each.overview, each.textured, each.artefacts, *each.panels.values())))
        if total > _MOST_CHARACTERS:
            break
        found.append(each)
    return sorted(found, key=lambda each: ROLES.index(each.sight.roles[0]))


def _values(rows: Sequence[Mapping[Hashable, Any]], photographs: Sequence[str], metrics: Iterable[Metric]) -> Values:
    """Return the values of each candidate and metric in the order of the photographs; NaN for a missing one."""
    cells = {(row["candidate"], row["photograph"]): row for row in rows}
    return {
        candidate: {
            metric: np.array([cells[candidate, name].get(metric, np.nan) for name in photographs], float)
            for metric in metrics
        }
        for candidate in dict.fromkeys(cast(Candidate, row["candidate"]) for row in rows)
    }


def _forests(
    gains: Sequence[Gain], values: Values, bounds: Mapping[Candidate, Mapping[Metric, float]], confidence: float
) -> list[Forest]:
    """Return the gains by opponent, the champion first."""
    found = []
    for opponent in reversed(NAMES):
        own = [gain for gain in gains if gain.opponent == opponent]
        differences = {
            gain.metric: values["challenger"][gain.metric] - values[opponent][gain.metric]
            for gain in own
            if opponent in values
        }
        counted = {metric: each[~np.isnan(each)] for metric, each in differences.items()}
        spreads = {metric: float(each.std(ddof=1)) for metric, each in counted.items() if each.size > 1}
        if own:
            found.append(forest(own, spreads, bounds.get(opponent, {}), confidence))
    return found


def _each(
    values: Values, opponent: Candidate, photographs: Sequence[str]
) -> list[tuple[str, dict[Metric, tuple[str, str, str]]]]:
    """Return for each photograph, by main metric: the challenger's value, its change, and whether that is better."""
    found = []
    for number, name in enumerate(photographs):
        cells: dict[Metric, tuple[str, str, str]] = {}
        for metric in (metric for metric in MAIN if metric in values["challenger"]):
            ours, theirs = (float(values[each][metric][number]) for each in ("challenger", opponent))
            gain = (ours - theirs) * (1 if METRICS[metric] else -1)
            state = "better" if gain > 0 else "worse" if gain < 0 else "equal"
            cells[metric] = (shown(metric, ours), shown(metric, ours - theirs, "+"), state)
        found.append((name, cells))
    return found


def _anchor_rows(
    anchor: Anchor | None, before: Sequence[tuple[str, Mapping[str, float]]]
) -> list[tuple[str, Mapping[Metric, float]]]:
    """Return champions, oldest first, and the challenger on the anchor: name, and means by metric."""
    if anchor is None:
        return []
    rows = [(f"version {version}", cast(Mapping[Metric, float], means)) for version, means in before]
    return [(name, row) for name, row in (*rows, ("challenger", anchor.means["challenger"])) if row.keys() >= {*MAIN}]


def html_report(
    verdict: Verdict,
    means: Means,
    rows: Sequence[Mapping[Hashable, Any]],
    sights: Sequence[Sight],
    history: Sequence[Mapping[str, float]],
    *,
    summary: DataSummary,
    thumbnails: Mapping[int, Image],
    anchor: Anchor | None = None,
    on_anchor: Sequence[tuple[str, Mapping[str, float]]] = (),
    bounds: Mapping[Candidate, Mapping[Metric, float]] | None = None,
    background: Background | None = None,
    checks: str | None = None,
) -> str:
    """Return the page.

    Args:
        verdict: as written to verdict.json.
        means: finite, of each metric by candidate.
        rows: "photograph", "candidate" and the metrics, ordered by photograph.
        sights: squares of photographs, the most important first.
        history: logged values of the challenger's training, oldest first; may be empty.
        summary: of the dataset.
        thumbnails: of quarantined files, by their place in `summary.quarantined`.
        anchor: means over the photographs that stay the same.
        on_anchor: champions that were measured on them, oldest first: version, and its means by metric.
        bounds: gains over other candidates that are required; a negative one is the largest loss allowed.
        background: what is known about the run.
        checks: file beside the page with the results of ingest's checks.
    """
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    ).get_template("report.html")
    measured = [metric for metric in METRICS if all(metric in row for row in means.values())]
    opponent = main_opponent(means)
    photographs = list(dict.fromkeys(str(row["photograph"]) for row in rows))
    compared = [name for name in photographs if name not in summary.flat] or photographs
    values = _values(rows, compared, measured)
    listed = compared[:_MOST_PHOTOGRAPHS]
    listed_values = _values(rows, listed, measured)
    pictures = _encoded(sights)
    on_anchor_rows = _anchor_rows(anchor, on_anchor)
    return page.render(
        verdict=verdict,
        failed=[text.removeprefix(_FAILED) for text in verdict.reasons if text.startswith(_FAILED)],
        passed=[text.partition(": ")[2] for text in verdict.reasons if not text.startswith(_FAILED)],
        all_titles=TITLES,
        titles={metric: TITLES[metric] for metric in measured},
        main=MAIN,
        names=NAMES,
        shown=shown,
        changed=changed,
        means=means,
        best={metric: (max if METRICS[metric] else min)(row[metric] for row in means.values()) for metric in measured},
        opponent=opponent,
        cards=sorted(main_gains(verdict.gains), key=lambda gain: gain.metric != "lpips"),
        forests=_forests(verdict.gains, values, bounds or {}, verdict.confidence),
        photographs=photographs,
        listed=listed,
        each=_each(listed_values, opponent, listed),
        scatters=scatters(listed_values, opponent, listed),
        side=SIDE,
        sights=pictures,
        sight_of={each.sight.photograph: number for number, each in reversed([*enumerate(pictures)])},
        anchor=anchor,
        anchor_rows=on_anchor_rows,
        anchor_charts=anchor_charts(on_anchor_rows, MAIN),
        curves=training_curves(history),
        data=counts_of(summary),
        splits=summary.photographs,
        quarantined=summary.quarantined,
        reasons=reasons_of(summary.quarantined),
        notices=notices_of(summary),
        named=NAMED,
        checks=checks,
        thumbnails={number: embedded(image) for number, image in thumbnails.items()},
        background=background or Background(),
    )
