"""The ledger: a record of every move of a model's alias champion. Entries are never overwritten.

It has one JSON file per move, `<ledger>/<model>/<NNNNNN>.json`, in a folder or below s3://bucket/prefix. Only the first
writer of a number succeeds, so one of two concurrent promotions wins: MLflow's aliases have no conditional updates.
"""

import dataclasses
import datetime
import getpass
import json
import os
import re
from dataclasses import dataclass

from bebygan.errors import DataError
from components.stores import StoredFile, open_store

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
    """`promote`, or `by hand` for a move outside the pipeline that was detected later."""
    reason: str
    run: str
    """MLflow run of the step that wrote this."""
    data_version: str | None
    who: str
    time: str
    """UTC, ISO 8601."""


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


def _stored(ledger: str, model: str) -> list[StoredFile]:
    """Return the files of the entries, oldest first."""
    return [file for file in open_store(f"{ledger}/{model}").files() if _NAME.fullmatch(file.name)]


def _move(file: StoredFile, ledger: str, model: str) -> Move:
    try:
        return Move(**{**json.loads(file.read()), "number": int(file.name.removesuffix(".json"))})
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{ledger}/{model}/{file.name} is not a ledger entry ({error}): restore it from a backup, or name another "
            "ledger"
        ) from error


def entries(ledger: str, model: str) -> list[Move]:
    """Return all moves of a model's champion, oldest first.

    Raises:
        DataError: an entry is damaged.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
    """
    return [_move(file, ledger, model) for file in _stored(ledger, model)]


def last(ledger: str, model: str) -> Move | None:
    """Return the newest move, or None if there is none; see `entries`."""
    found = _stored(ledger, model)
    return _move(found[-1], ledger, model) if found else None


def append(ledger: str, model: str, move: Move) -> bool:
    """Write a move under its number unless the number is taken.

    Returns:
        Whether the number is ours. Otherwise another process moved the champion: read `last` and decide again.

    Raises:
        ServiceError: the bucket is unreachable, unknown, or refuses access.
        StorageError: the folder cannot be written, or its file system has no hard links.
    """
    content = (json.dumps(dataclasses.asdict(move), indent=2) + "\n").encode()
    return open_store(f"{ledger}/{model}").write_if_absent(f"{move.number:06}.json", content)
