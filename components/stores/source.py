"""Where photographs come from: any store, listed without the files that are clearly not pictures."""

import dataclasses
import hashlib
import json
import os
from pathlib import PurePosixPath

from bebygan.errors import DataError
from components.progress import progress
from components.stores import Store, StoredFile, open_store

# Any other file is opened, so that an unsupported format or an archive with photographs in it is reported.
_NOT_PICTURES = frozenset(
    (
        ".aae", ".cfg", ".csv", ".db", ".dvc", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".parquet",
        ".py", ".rst", ".sh", ".sha256", ".toml", ".tsv", ".txt", ".url", ".xml", ".xmp", ".yaml", ".yml",
    )
)  # fmt: skip


def is_not_picture(name: str) -> bool:
    """Whether a relative name is clearly not that of a picture: hidden, left behind by a system, or a document."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return hidden or path.suffix.lower() in _NOT_PICTURES


def _as_text(name: str) -> str:
    """Return a file name as valid Unicode, also if its bytes are not UTF-8."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def open_source(source: str) -> Store:
    """Return the store of a source, a folder or s3://bucket/prefix.

    Raises:
        ConfigError: the address is empty or has an unknown scheme.
        DataError: the folder does not exist or cannot be listed.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
    """
    store = open_store(source)
    try:
        store.check_readable()
    except OSError as error:
        known = {FileNotFoundError: "does not exist", NotADirectoryError: "is a file, not a folder"}
        what = known.get(type(error), f"cannot be listed ({error.strerror})")
        raise DataError(
            f"the source {source} {what}: name a folder of photographs that this task can read, or s3://bucket/prefix"
        ) from error
    return store


def list_source(source: str) -> tuple[list[StoredFile], int]:
    """List the files that may be photographs, ordered by name, and count the others.

    Args:
        source: a folder, or s3://bucket/prefix.

    Raises:
        DataError: there is no file that may be a photograph; also see `open_source`.
        ConfigError, ServiceError: see `open_source`.
    """
    files = [dataclasses.replace(file, name=_as_text(file.name)) for file in open_source(source).files()]
    pictures = [file for file in files if not is_not_picture(file.name)]
    if not pictures:
        others = f"only {len(files)} files that are not pictures" if files else "no files"
        raise DataError(f"the source {source} holds {others}: put photographs there, or correct the path")
    return sorted(pictures, key=lambda file: file.name), len(files) - len(pictures)


def source_version(source: str) -> str:
    """Return a hash that changes with the names and the content of the files that may be photographs.

    Of a bucket only the listing is read; the files of a folder are read completely.

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
