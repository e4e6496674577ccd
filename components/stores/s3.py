"""Files under a prefix of a bucket: S3 and what speaks like it (SeaweedFS, MinIO, Ceph).

Endpoint, region and credentials come from the usual AWS_* variables or profile, never from parameters. boto3 is
imported at the first use: folders need none.
"""

import io
import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from bebygan.errors import ConfigError, ServiceError
from bebygan.files import whole_file

SCHEME = "s3://"
CONNECTIONS = 16
"""Files that may be read at once."""

_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_NO_BUCKET = {"404", "NoSuchBucket"}
_TAKEN = {"412", "PreconditionFailed", "ConditionalRequestConflict"}
"""The file is there, or is being written at this moment."""


@dataclass(frozen=True)
class StoredFile:
    """A file under a prefix."""

    name: str
    """Below the prefix."""
    size: int
    """Bytes."""
    etag: str
    """Changes with its content."""
    written: float
    """When, in seconds since the epoch."""


def is_bucket(address: str) -> bool:
    """Whether the address is that of a bucket and not of a folder.

    Raises:
        ConfigError: it is neither.
    """
    if "://" in address and not address.startswith(SCHEME):
        raise ConfigError(f"{address} is neither a folder nor s3://bucket/prefix")
    return address.startswith(SCHEME)


