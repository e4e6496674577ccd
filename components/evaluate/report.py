"""The comparison as one self-contained HTML page."""

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bebygan.imaging import Image
from components.artifacts import Anchor, DataSummary, Gain, Means, Verdict
from components.comparison import MAIN, METRICS, NAMES, TITLES, changed, shown
from components.evaluate.pictures import SIDE, embedded, training_curves
from components.progress import printable
from components.stores.dataset import NAMED, counts_of, notices_of, reasons_of


def _positions(gain: Gain) -> list[float]:
    """Return where lower limit, mean and upper limit lie in a drawing that is 120 wide and has 0 in its middle."""
    if not gain.interval:
        return []
    values = (gain.interval[0], gain.mean, gain.interval[1])
    scale = max(map(abs, values)) or 1.0
    return [round(60 + 54 * value / scale, 1) for value in values]


def _anchor_rows(
    anchor: Anchor | None, before: Sequence[tuple[str, Mapping[str, float]]]
) -> list[tuple[str, Mapping[str, float], int]]:
    """Return champions and challenger on the anchor: name, means by metric, and LPIPS as a bar from 0 to 100."""
    if anchor is None:
        return []
    rows = [(f"version {version}", means) for version, means in before if "lpips" in means]
    rows.append(("challenger", {str(name): value for name, value in anchor.means["challenger"].items()}))
    most = max(means["lpips"] for _, means in rows) or 1.0
    return [(name, means, round(100 * means["lpips"] / most)) for name, means in rows]


def html_report(
    verdict: Verdict,
    means: Means,
    rows: Sequence[Mapping[Hashable, Any]],
    panels: Mapping[str, Mapping[str, Image]],
    history: Sequence[Mapping[str, float]],
    *,
    summary: DataSummary,
    thumbnails: Mapping[int, Image],
    anchor: Anchor | None = None,
    on_anchor: Sequence[tuple[str, Mapping[str, float]]] = (),
    checks: str | None = None,
) -> str:
    """Return the page.

    Args:
        verdict: as written to verdict.json.
        means: finite, of each metric by candidate.
        rows: "photograph", "candidate" and the metrics, ordered by photograph.
        panels: images by photograph and caption.
        history: logged values of the challenger's training, oldest first; may be empty.
        summary: of the dataset.
        thumbnails: of quarantined files, by their place in `summary.quarantined`.
        anchor: means over the photographs that stay the same.
        on_anchor: champions that were measured on them, oldest first: version, and its means by metric.
        checks: file beside the page with the results of ingest's checks.
    """
    page = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    ).get_template("report.html")
    return page.render(
        verdict=verdict,
        titles={metric: title for metric, title in TITLES.items() if all(metric in row for row in means.values())},
        names=NAMES,
        main=MAIN,
        all_titles=TITLES,
        shown=shown,
        means=means,
        # The champion comes first.
        gains=[
            (gain, _positions(gain))
            for gain in sorted(verdict.gains, key=lambda gain: -list(NAMES).index(gain.opponent))
        ],
        changed=changed,
        best={
            metric: (max if higher else min)(row[metric] for row in means.values())
            for metric, higher in METRICS.items()
            if all(metric in row for row in means.values())
        },
        photographs=len({row["photograph"] for row in rows}),
        side=SIDE,
        pictures={name: {caption: embedded(image) for caption, image in row.items()} for name, row in panels.items()},
        anchor=anchor,
        anchor_rows=_anchor_rows(anchor, on_anchor),
        curves=training_curves(history),
        rows=rows,
        data=counts_of(summary),
        quarantined=summary.quarantined,
        reasons=reasons_of(summary.quarantined),
        notices=notices_of(summary),
        named=NAMED,
        checks=checks,
        thumbnails={number: embedded(image) for number, image in thumbnails.items()},
    )
