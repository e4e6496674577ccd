"""The source of photographs: a store, listed without files that are clearly not pictures."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePosixPath

from bebygan.errors import DataError
from components.progress import progress
from components.stores import Store, StoredFile, open_store

# Ingest opens any other file, and so reports unsupported formats and archives.
_NOT_PICTURES = frozenset(
    (
        ".aae", ".cfg", ".csv", ".db", ".dvc", ".htm", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".parquet",
        ".py", ".rst", ".sh", ".sha256", ".toml", ".tsv", ".txt", ".url", ".xml", ".xmp", ".yaml", ".yml",
    )
)  # fmt: skip


def is_not_picture(name: str) -> bool:
    """Return whether the file of a relative name is clearly not a picture: a hidden or system file, or a document."""
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return hidden or path.suffix.lower() in _NOT_PICTURES


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

    Raises:
        DataError: there is no file that may be a photograph; also see `open_source`.
        ConfigError, ServiceError: see `open_source`.
    """
    files = open_source(source).files()
    # The bytes of a file name may not be UTF-8.
    names = [os.fsencode(file.name).decode("utf-8", "backslashreplace") for file in files]
    pictures = [replace(file, name=name) for file, name in zip(files, names, strict=True) if not is_not_picture(name)]
    if not pictures:
        others = f"only {len(files)} files that are not pictures" if files else "no files"
        raise DataError(f"the source {source} holds {others}: put photographs there, or correct the path")
    return sorted(pictures, key=lambda file: file.name), len(files) - len(pictures)


def source_version(source: str) -> str:
    """Return a hash, 64 hexadecimal digits, of the names and contents of the files that may be photographs.

    It reads only the listing of a bucket, but all files of a folder. Raises as `list_source`.
    """
    files, _ = list_source(source)
    return version_of((file.name, file.identity()) for file in progress(files, "source", "files", len(files)))


def version_of(identities: Iterable[tuple[str, str]]) -> str:
    """Return the version of a source, given the name and the identity of each file in the order of `list_source`."""
    return hashlib.sha256(json.dumps(list(identities)).encode()).hexdigest()
