"""Progress: a bar on a terminal, else a plain line now and then."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

WATCHER = "BEBYGAN_WATCHER"
"""Environment variable: file or terminal that a person watches while a task's own output goes into a log."""
_SECONDS_BETWEEN_PLAIN_LINES = 15.0
T = TypeVar("T")


@cache
def _opened(path: str) -> TextIO:
    return Path(path).open("a", buffering=1, errors="backslashreplace")


def _watcher() -> TextIO:
    path = os.environ.get(WATCHER)
    return _opened(path) if path else sys.stderr


def printable(text: str) -> str:
    """Escape control characters and line breaks: a file's name must not forge lines or steer a terminal."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def say(text: str) -> None:
    """Print one line to the person who watches."""
    # In one piece: others may print at the same moment.
    print(f"{printable(text)}\n", end="", file=_watcher(), flush=True)


@contextmanager
def progress_bar(what: str, unit: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yield a function that takes how many more units are done."""
    if _watcher().isatty():
        with tqdm(desc=what, unit=f" {unit}", total=total, file=_watcher(), mininterval=0.2) as bar:
            yield bar.update
        return
    started = shown = time.monotonic()
    done = done_before = 0

    def advance(units: int) -> None:
        nonlocal done, done_before, shown
        if units > 1 and not done:
            # What an earlier process did does not predict the time that is left.
            done_before = units
        done += units
        now = time.monotonic()
        if now - shown >= _SECONDS_BETWEEN_PLAIN_LINES:
            shown = now
            new = done - done_before
            left = f", {(total - done) / new * (now - started):.0f} s to go" if total and new else ""
            say(f"{what}: {done} of {total or '?'} {unit} in {now - started:.0f} s{left}")

    yield advance


def progress(items: Iterable[T], what: str, unit: str, total: int) -> Iterator[T]:
    """Yield the items and show how many are done."""
    with progress_bar(what, unit, total) as advance:
        for item in items:
            yield item
            advance(1)
