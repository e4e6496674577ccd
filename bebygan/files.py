"""Files and folders that are written atomically."""

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from bebygan.errors import StorageError

if sys.platform != "win32":
    import fcntl

_CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.ENOTDIR: "a file is where a folder should be",
    errno.EEXIST: "a file is where a folder should be",
    errno.EISDIR: "a folder is where a file should be",
    errno.ENAMETOOLONG: "the name is too long",
}

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Of Linux: paths are relative to the working folder; both paths exist and are exchanged."""
_PART = ".part"
_OLD = ".old"
_SECONDS_BEFORE_ABANDONED = 60.0


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn errors of the operating system while writing `path` into a StorageError that says what to do."""
    try:
        yield
    except OSError as error:
        reason = _CANNOT_WRITE.get(error.errno or 0)
        if error.errno == errno.ENOENT and Path(error.filename or "") in path.parents:
            reason = "no folder can be made there"
        if reason is None:
            raise
        raise StorageError(
            f"cannot write {path}: {reason}; nothing was left there. Make room or choose another folder, then run again"
        ) from error


def _sync(path: Path) -> None:
    if sys.platform == "win32":
        # It syncs only files that are open for writing.
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary files of killed writers from a folder: those a minute old and not locked."""
    for part in folder.glob(f".*{_PART}"):
        try:
            if time.time() - part.stat().st_mtime > _SECONDS_BEFORE_ABANDONED:
                with _locked(part) as locked:
                    if locked and part.is_dir():
                        shutil.rmtree(part)
                    elif locked:
                        part.unlink()
        except (FileNotFoundError, PermissionError):
            # Another process removed it, or another user owns it.
            continue


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a file or folder for the length of the body; yield whether it is locked."""
    if sys.platform == "win32":
        # A file that is open cannot be renamed.
        yield False
        return
    # NFS locks only files that are open for writing.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def lock(file: int | IO[Any], *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file until it is closed.

    Args:
        file: an open file. NFS requires that it is open for writing.
        shared: allow other shared locks.
        wait: wait until the lock is free.

    Returns:
        Whether the file is locked now. If not, another process holds a lock, or the platform (Windows) or the file
        system (often Lustre) has no such locks.
    """
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; rename it to `path` if the body succeeds, else remove it.

    Raises:
        StorageError: the disk is full, over quota or read-only.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path.parent)
        # Names have at most 255 bytes.
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:50]}.", suffix=_PART, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        temporary.chmod(0o644)
        try:
            with _locked(temporary):
                yield temporary
                _sync(temporary)
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two paths in one step; return False if the system or the file system cannot."""
    if (call := getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)) is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def _recover(path: Path) -> None:
    """Restore a folder whose writer was killed while it replaced the folder in two steps."""
    for old in path.parent.glob(f".{path.name}.*{_OLD}"):
        # Another process may do the same.
        with suppress(OSError):
            os.rename(old, path)
        shutil.rmtree(old, ignore_errors=True)


def _put(folder: Path, path: Path) -> None:
    """Move a folder to `path`. If other processes do the same, the last one stays."""
    old = folder.with_suffix(_OLD)
    while True:
        try:
            if not path.exists():
                os.rename(folder, path)
            elif sys.platform == "win32" or not _exchange(folder, path):
                os.rename(path, old)
                os.rename(folder, path)
        except OSError as error:
            if error.errno == errno.EXDEV and path.is_dir():
                # Overlayfs cannot rename a folder of a lower layer, such as one in the image of a container.
                shutil.rmtree(path)
                continue
            # Another process replaced, moved or restored `path` in the meantime.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST) or not folder.exists():
                _recover(path)
                raise
            if path.exists():
                shutil.rmtree(old, ignore_errors=True)
        else:
            shutil.rmtree(old, ignore_errors=True)
            return


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary sibling of `path`; replace `path` with it if the body succeeds.

    If the body fails, what was at `path` before is kept.

    Raises:
        StorageError: the disk is full, over quota or read-only.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _recover(path)
        _remove_abandoned(path.parent)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent))
        temporary.chmod(0o755)
        try:
            with _locked(temporary):
                yield temporary
                for file in files_in(temporary):
                    _sync(file)
                _put(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(values: Mapping[str, Any]) -> str:
    """Return the hexadecimal SHA-256 of a JSON object, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(dict(values), sort_keys=True).encode()).hexdigest()


def checksums(root: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the hexadecimal SHA-256 of each file by its path relative to `root`, in the order of these paths."""
    # A file system lists files in an order of its own.
    paths = dict(sorted((path.relative_to(root).as_posix(), path) for path in files))
    with ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(sha256_of, paths.values()), strict=True))


def files_in(folder: Path) -> Iterator[Path]:
    """Yield all files in a folder and the folders below it."""
    return (path for path in folder.rglob("*") if path.is_file())
