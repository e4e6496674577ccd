"""The ledger: a record of every move of a model's alias champion. Entries are never overwritten.

Each entry holds the digest of the one before, and the registered model has the digest of the newest as a tag. So an
entry that was changed, lost or replaced later is found, and so is a ledger of another place.

In a bucket with versions, the first version of an entry counts, also if it was overwritten or deleted later.

It has one JSON file per move, `<ledger>/<model>/<NNNNNN>.json`, in a folder or below s3://bucket/prefix. Only the first
writer of a number succeeds, so one of two concurrent promotions wins: MLflow's aliases have no conditional updates.
"""

import dataclasses
import datetime
import getpass
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from bebygan.errors import DataError
from components.stores import Store, StoredFile, open_store

HEAD = "ledger_head"
"""Tag of a registered model: number and digest of the newest entry of its ledger."""
BY_COMMAND = "by command"
BY_HAND = "by hand"
ROLLBACK = "rollback"
_NAME = re.compile(r"\d{6}\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of the alias champion."""

    number: int
    """From 1."""
    version: str | None
    """Version that has the alias afterwards; None if a person removed the alias."""
    previous: str | None
    """Version that had it before."""
    weights_sha256: str | None
    """Of `version`. A restored backup may give the same version number to another model; its weights differ."""
    verdict: str
    """`promote` for a promotion by a run, BY_COMMAND or ROLLBACK for `bebygan promote` or `bebygan rollback`, and
    BY_HAND for a move outside this project that was detected later."""
    reason: str
    run: str
    """MLflow run of the step that wrote this."""
    data_version: str | None
    who: str
    time: str
    """UTC, ISO 8601."""
    before: str | None = field(default=None, compare=False)
    """`digest` of the entry before. `append` sets it; the first entry, and entries of version 0.1.0, have none."""


def who() -> str:
    """Return the Kubeflow run that this process belongs to, otherwise its user."""
    if run := os.environ.get("KFP_RUN_ID"):
        return f"kubeflow run {run}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container the user often has no name.
        return f"user {os.getuid()}"


def now() -> str:
    """Return the time for an entry."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _content(move: Move) -> bytes:
    return (json.dumps(dataclasses.asdict(move), indent=2) + "\n").encode()


def digest(move: Move) -> str:
    """Return the SHA-256 of an entry."""
    return hashlib.sha256(_content(move)).hexdigest()


def _move(file: StoredFile, place: str) -> Move:
    try:
        return Move(**{**json.loads(file.read()), "number": int(file.name.removesuffix(".json"))})
    except (ValueError, TypeError) as error:
        raise _damaged(f"{place}/{file.name} is not a ledger entry ({error})") from error


def _damaged(what: str) -> DataError:
    return DataError(f"{what}: restore it from a backup, or name another ledger")


def head_of(newest: Move) -> str:
    """Return the value of the tag HEAD."""
    return f"{newest.number} {digest(newest)}"


def entries(ledger: str, model: str) -> list[Move]:
    """Return all moves of a model's champion, oldest first.

    Raises:
        DataError: an entry is damaged, missing, or changed after the next one was written.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
    """
    return _entries(open_store(f"{ledger}/{model}"))


def _entries(store: Store) -> list[Move]:
    found: list[Move] = []
    for file in store.originals():
        if not _NAME.fullmatch(file.name):
            continue
        move, before = _move(file, store.address), found[-1] if found else None
        if move.number != len(found) + 1:
            raise _damaged(f"{store.address}/{len(found) + 1:06}.json is missing")
        if before and (move.before or before.before) and move.before != digest(before):
            raise _damaged(f"{store.address}/{before.number:06}.json changed after {file.name} was written")
        found.append(move)
    return found


def last(ledger: str, model: str) -> Move | None:
    """Return the newest move, or None if there is none; see `entries`."""
    found = entries(ledger, model)
    return found[-1] if found else None


def champions(moves: Sequence[Move]) -> list[Move]:
    """Return the moves that made the champion and, before it, those that rollbacks return to one after another.

    A rollback removes the champions after the one that it returned to: a second rollback goes back further. So does a
    person who set the alias back by one champion. The last move is that of the newest champion, also if a person has
    removed its alias since.
    """
    stack: list[Move] = []
    for move in moves:
        returns = move.verdict == BY_HAND and [each.version for each in stack[-2:-1]] == [move.version]
        if move.verdict == ROLLBACK or returns:
            while stack and stack[-1].version != move.version:
                stack.pop()
            stack = stack or [dataclasses.replace(move, previous=None)]
        elif move.version and [each.version for each in stack[-1:]] != [move.version]:
            stack.append(move)
    return stack


def withdrawn(moves: Sequence[Move]) -> dict[str, Move]:
    """Return the rollback that replaced a version, by version, for those that were not champion again since."""
    found: dict[str, Move] = {}
    for move in moves:
        found.pop(move.version or "", None)
        if move.verdict == ROLLBACK and move.previous:
            found[move.previous] = move
    return found


def append(ledger: str, model: str, move: Move) -> str | None:
    """Write a move under its number unless the number is taken.

    Returns:
        The value of the tag HEAD for this entry. None if the number is taken, because another process moved the
        champion: read `last` and decide again.

    Raises:
        DataError: as `entries`.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
        StorageError: the folder cannot be written, or its file system has no hard links.
    """
    store, name = open_store(f"{ledger}/{model}"), f"{move.number:06}.json"
    before = _entries(store)[: move.number - 1]
    chained = dataclasses.replace(move, before=digest(before[-1]) if before else None)
    content = _content(chained)
    # Where an entry was deleted, a bucket with versions accepts another one, which does not count.
    counts = store.write_if_absent(name, content) and content in [
        file.read() for file in store.originals() if file.name == name
    ]
    return head_of(chained) if counts else None


def check_complete(ledger: str, model: str, head: str) -> None:
    """Check that a ledger holds the entry that the registry knows as the newest, or newer ones.

    Args:
        ledger: folder or s3:// prefix.
        model: name of the registered model.
        head: tag HEAD of the registered model.

    Raises:
        DataError: the entry is missing or changed.
        ServiceError: as `entries`.
    """
    number, _, expected = head.partition(" ")
    found = {f"{move.number}": digest(move) for move in entries(ledger, model)}
    if found.get(number) != expected:
        what = "a changed entry" if number in found else "no entry"
        raise DataError(
            f"the ledger {ledger} holds {what} {number} of {model}, which the registry knows: name the ledger that all "
            f"runs with this registry share, restore the entry from a backup, or delete the tag {HEAD} of the "
            "registered model to begin a new ledger"
        )
