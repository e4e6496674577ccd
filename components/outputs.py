"""Digests of what a run on one machine may take from its cache, each in a file beside it, verified before its use."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bebygan.files import sha256_of, whole_file

DIGEST = ".sha256"
"""What the name of a file with a digest ends with."""


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    with ThreadPoolExecutor() as pool:
        found = zip((file.relative_to(path).as_posix() for file in files), pool.map(sha256_of, files), strict=True)
        return hashlib.sha256(json.dumps(list(found)).encode()).hexdigest()


def record_digest(path: Path) -> None:
    """Write the digest of a finished file or folder beside it; raises StorageError if that cannot be written."""
    with whole_file(path.with_name(f"{path.name}{DIGEST}")) as temporary:
        temporary.write_text(_digest(path))


def damaged(digests: Iterable[Path]) -> Iterator[Path]:
    """Yield the files and folders that differ from their recorded digests; those that are missing are not damaged."""
    for record in sorted(digests):
        path = record.with_suffix("")
        try:
            intact = not path.exists() or _digest(path) == record.read_text()
        except (OSError, UnicodeDecodeError):
            intact = False
        if not intact:
            yield path
