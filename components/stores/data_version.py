"""The identity of a dataset, which is DVC's, and its way into and out of a DVC remote.

A version is the MD5 of a folder's listing followed by `.dir`, as in a `.dvc` file or dvc.lock. A remote holds each
file, and the listing itself, under `files/md5/` by its MD5 (DVC 3). Computing and fetching a version do not need DVC,
which training images do not contain. Pushing is done by DVC.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path, PurePosixPath

from bebygan.errors import ConfigError, DataError, ServiceError, StorageError
from bebygan.files import storage_errors, whole_folder
from components.progress import progress
from components.stores import Store, absolute, open_store

_log = logging.getLogger(__name__)
_VERSION = re.compile(r"[0-9a-f]{32}\.dir")


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _file_md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _object(digest: str) -> str:
    """Return the path of the object with this MD5 in a remote or cache of DVC 3."""
    return f"files/md5/{digest[:2]}/{digest[2:]}"


def _entries(folder: Path) -> list[dict[str, str]]:
    """Return the MD5 and relative name of each file of a folder, as DVC lists them."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    if not files:
        raise DataError(f"{folder} holds no files and therefore has no version: check the path")
    return [
        {"md5": _file_md5(path), "relpath": name} for name, path in progress(files, "data version", "files", len(files))
    ]


def _listing(entries: list[dict[str, str]]) -> tuple[bytes, str]:
    """Return the listing as DVC writes it, and its version."""
    listing = json.dumps(entries, sort_keys=True).encode()
    return listing, f"{_md5(listing)}.dir"


def data_version(folder: Path) -> str:
    """Return the identity that `dvc add` gives to a folder: 32 hexadecimal digits and `.dir`.

    Raises:
        DataError: the folder is missing or empty.
    """
    return _listing(_entries(folder))[1]


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        # Not all file systems support hard links, and files of other users may not be linked.
        shutil.copyfile(source, target)


def _dvc_push(repository: Path) -> None:
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        # The index of the scratch repository would otherwise stay in /var/tmp.
        "DVC_SITE_CACHE_DIR": str(repository / ".dvc" / "site"),
        "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
        "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    }
    result = subprocess.run(
        [sys.executable, "-m", "dvc", "push"],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        lines = [line.removeprefix("ERROR: ") for line in result.stderr.splitlines() if line and "dvc.org" not in line]
        # DVC prints a line for each file, then a summary.
        reason = "; ".join(dict.fromkeys([*lines[:1], *lines[-1:]])) or f"exit code {result.returncode}"
        if "No space left" in reason:
            raise StorageError(
                f"dvc push: the disk of the remote is full: free space there, then push again ({reason})"
            )
        raise ServiceError(f"dvc push failed: {reason}")


def push(folder: Path, remote: str) -> str:
    """Copy a folder into a DVC remote, where `dvc pull` and `fetch` find it by its version.

    Needs DVC, and space beside the folder for hard links to its files. Files that the remote has are not sent again.

    Args:
        folder: with at least one file.
        remote: a folder, created if it is missing, or s3://bucket/prefix.

    Returns:
        The version.

    Raises:
        DataError: the folder is missing or empty.
        ServiceError: the bucket is unreachable, unknown, or refuses access.
        StorageError: the remote's disk is full.
    """
    # If access is refused, DVC reports only that files failed to upload. A folder may not exist yet.
    with suppress(OSError):
        open_store(remote).check_readable()
    entries = _entries(folder)
    listing, version = _listing(entries)
    modes = {folder / entry["relpath"]: (folder / entry["relpath"]).stat().st_mode for entry in entries}
    with (
        storage_errors(folder.parent),
        tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".push", dir=folder.parent) as scratch,
    ):
        repository = Path(scratch)
        cache = repository / ".dvc" / "cache"
        for entry in entries:
            _link(folder / entry["relpath"], cache / _object(entry["md5"]))
        (cache / _object(version)).parent.mkdir(parents=True, exist_ok=True)
        (cache / _object(version)).write_bytes(listing)
        (repository / ".dvc" / "config").write_text(
            "[core]\n    no_scm = True\n    analytics = False\n    check_update = False\n    remote = storage\n"
            f'[\'remote "storage"\']\n    url = "{absolute(remote)}"\n'
        )
        (repository / "dataset.dvc").write_text(
            f"outs:\n- md5: {version}\n  nfiles: {len(entries)}\n  hash: md5\n  path: dataset\n"
        )
        _log.info("pushing %d files of data version %s to %s", len(entries), version, remote)
        try:
            _dvc_push(repository)
        finally:
            # DVC makes the files in its cache read-only, and through the hard links also those of the dataset.
            for path, mode in modes.items():
                path.chmod(mode)
    return version


def _verified(store: Store, digest: str) -> bytes:
    """Return the object of an MD5.

    Raises:
        DataError: there is no such object, or its bytes have another MD5.
        ServiceError: the object cannot be read.
    """
    try:
        content = store.read(_object(digest))
    except FileNotFoundError as error:
        raise DataError(
            f"{store.address} has no object {digest}: push the data version there, or name the remote that has it"
        ) from error
    except OSError as error:
        raise ServiceError(f"cannot read {_object(digest)} in {store.address}: {error.strerror}") from error
    if _md5(content) != digest.removesuffix(".dir"):
        raise DataError(
            f"{_object(digest)} in {store.address} is damaged: delete it there and push the data version again"
        )
    return content


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"the data version names a file outside its folder, {name}: it was not written by DVC")
    return name


def fetch(version: str, remote: str, folder: Path) -> None:
    """Copy a data version out of a DVC remote, without DVC; a folder that already holds this version is not changed.

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
    if not _VERSION.fullmatch(version):
        raise ConfigError(
            f"{version!r} is not a data version: it has 32 hexadecimal digits and .dir, as ingest prints it"
        )
    if folder.is_dir() and any(folder.iterdir()) and data_version(folder) == version:
        return
    store = open_store(remote)
    entries = json.loads(_verified(store, version))

    with whole_folder(folder) as whole:

        def get(entry: dict[str, str]) -> None:
            path = whole / _inside(entry["relpath"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_verified(store, entry["md5"]))

        with ThreadPoolExecutor(store.parallel_reads) as pool:
            for _ in progress(pool.map(get, entries), "fetch", "files", len(entries)):
                pass
