"""The interface of a store of files, implemented by folders and by buckets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class StoredFile:
    """A file in a store."""

    name: str
    """Relative to the store, with / between folders."""
    size: int
    """Bytes."""
    written: float
    """When it was last written, in seconds since the epoch."""
    read: Callable[[], bytes] = field(repr=False, compare=False)
    read_as_listed: Callable[[], bytes] = field(repr=False, compare=False)
    """As `read`, but raises DataError if an object of a bucket was replaced or deleted after the listing."""
    identity: Callable[[], str] = field(repr=False, compare=False)
    """Returns a string that changes with the content: the ETag of an object, the SHA-256 of a local file."""


class Store(Protocol):
    """A collection of named files that may be used from several threads.

    Every method raises ServiceError if a bucket is unreachable, unknown or refuses access. On a folder, methods that
    read raise OSError, and methods that write raise StorageError or OSError.
    """

    @property
    def address(self) -> str:
        """The address for messages."""

    @property
    def folder(self) -> Path | None:
        """The local folder that holds the files, or None if they must be downloaded and uploaded."""

    @property
    def parallel_reads(self) -> int:
        """How many files to read at the same time."""

    def below(self, name: str) -> "Store":
        """Return the store of a folder in this one."""

    def check_readable(self) -> None:
        """Fail within seconds unless the store exists and can be listed."""

    def files(self, start: str = "") -> list[StoredFile]:
        """List the files, including those in nested folders, ordered by name. A missing folder has none.

        Args:
            start: first characters of the names to list, without a /.

        Raises:
            DataError: a folder cannot be listed.
        """

    def originals(self) -> list[StoredFile]:
        """List the files as `files`, each with the content that was written first.

        A bucket with versions also keeps files that were overwritten or deleted later. Elsewhere this is `files`.
        """

    def read(self, name: str, first: int | None = None) -> bytes:
        """Return the bytes of a file, or at most the `first` bytes of a file that is not empty.

        Raises:
            FileNotFoundError: there is no file of this name.
        """

    def write(self, name: str, content: BinaryIO) -> None:
        """Write or replace a file. Readers see the old content or the new content, never a part."""

    def write_if_absent(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one of this name. Of several concurrent writers, one succeeds.

        Returns:
            Whether the file now has these bytes. A repeated call whose first answer was lost also returns True.

        Raises:
            StorageError: the file system of the folder has no hard links.
        """

    def delete(self, name: str) -> None:
        """Delete a file if it exists, and folders below the store that become empty."""

    def download(self, name: str, path: Path) -> None:
        """Copy a file of the store to `path`, completely or not at all; raises as `read`."""
