"""Progress: a bar on a terminal, a plain line now and then without one."""

import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

from tqdm import tqdm

_SECONDS_BETWEEN_PLAIN_LINES = 15.0
T = TypeVar("T")


def progress_bar(what: str, unit: str, total: int | None, initial: int = 0) -> "tqdm[NoReturn]":
    """Return a bar that the caller updates and closes."""
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=what,
        unit=f" {unit}",
        total=total,
        initial=initial,
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_PLAIN_LINES,
        miniters=None if terminal else 1,
        bar_format=None if terminal else "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} done, {remaining} to go\n",
        leave=terminal,
        # Where lines stay, the first one, that nothing is done yet, says nothing.
        delay=0 if terminal else 1e-9,
    )


def progress(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    """Yield the items and show how far they are."""
    with progress_bar(what, unit, total) as bar:
        for item in items:
            yield item
            bar.update()
