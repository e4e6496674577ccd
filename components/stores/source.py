"""Where photographs come from: a folder or a prefix of a bucket, listed alike."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from bebygan.errors import ConfigError, DataError
from bebygan.files import sha256_of
from components.progress import progress
from components.stores.s3 import is_bucket, open_prefix

# By their names these are no pictures. Anything else is opened, so that a photograph in a format that is not taken,
# or inside an archive, is told and not passed over.
_NO_PICTURES = frozenset(
    (
        ".aae",
        ".cfg",
        ".csv",
        ".db",
        ".dvc",
        ".htm",
        ".html",
        ".ini",
        ".json",
        ".jsonl",
        ".log",
        ".md",
        ".parquet",
        ".py",
        ".rst",
        ".sh",
        ".sha256",
        ".toml",
        ".tsv",
        ".txt",
        ".url",
        ".xml",
        ".xmp",
        ".yaml",
        ".yml",
    )
)


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: its name relative to the source, its size in bytes, and how to read it."""

    name: str
    size: int
    read: Callable[[], bytes]
    identity: Callable[[], str]
    """Gives a mark that changes with the content."""


def is_no_picture(name: str) -> bool:
    """Whether a relative name is plainly not that of a picture: hidden, a system's leftover, or a document."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return hidden or path.suffix.lower() in _NO_PICTURES


def _paths(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, through symbolic links too, each real folder once."""

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot list {error.filename}: {error.strerror}; check its permissions")

    seen: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in names)


def _read(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        # Reading a pipe would wait for ever.
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return path.read_bytes()


def _identity(path: Path) -> str:
    return sha256_of(path) if path.is_file() and os.access(path, os.R_OK) else "unreadable"


def _text(name: str) -> str:
    """Return a file name as text that any file can hold, also where its bytes are no UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _folder_files(folder: Path) -> list[SourceFile]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise DataError(f"the source {folder} {what}: name a folder of photographs or s3://bucket/prefix")
    return [
        SourceFile(
            _text(path.relative_to(folder).as_posix()),
            path.stat().st_size if path.exists() else 0,
            partial(_read, path),
            partial(_identity, path),
        )
        for path in _paths(folder)
    ]


def _bucket_files(address: str) -> list[SourceFile]:
    prefix = open_prefix(address)
    return [
        SourceFile(file.name, file.size, partial(prefix.read, file.name), partial(str, file.etag))
        for file in prefix.files()
    ]


def list_source(source: str) -> tuple[list[SourceFile], int]:
    """List what may be photographs, in the order of their names, and count the files that are plainly none.

    Args:
        source: a folder, or s3://bucket/prefix.

    Raises:
        ConfigError: the source is neither.
        DataError: the folder is missing, cannot be listed, or there is nothing in it that may be a photograph.
        ServiceError: the bucket is away, unknown, or refuses.
    """
    if not source:
        # Such as an unset variable leaves behind: it would be the folder that we are in.
        raise ConfigError("the source has no name: name a folder of photographs or s3://bucket/prefix")
    files = _bucket_files(source) if is_bucket(source) else _folder_files(Path(source))
    pictures = [file for file in files if not is_no_picture(file.name)]
    if not pictures:
        others = f"only {len(files)} files that are no pictures" if files else "no files"
        raise DataError(f"the source {source} holds {others}: put photographs there, or correct the path")
    return sorted(pictures, key=lambda file: file.name), len(files) - len(pictures)


def source_version(source: str) -> str:
    """Return a mark that changes with the names and the content of what may be photographs, before they are taken in.

    Of a bucket only the listing is read; the files of a folder are read whole.

    Args:
        source: a folder, or s3://bucket/prefix.

    Returns:
        64 hexadecimal digits.

    Raises:
        ConfigError, DataError, ServiceError: as `list_source`.
    """
    files, _ = list_source(source)
    marks = [(file.name, file.identity()) for file in progress(files, "source", "files", len(files))]
    return hashlib.sha256(json.dumps(marks).encode()).hexdigest()
