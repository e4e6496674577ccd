"""A store in a local folder."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from bebygan.errors import DataError, StorageError
from bebygan.files import sha256_of, storage_errors, whole_file
from components.stores.store import StoredFile

_OF_THE_SYSTEM = ("/boot", "/dev", "/etc", "/proc", "/sys")
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def _raise_unless_missing(error: OSError) -> None:
    # Another process may delete a folder while it is listed.
    if not isinstance(error, FileNotFoundError):
        raise DataError(f"cannot list {error.filename}: {error.strerror}; check its permissions")


def _leads_into_the_system(path: Path, folder: Path) -> bool:
    """Return whether a path below a folder leads, by symbolic links, into a folder of the system that has no data."""
    # Path.resolve raises an error for a link that leads to itself.
    real, top = (Path(os.path.realpath(each)) for each in (path, folder))
    return not real.is_relative_to(top) and any(real.is_relative_to(each) for each in _OF_THE_SYSTEM)


def _identity(path: Path, folder: Path) -> str:
    readable = path.is_file() and os.access(path, os.R_OK) and not _leads_into_the_system(path, folder)
    return sha256_of(path) if readable else "unreadable"


@dataclass(frozen=True)
class FolderStore:
    """See `components.stores.Store`. The first write creates the folder."""

    folder: Path
    parallel_reads: int = os.cpu_count() or 1

    @property
    def address(self) -> str:
        return str(self.folder)

    def below(self, name: str) -> "FolderStore":
        return FolderStore(self.folder / name)

    def check_readable(self) -> None:
        with os.scandir(self.folder):
            pass

    def _paths(self, start: str) -> Iterator[Path]:
        """Yield all files, including those behind symbolic links; visit each real folder once, as links may loop.

        A link into a folder of the system is yielded like a file, which cannot be read.
        """
        seen: set[str] = set()
        for root, folders, names in os.walk(self.folder, followlinks=True, onerror=_raise_unless_missing):
            top = Path(root) == self.folder
            if top:
                folders[:] = [name for name in folders if name.startswith(start)]
            real = os.path.realpath(root)
            if _leads_into_the_system(Path(root), self.folder):
                yield Path(root)
                folders.clear()
                continue
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            yield from (Path(root, name) for name in names if not top or name.startswith(start))

    def _stored(self, path: Path) -> StoredFile:
        name = path.relative_to(self.folder).as_posix()
        # A broken link is listed too: reading it fails.
        status = path.stat() if path.exists() else path.lstat()
        read = partial(self.read, name)
        return StoredFile(name, status.st_size, status.st_mtime, read, read, partial(_identity, path, self.folder))

    def files(self, start: str = "") -> list[StoredFile]:
        found = []
        for path in self._paths(start):
            # Another process may delete a file while it is listed.
            with suppress(FileNotFoundError):
                found.append(self._stored(path))
        return sorted(found, key=lambda file: file.name)

    def originals(self) -> list[StoredFile]:
        return self.files()

    def read(self, name: str, first: int | None = None) -> bytes:
        path = self.folder / name
        if _leads_into_the_system(path, self.folder):
            raise OSError(errno.EPERM, "it is a link into a folder of the system", str(path))
        if path.exists() and not path.is_file():
            # Reading a pipe would block forever.
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        with path.open("rb") as file:
            return file.read(first)

    def write(self, name: str, content: BinaryIO) -> None:
        with whole_file(self.folder / name) as temporary, temporary.open("wb") as file:
            shutil.copyfileobj(content, file)

    def write_if_absent(self, name: str, content: bytes) -> bool:
        path = self.folder / name
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(prefix=f".{path.name}.", dir=path.parent) as scratch:
                scratch.write(content)
                scratch.flush()
                os.fchmod(scratch.fileno(), 0o644)
                os.fsync(scratch.fileno())
                try:
                    # A rename would replace an existing file. O_EXCL would show a file before it is complete.
                    os.link(scratch.name, path)
                except FileExistsError:
                    return path.read_bytes() == content
                except OSError as error:
                    if error.errno not in _NO_LINKS:
                        raise
                    raise StorageError(
                        f"{path.parent} is on a file system without hard links, so concurrent writers could overwrite "
                        "each other's file: name a folder elsewhere, or s3://bucket/prefix"
                    ) from error
        return True

    def delete(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            for parent in list(Path(name).parents)[:-1]:
                (self.folder / parent).rmdir()

    def download(self, name: str, path: Path) -> None:
        with whole_file(path) as temporary:
            shutil.copyfile(self.folder / name, temporary)
