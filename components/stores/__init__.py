"""Stores: folders and S3 buckets behind one interface, and what the steps keep in them."""

import io
import uuid
from pathlib import Path

from bebygan.errors import ConfigError, ServiceError, StorageError
from components.stores.folder import FolderStore
from components.stores.store import Store, StoredFile

__all__ = ["Store", "StoredFile", "absolute", "check_writable", "folder_of", "open_store"]


def folder_of(address: str) -> Path | None:
    """Return the folder that an address names, or None if it names a bucket or is empty.

    Raises:
        ConfigError: the address has a scheme other than s3.
    """
    if not address or address.startswith("s3://"):
        return None
    if "://" in address:
        raise ConfigError(f"{address} is neither a folder nor s3://bucket/prefix")
    return Path(address)


def absolute(address: str) -> str:
    """Return the address with a relative folder made absolute; raises as `folder_of`."""
    folder = folder_of(address)
    return address if folder is None else str(folder.resolve())


def open_store(address: str, *, patient: bool = True) -> Store:
    """Return the store of an address. Nothing is read or contacted before the first use.

    Args:
        address: a folder, or s3://bucket/prefix with endpoint and credentials from the AWS_* variables.
        patient: whether requests to a bucket that has answered once are retried for minutes; otherwise they fail
            within seconds.

    Raises:
        ConfigError: the address is empty, has another scheme, or names no bucket.
    """
    if not address:
        # A script may pass an unset variable. As a path it would be the current folder.
        raise ConfigError("the address is empty: name a folder or s3://bucket/prefix")
    if folder := folder_of(address):
        return FolderStore(folder)
    # boto3 takes 0.2 s to import, and the image for training may not contain it.
    from components.stores.s3 import open_s3  # noqa: PLC0415

    return open_s3(address, patient=patient)


def check_writable(store: Store, *, conditional: bool = False) -> None:
    """Write a file and delete it.

    Args:
        store: where to write.
        conditional: whether to try `write_if_absent`, which some S3 servers treat as an ordinary write.

    Raises:
        ServiceError: the bucket is unreachable, unknown, refuses, or does not support conditional writes.
        StorageError: the folder cannot be written, or its file system has no hard links.
    """
    name = f".writable-{uuid.uuid4().hex}"
    try:
        if conditional:
            refused = store.write_if_absent(name, b"first") and not store.write_if_absent(name, b"second")
        else:
            store.write(name, io.BytesIO(b"first"))
        store.delete(name)
    except OSError as error:
        raise StorageError(
            f"{store.address} cannot be written ({error.strerror}): make room, correct its permissions, or choose "
            "another folder"
        ) from error
    if conditional and not refused:
        raise ServiceError(
            f"{store.address} ignores conditional writes (If-None-Match), so concurrent writers could overwrite each "
            "other's file: update the S3 server, or name a bucket of another server or a folder"
        )
