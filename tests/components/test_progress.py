import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components import progress as module
from components.progress import WATCHER, printable, progress, progress_bar, say

ROOT = Path(__file__).parents[2]


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """Makes a file of what a person watches; reads its lines."""
    path = tmp_path / "watched"
    path.touch()
    monkeypatch.setenv(WATCHER, str(path))
    module._opened.cache_clear()
    yield lambda: path.read_text().splitlines()
    module._opened.cache_clear()


def test_what_takes_moments_is_not_told(watched: Callable[[], list[str]]) -> None:
    assert list(progress(range(1000), "patches", "photographs", 1000)) == list(range(1000))
    assert watched() == []


def test_without_a_terminal_a_line_comes_now_and_then(watched: Callable[[], list[str]], clock: Clock) -> None:
    for _ in progress(range(100), "train", "iterations", 100):
        clock.now += 0.5
    assert watched() == [
        "train: 30 of 100 iterations in 15 s, 35 s to go",
        "train: 60 of 100 iterations in 30 s, 20 s to go",
        "train: 90 of 100 iterations in 45 s, 5 s to go",
    ]


def test_slow_units_are_told_one_by_one(watched: Callable[[], list[str]], clock: Clock) -> None:
    for _ in progress(range(3), "evaluate", "photographs", 3):
        clock.now += 60
    assert [line.partition(" in ")[0] for line in watched()] == [
        f"evaluate: {done} of 3 photographs" for done in (1, 2, 3)
    ]


def test_an_unknown_total_is_told_as_such(watched: Callable[[], list[str]], clock: Clock) -> None:
    with progress_bar("fetch", "MB", None) as advance:
        clock.now += 20
        advance(7)
    assert watched() == ["fetch: 7 of ? MB in 20 s"]


def test_a_file_that_is_watched_gets_each_line_at_once(watched: Callable[[], list[str]]) -> None:
    say("ingest ...")
    assert watched() == ["ingest ..."]
    say("ingest done in 3 s")
    assert watched() == ["ingest ...", "ingest done in 3 s"]


def test_an_error_inside_passes_through(watched: Callable[[], list[str]]) -> None:
    with pytest.raises(ZeroDivisionError), progress_bar("train", "iterations", 10):
        raise ZeroDivisionError
    assert watched() == []


CODE = """
from components.progress import progress, say
say("begin")
assert list(progress(range(5), "evaluate", "photographs", 5)) == [0, 1, 2, 3, 4]
"""


def test_a_terminal_gets_a_bar_while_the_task_s_own_output_stays_clean() -> None:
    ours, theirs = pty.openpty()
    variables = os.environ | {WATCHER: os.ttyname(theirs)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    os.close(theirs)
    shown = os.read(ours, 10_000).decode()
    os.close(ours)
    assert (done.stdout, done.stderr) == ("", "")
    assert shown.startswith("begin\r\n")
    assert "evaluate: 100%" in shown
    assert "5/5" in shown


def test_without_a_watcher_lines_go_to_standard_error() -> None:
    variables = {name: value for name, value in os.environ.items() if name != WATCHER}
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=ROOT, env=variables, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "begin\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größer 次.png", "größer 次.png"),
        ("a\nb\tc\rd", r"a\nb\tc\rd"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("gnp.\u202eexe", r"gnp.\u202eexe"),
        ("\udcff\u2028", r"\udcff\u2028"),
        (r"already \n escaped", r"already \n escaped"),
    ],
)
def test_what_steers_a_terminal_or_breaks_a_line_is_escaped(
    text: str, shown: str, watched: Callable[[], list[str]]
) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    say(text)
    assert watched() == [shown]
