"""Data versions: the identity that DVC gives to a dataset, and transfer to and from a DVC remote, without DVC.

A version is the MD5 of a folder's listing followed by `.dir`, as in a `.dvc` file or dvc.lock. A remote stores each
file, and the listing itself, under `files/md5/` by its MD5 (DVC 3).
"""

import hashlib
import io
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

from bebygan.errors import ConfigError, DataError, ServiceError
from bebygan.files import whole_folder
from components.progress import progress
from components.stores import Store, open_store

_log = logging.getLogger(__name__)
_VERSION = re.compile(r"[0-9a-f]{32}\.dir")


def _md5(file: io.BufferedReader | io.BytesIO) -> str:
    return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()


def _object(digest: str) -> str:
    """Return the path of the object with this MD5 in a remote or cache of DVC 3."""
    return f"files/md5/{digest[:2]}/{digest[2:]}"


def _listing(folder: Path) -> tuple[str, bytes, dict[str, Path]]:
    """Return the version of a folder, its listing as DVC writes it, and its files by object name."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder} holds no files and therefore has no version: check the path")
    entries, objects = [], {}
    for name, path in progress(files, "data version", "files", len(files)):
        with path.open("rb") as file:
            digest = _md5(file)
        entries.append({"md5": digest, "relpath": name})
        objects[_object(digest)] = path
    listing = json.dumps(entries, sort_keys=True).encode()
    return f"{_md5(io.BytesIO(listing))}.dir", listing, objects


def data_version(folder: Path) -> str:
    """Return the identity that `dvc add` gives to a folder: 32 hexadecimal digits and `.dir`.

    Raises:
        DataError: the folder is missing or empty.
    """
    return _listing(folder)[0]


def push(folder: Path, remote: str) -> str:
    """Copy a folder to a DVC remote, for `dvc pull` and `fetch`. Files that the remote has are not sent again.

    Args:
        folder: with at least one file.
        remote: a folder, created if it is missing, or s3://bucket/prefix.

    Returns:
        The version.

    Raises:
        DataError: the folder is missing or empty.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
        StorageError: the remote cannot be written.
    """
    store = open_store(remote)
    there = {file.name: file.size for file in store.files("files")}
    version, listing, paths = _listing(folder)
    missing = [name for name, path in paths.items() if there.get(name) != path.stat().st_size]

    def put(name: str) -> None:
        with paths[name].open("rb") as file:
            store.write(name, file)

    with ThreadPoolExecutor(store.parallel_reads) as pool:
        for _ in progress(pool.map(put, missing), "push", "files", len(missing)):
            pass
    if there.get(_object(version)) != len(listing):
        # Last, so that a version in the remote is complete.
        store.write(_object(version), io.BytesIO(listing))
        missing.append(version)
    if missing:
        _log.info(
            "data version %s is in %s: %d of %d objects were missing", version, remote, len(missing), len(paths) + 1
        )
    return version


def _verified(store: Store, digest: str) -> bytes:
    """Return the object of an MD5, which its bytes must have."""
    try:
        content = store.read(_object(digest))
    except FileNotFoundError as error:
        raise DataError(
            f"{store.address} has no object {digest}: push the data version there, or name the remote that has it"
        ) from error
    except OSError as error:
        raise ServiceError(f"cannot read {_object(digest)} in {store.address}: {error.strerror}") from error
    if _md5(io.BytesIO(content)) != digest.removesuffix(".dir"):
        raise DataError(
            f"{_object(digest)} in {store.address} is damaged: delete it there and push the data version again by "
            "`bebygan run --force` or `dvc push`"
        )
    return content


def _check_version(version: str) -> None:
    if not _VERSION.fullmatch(version):
        raise ConfigError(
            f"{version!r} is not a data version: it has 32 hexadecimal digits and .dir, as ingest prints it"
        )


def _entries(store: Store, version: str) -> list[dict[str, str]]:
    """Return the files of a data version, each with its relpath and md5.

    Raises:
        ConfigError: `version` is not a data version.
        DataError, ServiceError: as `fetch`.
    """
    _check_version(version)
    entries: list[dict[str, str]] = json.loads(_verified(store, version))
    return entries


def read_file(version: str, remote: str, name: str) -> bytes:
    """Return the bytes of one file of a data version in a DVC remote; raises as `fetch`."""
    store = open_store(remote)
    for entry in _entries(store, version):
        if entry["relpath"] == name:
            return _verified(store, entry["md5"])
    raise DataError(f"the data version {version} has no {name}: it was not written by ingest")


def check_bytes(version: str, remote: str) -> int:
    """Read all files of a data version in a DVC remote, compare them with their digests, and return their number.

    Raises:
        ConfigError, DataError, ServiceError: as `fetch`.
    """
    store = open_store(remote)
    entries = _entries(store, version)
    with ThreadPoolExecutor(store.parallel_reads) as pool:
        checked = pool.map(lambda entry: _verified(store, entry["md5"]), entries)
        for _ in progress(checked, "verify", "files", len(entries)):
            pass
    return len(entries)


def check_complete(version: str, remote: str) -> None:
    """Check that a remote lists all files of a data version.

    Raises:
        DataError: one is missing, or the listing is missing or damaged.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
    """
    store = open_store(remote)
    entries = _entries(store, version)
    there = {file.name for file in store.files("files")}
    if lost := sum(_object(entry["md5"]) not in there for entry in entries):
        raise DataError(
            f"{remote} lost {lost} of {len(entries)} files of the data version {version}: restore them, or run all "
            "steps again with --force, which sends them"
        )


def fetch(version: str, remote: str, folder: Path) -> None:
    """Copy a data version from a DVC remote. A folder that already has this version is not changed.

    Args:
        version: as `data_version` and `push` return it.
        remote: a folder, or s3://bucket/prefix.
        folder: replaced as a whole.

    Raises:
        ConfigError: `version` is not a data version.
        DataError: the remote does not have it, or an object there is damaged.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
        StorageError: the folder cannot be written.
    """
    _check_version(version)
    if folder.is_dir() and any(folder.iterdir()) and data_version(folder) == version:
        return
    store = open_store(remote)
    entries = _entries(store, version)

    with whole_folder(folder) as whole:

        def get(entry: dict[str, str]) -> None:
            name = PurePosixPath(entry["relpath"])
            if name.is_absolute() or ".." in name.parts:
                raise DataError(f"the data version names a file outside its folder, {name}: it was not written by DVC")
            path = whole / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_verified(store, entry["md5"]))

        with ThreadPoolExecutor(store.parallel_reads) as pool:
            for _ in progress(pool.map(get, entries), "fetch", "files", len(entries)):
                pass
