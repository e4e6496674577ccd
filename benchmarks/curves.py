"""Draw the curves of a training as a picture for the documentation.

`python -m benchmarks.curves workspace/pipeline/RUN/challenger/history.jsonl --output curves.svg`
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from bebygan.files import whole_file
from components.evaluate.charts import BOTTOM, LEFT, RIGHT, TOP, Chart, training_curves

VALUES = ("validation.lpips", "validation.psnr_y", "validation.lr_psnr", "discriminator")
_WIDTH, _HEIGHT, _HEADING = 320, 220, 24
_STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#55606e}.title{font-size:13px;font-weight:600;fill:#1a222c}"
    "path{fill:none;stroke:#1c5fa8;stroke-width:2;stroke-linejoin:round}.raw{stroke-width:1;opacity:.4}"
    "line{stroke:#dbe1e8}.mark{stroke:#17703c;stroke-dasharray:4 3}circle{fill:#1c5fa8}"
)


def _text(x: float, y: float, text: str, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _drawn(chart: Chart) -> Iterator[str]:
    """Yield the elements of a chart whose area is that of `components.evaluate.charts`."""
    yield _text(LEFT, -8, chart.title, "start", ' class="title"')
    for at, text in chart.y.ticks:
        yield f'<line x1="{LEFT}" x2="{RIGHT}" y1="{at}" y2="{at}"/>' + _text(LEFT - 4, at + 3.5, text, "end")
    for at, text in chart.x.ticks:
        yield f'<line x1="{at}" x2="{at}" y1="{TOP}" y2="{BOTTOM}"/>' + _text(at, BOTTOM + 14, text)
    yield _text((LEFT + RIGHT) / 2, BOTTOM + 32, chart.x.label)
    if chart.mark:
        at, text = chart.mark
        yield f'<line class="mark" x1="{at}" x2="{at}" y1="{TOP}" y2="{BOTTOM}"/>'
        right = at > (LEFT + RIGHT) / 2
        yield _text(at + (-4 if right else 4), TOP + 10, text, "end" if right else "start")
    yield from (f'<path class="{kind}" d="{path}"/>' for kind, path in chart.lines)
    yield from (f'<circle cx="{point.x}" cy="{point.y}" r="2.5"/>' for point in chart.points)


def picture(charts: Sequence[Chart], columns: int = 2) -> str:
    """Return an SVG with the charts in rows of `columns`, on white."""
    rows = -(-len(charts) // columns)
    width, height = columns * _WIDTH, rows * (_HEIGHT + _HEADING)
    parts = []
    for number, chart in enumerate(charts):
        row, column = divmod(number, columns)
        parts.append(f'<g transform="translate({column * _WIDTH} {row * (_HEIGHT + _HEADING) + _HEADING})">')
        parts += [*_drawn(chart), "</g>"]
    label = escape("; ".join(chart.about for chart in charts), quote=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">'
    return "\n".join(
        [head, f"<style>{_STYLE}</style>", '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>\n"]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__.splitlines()[0])
    parser.add_argument("history", type=Path, help="history.jsonl of a train step")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    entries = [json.loads(line) for line in options.history.read_text().splitlines()]
    kept = ("iteration", "delivered", *VALUES)
    history = [{name: entry[name] for name in kept if name in entry} for entry in entries]
    with whole_file(options.output) as temporary:
        temporary.write_text(picture(training_curves(history)), encoding="utf-8")


if __name__ == "__main__":
    main()
