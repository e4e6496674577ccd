import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from components import progress as module
from components.progress import WATCHER, announce, printable, progress, progress_bar, say

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
    """Create the file of messages to the user; return a function that reads its lines."""
    path = tmp_path / "watched"
    path.touch()
    monkeypatch.setenv(WATCHER, str(path))
    module._opened.cache_clear()
    yield lambda: path.read_text().splitlines()
    module._opened.cache_clear()


def test_short_work_prints_no_progress(watched: Callable[[], list[str]]) -> None:
    assert list(progress(range(1000), "patches", "photographs", 1000)) == list(range(1000))
    assert watched() == []


def test_without_a_terminal_progress_prints_a_line_every_15_seconds(
    watched: Callable[[], list[str]], clock: Clock
) -> None:
    for _ in progress(range(100), "train", "iterations", 100):
        clock.now += 0.5
    assert watched() == [
        "train: 30 of 100 iterations in 15 s, 35 s to go",
        "train: 60 of 100 iterations in 30 s, 20 s to go",
        "train: 90 of 100 iterations in 45 s, 5 s to go",
    ]


def test_progress_prints_a_line_for_each_slow_unit(watched: Callable[[], list[str]], clock: Clock) -> None:
    for _ in progress(range(3), "evaluate", "photographs", 3):
        clock.now += 60
    assert [line.partition(" in ")[0] for line in watched()] == [
        f"evaluate: {done} of 3 photographs" for done in (1, 2, 3)
    ]


def test_progress_prints_a_question_mark_for_an_unknown_total(watched: Callable[[], list[str]], clock: Clock) -> None:
    with progress_bar("fetch", "MB", None) as advance:
        clock.now += 20
        advance(7)
    assert watched() == ["fetch: 7 of ? MB in 20 s"]


def test_each_line_is_written_to_the_watched_file_at_once(watched: Callable[[], list[str]]) -> None:
    say("ingest ...")
    assert watched() == ["ingest ..."]
    say("ingest done in 3 s")
    assert watched() == ["ingest ...", "ingest done in 3 s"]


def test_what_the_output_has_too_is_said_only_to_a_user_who_does_not_see_it(
    watched: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("ingest: 3 files quarantined")
    assert watched() == ["ingest: 3 files quarantined"]
    monkeypatch.delenv(WATCHER)
    announce("ingest: 3 files quarantined")
    assert capsys.readouterr().err == ""


def test_progress_does_not_catch_errors(watched: Callable[[], list[str]]) -> None:
    with pytest.raises(ZeroDivisionError), progress_bar("train", "iterations", 10):
        raise ZeroDivisionError
    assert watched() == []


CODE = """
from components.progress import progress, say
say("begin")
assert list(progress(range(5), "evaluate", "photographs", 5)) == [0, 1, 2, 3, 4]
"""


def test_the_bar_appears_on_the_terminal_and_not_in_the_output_of_the_task() -> None:
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


def test_progress_is_printed_to_standard_error_by_default() -> None:
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
def test_printable_escapes_control_characters_and_line_breaks(
    text: str, shown: str, watched: Callable[[], list[str]]
) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown
    say(text)
    assert watched() == [shown]
