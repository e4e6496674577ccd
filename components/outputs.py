"""Digests of what a run on one machine may take from its cache, each in a file beside it, verified before its use."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bebygan.files import checksums, files_in, json_digest, sha256_of, whole_file

DIGEST = ".sha256"
"""What the name of a file with a digest ends with."""


def _digest(path: Path) -> str:
    if path.is_file():
        return sha256_of(path)
    return json_digest(checksums(path, files_in(path)))


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