def _client(*, patient: bool) -> Any:
    """Return a boto3 client; a patient one rides out minutes of trouble, the other says so within seconds."""
    # 0.2 s that a run on a folder need not wait for, and the image that trains may lack it.
    from boto3.session import Session  # noqa: PLC0415
    from botocore.config import Config  # noqa: PLC0415

    # At INFO it tells where it found credentials and endpoint, each time.
    logging.getLogger("botocore").setLevel(logging.WARNING)
    config = Config(
        connect_timeout=10 if patient else 5,
        read_timeout=60 if patient else 20,
        retries={"mode": "adaptive", "total_max_attempts": 10} if patient else {"total_max_attempts": 2},
        max_pool_connections=CONNECTIONS,
        # Stores that speak like S3 do not all know the checksums that newer clients send.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        # Not boto3's default session, which never sees that a variable changed.
        return Session().client("s3", config=config)
    except ValueError as error:
        raise ServiceError(f"AWS_ENDPOINT_URL is no address: {error}; it looks like http://host:port") from error


@contextmanager
def _service_errors(address: str, client: Any) -> Iterator[None]:
    """Turn what boto3 raises into one line that says what to do."""
    from botocore import exceptions  # noqa: PLC0415

    endpoint = client.meta.endpoint_url
    bucket = address.removeprefix(SCHEME).partition("/")[0]
    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise ServiceError(
            f"no credentials for {address}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        ) from error
    except exceptions.ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _NO_BUCKET:
            raise ServiceError(f"there is no bucket {bucket} at {endpoint}: create it, or correct {address}") from error
        if code in _REFUSED:
            raise ServiceError(
                f"{endpoint} refuses access to {address} ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY "
                "and what they are allowed"
            ) from error
        raise ServiceError(f"{endpoint} fails on {address}: {' '.join(str(error).split())}") from error
    except exceptions.SSLError as error:
        raise ServiceError(
            f"{endpoint} is not to be trusted with {address} ({error.kwargs['error']}): name the certificate of its "
            "authority in AWS_CA_BUNDLE, or correct AWS_ENDPOINT_URL"
        ) from error
    except (
        exceptions.HTTPClientError,
        exceptions.EndpointConnectionError,
        exceptions.ConnectionError,
        exceptions.IncompleteReadError,
    ) as error:
        raise ServiceError(
            f"{endpoint} does not answer for {address}: start it, or correct AWS_ENDPOINT_URL ({type(error).__name__})"
        ) from error
    except exceptions.BotoCoreError as error:
        raise ServiceError(f"cannot use {address}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Prefix:
    """What lies under s3://bucket/prefix/, and one connected client that may be used from several threads."""

    address: str
    _bucket: str
    _prefix: str
    _s3: Any = field(repr=False, compare=False)

    def below(self, name: str) -> "Prefix":
        """Return the prefix of a folder in this one."""
        return replace(self, address=f"{self.address}/{name}", _prefix=f"{self._prefix}{name}/")

    def files(self) -> list[StoredFile]:
        """List the files in the order of their names; folder markers are left out.

        Raises:
            ServiceError: the bucket is away, unknown, or refuses.
        """
        with _service_errors(self.address, self._s3):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            found = [entry for page in pages for entry in page.get("Contents", ())]
        stored = [
            StoredFile(
                entry["Key"].removeprefix(self._prefix), entry["Size"], entry["ETag"], entry["LastModified"].timestamp()
            )
            for entry in found
            if not entry["Key"].endswith("/")
        ]
        return sorted(stored, key=lambda file: file.name)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file; a transfer that breaks is taken up again.

        Raises:
            FileNotFoundError: there is no file of this name.
            ServiceError: the bucket is away, unknown, or refuses.
        """
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415
        from botocore.exceptions import ClientError  # noqa: PLC0415

        content = io.BytesIO()
        with _service_errors(self.address, self._s3):
            try:
                # Not get_object: its body is not retried when the connection breaks midway.
                self._s3.download_fileobj(
                    self._bucket, self._prefix + name, content, Config=TransferConfig(use_threads=False)
                )
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("404", "NoSuchKey"):
                    raise FileNotFoundError(f"{self.address}/{name}") from error
                raise
        return content.getvalue()

    def read_start(self, name: str, count: int) -> bytes:
        """Return at most the first `count` bytes of a file.

        Raises:
            ServiceError: there is no such file, or the bucket is away, unknown, or refuses.
        """
        with _service_errors(self.address, self._s3):
            answer = self._s3.get_object(Bucket=self._bucket, Key=self._prefix + name, Range=f"bytes=0-{count - 1}")
            content: bytes = answer["Body"].read()
            return content

    def create(self, name: str, content: bytes) -> bool:
        """Write a file unless there is one of this name; of several writers at once one succeeds.

        Returns:
            Whether these bytes are now there: also when an answer was lost and the store took them at the first try.

        Raises:
            ServiceError: the bucket is away, unknown, or refuses.
        """
        from botocore.exceptions import ClientError  # noqa: PLC0415

        with _service_errors(self.address, self._s3):
            try:
                self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content, IfNoneMatch="*")
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in _TAKEN:
                    raise
            else:
                return True
        try:
            return self.read(name) == content
        except FileNotFoundError:
            # Amazon answers so while another writer of the same name is not done; nobody has won yet.
            return self.create(name, content)

    def write(self, name: str, content: bytes) -> None:
        """Write a file, in place of one of this name.

        Raises:
            ServiceError: the bucket is away, unknown, or refuses.
        """
        with _service_errors(self.address, self._s3):
            self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)

    def remove(self, name: str) -> None:
        """Remove a file, if there is one of this name.

        Raises:
            ServiceError: the bucket is away, unknown, or refuses.
        """
        with _service_errors(self.address, self._s3):
            self._s3.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def upload(self, name: str, content: BinaryIO) -> None:
        """Write a file, or write it anew: readers see the old content or the new one, never a part.

        Raises:
            ServiceError: the bucket is away, unknown, or refuses.
        """
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415

        with _service_errors(self.address, self._s3):
            self._s3.upload_fileobj(
                content, self._bucket, self._prefix + name, Config=TransferConfig(use_threads=False)
            )

    def download(self, name: str, path: Path) -> None:
        """Write the content of a file to `path`, whole or not at all.

        Raises:
            ServiceError: there is no such file, or the bucket is away, unknown, or refuses.
            StorageError: `path` cannot be written.
        """
        from boto3.s3.transfer import TransferConfig  # noqa: PLC0415

        with whole_file(path) as temporary, temporary.open("wb") as file, _service_errors(self.address, self._s3):
            self._s3.download_fileobj(self._bucket, self._prefix + name, file, Config=TransferConfig(use_threads=False))


def open_prefix(address: str, *, patient: bool = True) -> Prefix:
    """Connect to s3://bucket/prefix and make sure that it may be listed.

    Args:
        address: the prefix is taken as a folder: `s3://b/photos` does not hold `s3://b/photos-old/1.png`.
        patient: whether later calls ride out minutes of trouble; else they say so within seconds.

    Raises:
        ConfigError: the address names no bucket.
        ServiceError: nobody answers (known within seconds), there is no such bucket, or it refuses.
    """
    bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
    if not is_bucket(address) or not bucket:
        raise ConfigError(f"{address} names no bucket: it looks like s3://bucket/folder")
    prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
    address = f"{SCHEME}{bucket}/{prefix}".rstrip("/")
    # The patience that a long transfer needs would hide a wrong address for minutes.
    first = _client(patient=False)
    with _service_errors(address, first):
        first.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return Prefix(address, bucket, prefix, _client(patient=True) if patient else first)


def check_writable(address: str) -> None:
    """Put a file under s3://bucket/prefix and take it away again.

    Raises:
        ConfigError: the address names no bucket.
        ServiceError: nobody answers (known within seconds), there is no such bucket, or it refuses.
    """
    opened = open_prefix(address)
    impatient = replace(opened, _s3=_client(patient=False))
    name = f".preflight-{uuid.uuid4().hex}"
    impatient.write(name, b"")
    impatient.remove(name)
