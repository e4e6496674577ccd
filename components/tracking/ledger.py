"""The ledger: a record of every move of a model's alias champion that nobody can write over.

One JSON file for each move, `<ledger>/<model>/<NNNNNN>.json`, in a folder or below s3://bucket/prefix. The next number
goes to the first who writes it, whole; so of two promotions at once one wins, and MLflow's aliases, which know neither
history nor conditions, have something to be compared with.
"""

import dataclasses
import datetime
import errno
import getpass
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bebygan.errors import DataError, StorageError
from bebygan.files import storage_errors
from components.stores.s3 import is_bucket, open_prefix

_NAME = re.compile(r"(\d{6})\.json")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One move of the alias champion."""

    number: int
    """From 1."""
    version: str | None
    """Version that holds the alias after it; None when a person took the alias away."""
    previous: str | None
    """Version that held it before."""
    weights_sha256: str | None
    """Of `version`: a version number may come back after a restored backup, the weights of another model do not."""
    verdict: str
    """`promote`, or `by hand` for a move that was made outside the pipeline and found afterwards."""
    reason: str
    run: str
    """MLflow run of the step that wrote this."""
    data_version: str | None
    who: str
    time: str
    """UTC, ISO 8601."""


def who() -> str:
    """Return who is at work: a Kubeflow run, else the user of this process."""
    if run := os.environ.get("KFP_RUN_ID"):
        return f"kubeflow run {run}"
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container the user often has a number and no name.
        return f"user {os.getuid()}"


def now() -> str:
    """Return the time for an entry."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _file(number: int) -> str:
    return f"{number:06}.json"


def _number(name: str) -> int | None:
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def _open(ledger: str, model: str) -> tuple[list[int], Callable[[int], bytes]]:
    """Return the numbers that are taken, in order, and how to read one."""
    if is_bucket(ledger):
        prefix = open_prefix(f"{ledger}/{model}")
        names = [file.name for file in prefix.files()]
        return sorted(filter(None, map(_number, names))), lambda number: prefix.read(_file(number))
    folder = Path(ledger) / model
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(filter(None, map(_number, names))), lambda number: (folder / _file(number)).read_bytes()


def _move(number: int, content: bytes, place: str) -> Move:
    try:
        return Move(**{**json.loads(content), "number": number})
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{place}/{_file(number)} is no entry of a ledger ({error}): bring it back from a backup, or name another "
            "ledger"
        ) from error


def entries(ledger: str, model: str) -> list[Move]:
    """Return all moves of a model's champion, oldest first.

    Args:
        ledger: a folder, or s3://bucket/prefix.
        model: name of the registered model.

    Raises:
        DataError: an entry is damaged.
        ServiceError: the bucket is away, unknown, or refuses.
    """
    numbers, read = _open(ledger, model)
    return [_move(number, read(number), f"{ledger}/{model}") for number in numbers]


def last(ledger: str, model: str) -> Move | None:
    """Return the newest move, or None when there was none; see `entries`."""
    numbers, read = _open(ledger, model)
    return _move(numbers[-1], read(numbers[-1]), f"{ledger}/{model}") if numbers else None


def append(ledger: str, model: str, move: Move) -> bool:
    """Write a move under its number unless somebody was quicker.

    Returns:
        Whether the number is ours. Else another champion has come: read `last` and decide again.

    Raises:
        ServiceError: the bucket is away, unknown, or refuses.
        StorageError: the folder cannot be written, or cannot tell two writers apart.
    """
    content = (json.dumps(dataclasses.asdict(move), indent=2) + "\n").encode()
    if is_bucket(ledger):
        return open_prefix(f"{ledger}/{model}").create(_file(move.number), content)
    path = Path(ledger) / model / _file(move.number)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as scratch:
            scratch.write(content)
            scratch.flush()
            os.fchmod(scratch.fileno(), 0o644)
            os.fsync(scratch.fileno())
            try:
                # A link, unlike a rename, refuses a name that is taken; unlike O_EXCL, it shows whole files only.
                os.link(scratch.name, path)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StorageError(
                    f"{path.parent} lies on a file system without hard links, which cannot tell two writers apart: "
                    "name a folder elsewhere, or s3://bucket/prefix, as the ledger"
                ) from error
    return True
