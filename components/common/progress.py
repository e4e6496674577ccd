"""Progress: a bar on a terminal, a plain line now and then without one."""

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NoReturn, TextIO, TypeVar

from tqdm import tqdm

TERMINAL = "BEBYGAN_TERMINAL"
"""Environment variable: the terminal of the person who started the pipeline, whose tasks' own output is a pipe."""
_SECONDS_BETWEEN_PLAIN_LINES = 15.0
T = TypeVar("T")


@cache
def _terminal() -> TextIO | None:
    """Return the terminal to draw on, or None where nobody watches."""
    if sys.stderr.isatty():
        return sys.stderr
    if path := os.environ.get(TERMINAL):
        return Path(path).open("w")
    return None


def progress_bar(what: str, unit: str, total: int | None, initial: int = 0) -> "tqdm[NoReturn]":
    """Return a bar that the caller updates and closes."""
    terminal = _terminal()
    return tqdm(
        file=terminal or sys.stderr,
        desc=what,
        unit=f" {unit}",
        total=total,
        initial=initial,
        mininterval=0.2 if terminal else _SECONDS_BETWEEN_PLAIN_LINES,
        miniters=None if terminal else 1,
        bar_format=None if terminal else "{desc}: {n_fmt} of {total_fmt}{unit}, {elapsed} done, {remaining} to go\n",
        leave=bool(terminal),
        # Where lines stay, the first one, that nothing is done yet, says nothing.
        delay=0 if terminal else 1e-9,
    )


def progress(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    """Yield the items and show how far they are."""
    with progress_bar(what, unit, total) as bar:
        for item in items:
            yield item
            bar.update()
