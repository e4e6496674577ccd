"""The rows of the table of faults: what happens to a thing, and how that ends."""

import os
import random
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.faults.behind import dead_servers
from tests.system.faults.columns import COLUMNS, Column
from tests.system.faults.sandbox import Ended, Sandbox
from tests.system.faults.table import HARMLESS, NOT_BEHIND, REPAIRED, TOLD, WORDS


@dataclass(frozen=True)
class Known:
    """An undamaged thing."""

    used: Any
    state: Any
    absent: Any
    """What `use` returns while it is missing; None if that is an error."""
    seconds: float
    """That it takes to make."""


class SilentlyWrongError(AssertionError):
    """A fault that nothing told."""


def _clean(ended: Ended, doing: str) -> Ended:
    """Refuse a traceback, and more than one line about an error."""
    errors = re.findall(r"^error: .*$", ended.said, re.MULTILINE)
    lines = ended.code in WORDS and len(errors) != 1
    if "Traceback" in ended.said or ended.code == 70 or lines:
        raise AssertionError(f"{doing} ended with code {ended.code}:\n{ended.said}")
    return ended


def _succeeded(ended: Ended, doing: str) -> Any:
    if _clean(ended, doing).code:
        raise AssertionError(f"{doing} ended with code {ended.code}:\n{ended.said}")
    return ended.value


def _state_of(column: Column) -> Callable[[], Any]:
    return column.state or column.use


def measure(box: Sandbox, column: Column) -> Known:
    """Use and make a thing to which nothing happens."""
    state = _succeeded(box.call(_state_of(column)), "state")
    box.reset()
    used = _succeeded(box.call(column.use), "use")
    box.reset()
    _succeeded(box.call(column.remove), "remove")
    started = time.monotonic()
    _succeeded(box.call(column.make), "make")
    seconds = time.monotonic() - started
    again = _succeeded(box.call(_state_of(column)), "state")
    assert again == state, (again, state)
    box.reset()
    box.call(column.remove)
    absent = _clean(box.call(column.use), "use of what is missing").value
    return Known(used, state, absent, seconds)


def _judged(ended: Ended, expected: Any, column: Column, repaired: bool) -> str:
    """Return how a damage ended."""
    if _clean(ended, "use").code:
        return WORDS.get(ended.code, f"exit code {ended.code}")
    if ended.value == expected:
        return REPAIRED if repaired else HARMLESS
    if column.told and re.search(column.told, ended.said):
        return TOLD
    raise SilentlyWrongError(f"{ended.value} instead of {expected}\n{ended.said}")


def _whole_afterwards(box: Sandbox, column: Column, known: Known, said: str) -> str:
    """Check that what was cut is missing, or whole, and that doing it again makes it; return how its use ended."""
    between = _clean(box.call(column.use), f"use after {said}")
    expected = known.absent if column.ours and between.value == known.absent else known.used
    ended = _judged(between, expected, column, repaired=False)
    _succeeded(box.call(column.make), f"make after {said}")
    found = _succeeded(box.call(_state_of(column)), "state")
    if found != known.state:
        raise SilentlyWrongError(f"made again after {said}: {found} instead of {known.state}")
    return ended


def _interrupted(number: int) -> Callable[[Sandbox, Column, Known, random.Random], str]:
    def row(box: Sandbox, column: Column, known: Known, chance: random.Random) -> str:
        box.call(column.remove)
        ended = box.interrupt(column.make, known.seconds, number, chance)
        assert ended.code in (0, -number, 75), (ended.code, ended.said)
        between = _whole_afterwards(box, column, known, signal.Signals(number).name)
        return REPAIRED if column.ours else between

    return row


def _refused(box: Sandbox, column: Column, known: Known, said: str, repair: Callable[[], None]) -> str:
    ended = _clean(box.call(column.make), f"make on {said}")
    repair()
    between = _whole_afterwards(box, column, known, said)
    if not column.ours:
        return between
    if ended.code:
        return WORDS[ended.code]
    return TOLD if "warning: " in ended.said else HARMLESS


def _full(box: Sandbox, column: Column, known: Known, _: random.Random) -> str:
    box.call(column.remove)
    box.fill()
    return _refused(box, column, known, "a full disk", box.make_room)


