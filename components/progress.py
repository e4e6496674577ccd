"""Progress: a bar on a terminal, otherwise a line every 15 seconds."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO, TypeVar

from tqdm import tqdm

from bebygan.errors import without_password

WATCHER = "BEBYGAN_WATCHER"
"""Environment variable: file or terminal for messages to the user while the output of a task goes to a log."""
_SECONDS_BETWEEN_PLAIN_LINES = 15.0
T = TypeVar("T")


@cache
def _opened(path: str) -> TextIO:
    return Path(path).open("a", buffering=1, errors="backslashreplace")


def _watcher() -> TextIO:
    path = os.environ.get(WATCHER)
    return _opened(path) if path else sys.stderr


def printable(text: str) -> str:
    """Escape control characters and line breaks, which file names may contain, and remove passwords of addresses."""
    shown = (each if each.isprintable() else each.encode("unicode_escape").decode() for each in without_password(text))
    return "".join(shown)


def say(text: str) -> None:
    """Print one line to the user."""
    # In one write: other processes may print at the same time.
    print(f"{printable(text)}\n", end="", file=_watcher(), flush=True)


def announce(text: str) -> None:
    """Print one line of the output of the task to a user who does not see this output."""
    if os.environ.get(WATCHER):
        say(text)


@contextmanager
def progress_bar(what: str, unit: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yield a function to call with the number of further units that are done."""
    if _watcher().isatty():
        with tqdm(desc=what, unit=f" {unit}", total=total, file=_watcher(), mininterval=0.2) as bar:
            yield bar.update
        return
    started = shown = time.monotonic()
    done = done_before = 0

    def advance(units: int) -> None:
        nonlocal done, done_before, shown
        if units > 1 and not done:
            # The work of an earlier process does not predict the remaining time.
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
