"""Figures: what was measured beside its reference and its mark, as a file and as a table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tabulate import tabulate

from bebygan.errors import DataError
from bebygan.files import whole_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure; an object of results.json."""

    name: str
    ours: float
    reference: float | None
    ratio: float | None
    """How many times ours is better than the reference."""
    unit: str
    """Of ours and of the reference."""
    target: str | None
    """What ratio or ours should be."""
    met: bool | None


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def compared(
    name: str, ours: float, reference: float, unit: str, least: float | None, *, more_is_better: bool = False
) -> Figure:
    """Return a figure whose mark is a ratio of at least `least`; neither number may be 0."""
    ratio = ours / reference if more_is_better else reference / ours
    return Figure(
        name=name,
        ours=_rounded(ours),
        reference=_rounded(reference),
        ratio=_rounded(ratio),
        unit=unit,
        target=None if least is None else f"ratio >= {least:g}",
        met=None if least is None else ratio >= least,
    )


def limited(name: str, ours: float, unit: str, most: float) -> Figure:
    """Return a figure without a reference, whose mark is an upper bound."""
    return Figure(
        name=name,
        ours=_rounded(ours),
        reference=None,
        ratio=None,
        unit=unit,
        target=f"ours <= {most:g}",
        met=ours <= most,
    )


def no_worse(name: str, ours: float, reference: float, unit: str) -> Figure:
    """Return a figure that may be 0, whose mark is that the reference is not smaller."""
    return Figure(
        name=name,
        ours=_rounded(ours),
        reference=_rounded(reference),
        ratio=_rounded(reference / ours) if ours else None,
        unit=unit,
        target="ours <= reference",
        met=ours <= reference,
    )


def write_figures(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures into a file of figures; those of other names that stand there stay.

    Raises:
        DataError: the file is no list of figures.
        StorageError: it cannot be written.
    """
    kept = {figure["name"]: figure for figure in _read(path)}
    kept |= {figure.name: asdict(figure) for figure in figures}
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(list(kept.values()), indent=2, ensure_ascii=False) + "\n")


def _read(path: Path) -> list[dict[str, object]]:
    if not path.exists():
        return []
    names = {field.name for field in fields(Figure)}
    try:
        content = json.loads(path.read_text())
        if not all(set(figure) == names for figure in content):
            raise DataError(f"{path} holds objects without exactly {', '.join(sorted(names))}: correct or remove it")
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no list of figures ({error}): correct or remove it") from error
    return list(content)


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as aligned text."""
    titles = ("figure", "ours", "reference", "unit", "ratio", "target", "met")
    rows = [
        (
            figure.name,
            f"{figure.ours:g}",
            "" if figure.reference is None else f"{figure.reference:g}",
            figure.unit,
            "" if figure.ratio is None else f"{figure.ratio:.3g}",
            figure.target or "",
            {True: "yes", False: "NO", None: ""}[figure.met],
        )
        for figure in figures
    ]
    return str(tabulate(rows, titles, tablefmt="plain", disable_numparse=True))