def _read_only(box: Sandbox, column: Column, known: Known, _: random.Random) -> str:
    box.call(column.remove)
    box.make_read_only()
    return _refused(box, column, known, "a read-only disk", lambda: box.make_read_only(False))


def _cut_off(box: Sandbox, column: Column, cut: Callable[[Callable[[], Any]], Ended]) -> str:
    """Write and read what lies behind a server with and without it; return how that ended without."""

    def all_of() -> list[Any]:
        return [_succeeded(box.call(work), "use with the server") for work in column.behind]

    expected = all_of()
    found = {_judged(cut(work), value, column, False) for work, value in zip(column.behind, expected, strict=True)}
    if (after := all_of()) != expected:
        raise SilentlyWrongError(f"{after} instead of {expected} after the server was there again")
    return " or ".join(sorted(found))


def _server_dies(box: Sandbox, column: Column, _known: Known, _: random.Random) -> str:
    if not column.behind:
        return NOT_BEHIND

    def cut(work: Callable[[], Any]) -> Ended:
        with dead_servers():
            return box.call(work)

    return _cut_off(box, column, cut)


def _without_network(box: Sandbox, column: Column, known: Known, _: random.Random) -> str:
    behind = ""
    if column.behind:
        behind = _cut_off(box, column, lambda work: box.call(lambda: (box.cut_network(), work())[1]))
        box.reset()
    box.call(column.remove)
    box.cut_network()
    _succeeded(box.call(column.make), "make without network")
    here = _judged(box.call(column.use), known.used, column, repaired=False)
    return f"{here} or {behind}" if behind else here


def _two_at_once(box: Sandbox, column: Column, known: Known, _: random.Random) -> str:
    box.call(column.remove)
    both = [box.start(column.make) for _ in range(2)]
    ended = [_clean(each.ended(), "one of two") for each in both]
    codes = sorted(each.code for each in ended)
    found = _succeeded(box.call(_state_of(column)), "state")
    if found != known.state:
        raise SilentlyWrongError(f"made by two: {found} instead of {known.state}")
    return HARMLESS if not any(codes) else WORDS[codes[-1]]


def _flip(content: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]


def _damaged(
    change: Callable[[bytes, Path, Column, random.Random], bytes | None], times: int = 1, *, is_older: bool = False
) -> Callable[[Sandbox, Column, Known, random.Random], str]:
    """The row of a change of each of the files; all must end the same way, or be detected."""

    def row(box: Sandbox, column: Column, known: Known, chance: random.Random) -> str:
        found = []
        for path in _succeeded(box.call(column.files), "files") * times:
            original = path.read_bytes()
            content = change(original, path, column, chance)
            if content == original:
                continue
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
            ended = box.call((is_older and column.use_older) or column.use)
            repaired = path.exists() and path.read_bytes() == original
            try:
                found.append(_judged(ended, known.used, column, repaired))
            except AssertionError as error:
                raise type(error)(f"{path}: {error}") from None
            box.reset()
        assert found, "no file was changed"
        return " or ".join(sorted(set(found), key=found.index))

    return row


Row = Callable[[Sandbox, Column, Known, random.Random], str]
ROWS: dict[str, Row] = {
    "kill -9": _interrupted(signal.SIGKILL),
    "SIGTERM": _interrupted(signal.SIGTERM),
    "disk full": _full,
    "read-only": _read_only,
    "network cut": _without_network,
    "server dies": _server_dies,
    "two at once": _two_at_once,
    "flipped bit": _damaged(lambda content, _path, _column, chance: _flip(content, chance), times=2),
    "truncated": _damaged(lambda content, _path, _column, chance: content[: chance.randrange(len(content))]),
    "deleted": _damaged(lambda *_: None),
    "older": _damaged(lambda _content, path, column, _chance: column.older(path), is_older=True),
}


def run_cell(folder: Path, row: str, column: str, known: Known, seed: int, *, servers: Mapping[str, str]) -> str:
    """Return how a cell ends; called in a process of its own, which is told where the servers are."""
    os.environ.pop("BEBYGAN_PARENT_RUN", None)
    os.environ |= servers
    return ROWS[row](Sandbox(folder), COLUMNS[column], known, random.Random(seed))  # noqa: S311 - not a secret
