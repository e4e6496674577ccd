"""Progress: a bar on a terminal, a plain line now and then without one."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

_SECONDS_BETWEEN_PLAIN_LINES = 15.0
T = TypeVar("T")


def progress(items: Iterable[T], what: str, unit: str, total: int | None = None, initial: int = 0) -> Iterator[T]:
    """Yield the items and show how far they are."""
    terminal = sys.stderr.isatty()
    bar = tqdm(
        items,
        desc=what,
        unit=f" {unit}",
        total=total,
        initial=initial,
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_PLAIN_LINES,
        miniters=None if terminal else 1,
        bar_format=None if terminal else "{desc}: {n_fmt}/{total_fmt}{unit}, {elapsed} of about {remaining} more\n",
        leave=terminal,
        # The first, empty line says nothing where lines stay.
        delay=0 if terminal else 1e-9,
    )
    yield from bar
