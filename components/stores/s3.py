"""A store below a prefix of a bucket: Amazon S3 and compatible servers (SeaweedFS, MinIO, Ceph).

Endpoint, region and credentials come from the usual AWS_* variables or profile, never from parameters.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore import exceptions
from botocore.config import Config
from botocore.loaders import create_loader
from botocore.session import Session as BotocoreSession
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt

from bebygan.errors import ConfigError, DataError, ServiceError
from bebygan.files import whole_file
from components.stores.store import StoredFile

_warn_once = cache(logging.getLogger(__name__).warning)
_CONNECTIONS = 16
_SECONDS_TO_CONNECT, _SECONDS_TO_ANSWER = 5, 20
"""Of a client that is not patient."""
_ONE_THREAD = TransferConfig(use_threads=False)
_BROKEN_CONNECTION = Retrying(
    retry=retry_if_exception_type(
        (exceptions.ReadTimeoutError, exceptions.IncompleteReadError, exceptions.ResponseStreamingError)
    ),
    stop=stop_after_attempt(5),
    reraise=True,
)
_REFUSED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_NO_BUCKET = {"404", "NoSuchBucket"}
_NO_FILE = {"404", "NoSuchKey"}
_WITHOUT_BLANKS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
)
_CURES: dict[type[Exception], str] = {
    exceptions.ProfileNotFound: "correct AWS_PROFILE, or name the file with this profile in AWS_CONFIG_FILE",
    exceptions.ConfigParseError: "correct the file, or name another one in AWS_CONFIG_FILE",
    exceptions.PartialCredentialsError: "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither",
    exceptions.InvalidRegionError: "correct AWS_DEFAULT_REGION, or the region of the profile",
    exceptions.BotoCoreError: "correct the AWS_* variables or the profile",
    OSError: "correct the file that an AWS_* variable names",
}
"""What to do about each kind of error of the configuration; the first that fits counts."""
_TAKEN = {"412", "PreconditionFailed", "ConditionalRequestConflict"}
"""The file is there, or another writer is about to create it."""


_loader = cache(create_loader)
"""Descriptions of AWS's services: reading them takes most of the time that a client takes to make."""


def _client(*, patient: bool) -> Any:
    """Return a boto3 client; a patient one retries for minutes, the other fails within seconds."""
    # Below ERROR, botocore logs where it found credentials and endpoint, and tracebacks of errors that we report.
    logging.getLogger("botocore").setLevel(logging.ERROR)
    config = Config(
        connect_timeout=10 if patient else _SECONDS_TO_CONNECT,
        read_timeout=60 if patient else _SECONDS_TO_ANSWER,
        retries={"mode": "adaptive", "total_max_attempts": 10} if patient else {"total_max_attempts": 2},
        max_pool_connections=_CONNECTIONS,
        # Not all compatible servers know the checksums that newer clients send.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    _check_for_blanks()
    try:
        # boto3's default session would ignore variables that change later.
        session = BotocoreSession()
        session.register_component("data_loader", _loader())
        return Session(botocore_session=session).client("s3", config=config)
    except (exceptions.BotoCoreError, ValueError, OSError) as error:
        raise _unusable(error) from error


def _check_for_blanks() -> None:
    for name in _WITHOUT_BLANKS:
        # A blank ends in a rejected signature, a line break in a request without an answer.
        if re.search(r"\s", os.environ.get(name, "")):
            raise ServiceError(f"{name} contains a blank or a line break: remove it")


def _unusable(error: Exception) -> ServiceError:
    """Return the error for a configuration of which no client can be made."""
    reason = " ".join(str(error).split())
    for kind, cure in _CURES.items():
        if isinstance(error, kind):
            return ServiceError(f"the AWS configuration cannot be used ({reason}): {cure}")
    return ServiceError(f"AWS_ENDPOINT_URL is not a URL: {reason}; an example is http://host:port")


def _code(error: exceptions.ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def _refusal(error: exceptions.ClientError, address: str, endpoint: str) -> str:
    if (code := _code(error)) in _NO_BUCKET:
        return f"there is no bucket {_parts(address)[0]} at {endpoint}: create it, or correct {address}"
    if code in _REFUSED:
        return (
            f"{endpoint} refuses access to {address} ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "their permissions"
        )
    return f"{endpoint} fails on {address}: {' '.join(str(error).split())}"


def _failure(error: exceptions.BotoCoreError, address: str, endpoint: str) -> str:
    if isinstance(error, exceptions.NoCredentialsError):
        return f"no credentials for {address}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    if isinstance(error, exceptions.SSLError):
        return (
            f"the certificate of {endpoint} for {address} is not trusted ({error.kwargs['error']}): name the "
            "certificate of its authority in AWS_CA_BUNDLE, or correct AWS_ENDPOINT_URL"
        )
    if isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError)):
        kind = type(error).__name__
        return f"{endpoint} does not answer for {address}: start it, or correct AWS_ENDPOINT_URL ({kind})"
    return f"cannot use {address}: {' '.join(str(error).split())}"


@contextmanager
def _service_errors(address: str, client: Any) -> Iterator[None]:
    """Translate errors of boto3."""
    try:
        yield
    except exceptions.ClientError as error:
        raise ServiceError(_refusal(error, address, client.meta.endpoint_url)) from error
    except exceptions.BotoCoreError as error:
        raise ServiceError(_failure(error, address, client.meta.endpoint_url)) from error


def _parts(address: str) -> tuple[str, str]:
    """Return bucket and prefix of an address, without slashes around them."""
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    return bucket, prefix.strip("/")


def _connected(address: str, *, patient: bool) -> Any:
    """Return a client after a first request, which fails within seconds even if the client is patient."""
    bucket, prefix = _parts(address)
    client = _client(patient=False)
    with _service_errors(address, client):
        try:
            client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except exceptions.BotoCoreError:
            raise
        except OSError as error:
            # A file with a token is read at the first request.
            raise _unusable(error) from error
    return _client(patient=True) if patient else client


@dataclass(frozen=True)
class S3Store:
    """See `components.stores.Store`. The first use of any method checks that the bucket answers."""

    address: str
    _bucket: str
    _prefix: str
    """Empty or ending with a slash: s3://b/photos does not include s3://b/photos-old/1.png."""
    _connect: Callable[[], Any] = field(repr=False, compare=False)
    folder: None = None
    parallel_reads: int = _CONNECTIONS

    @contextmanager
    def _client(self) -> Iterator[Any]:
        client = self._connect()
        with _service_errors(self.address, client):
            yield client

    @contextmanager
    def _reader(self, name: str) -> Iterator[Any]:
        with self._client() as client:
            try:
                yield client
            except exceptions.ClientError as error:
                if _code(error) not in _NO_FILE:
                    raise
                raise FileNotFoundError(f"{self.address}/{name}") from error

    def below(self, name: str) -> "S3Store":
        return replace(self, address=f"{self.address}/{name}", _prefix=f"{self._prefix}{name}/")

    def check_readable(self) -> None:
        self._connect()

    def _stored(self, entry: Mapping[str, Any]) -> StoredFile:
        name, written = entry["Key"].removeprefix(self._prefix), entry["LastModified"].timestamp()
        as_listed = partial(self._read_as_listed, name, entry["ETag"])
        read, identity = partial(self.read, name), partial(str, entry["ETag"])
        return StoredFile(name, entry["Size"], written, read, as_listed, identity)

    def files(self, start: str = "") -> list[StoredFile]:
        with self._client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + start)
            found = [entry for page in pages for entry in page.get("Contents", ())]
        # Some programs write an object whose key ends with a slash for each folder.
        stored = [self._stored(entry) for entry in found if not entry["Key"].endswith("/")]
        return sorted(stored, key=lambda file: file.name)

    def originals(self) -> list[StoredFile]:
        with self._client() as client:
            pages = client.get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=self._prefix)
            try:
                versions = [version for page in pages for version in page.get("Versions", ())]
            except exceptions.ClientError as error:
                # `files` needs fewer rights, and fails if the store refuses those too.
                _warn_once("%s does not list versions (%s): the newest version counts", self.address, _code(error))
                return self.files()
        oldest = {version["Key"]: version for version in versions}  # the newest version of a key comes first
        newest = {version["Key"]: version for version in versions if version["IsLatest"]}
        found = []
        for key, version in sorted(oldest.items()):
            file = self._stored(version)
            if not version["IsLatest"]:
                file = replace(file, read=partial(self._read_version, file.name, version["VersionId"]))
                if newest.get(key, {}).get("ETag") != version["ETag"]:
                    _warn_once("%s/%s was overwritten or deleted: its first version counts", self.address, file.name)
            if not key.endswith("/"):
                found.append(file)
        return found

    def _read_version(self, name: str, version: str) -> bytes:
        with self._reader(name) as client:
            found = client.get_object(Bucket=self._bucket, Key=self._prefix + name, VersionId=version)
            return bytes(found["Body"].read())

    def read(self, name: str, first: int | None = None) -> bytes:
        content = io.BytesIO()
        with self._reader(name) as client:
            if first is not None:
                part = client.get_object(Bucket=self._bucket, Key=self._prefix + name, Range=f"bytes=0-{first - 1}")
                return bytes(part["Body"].read())
            # Unlike reading the body of get_object, boto3 retries this if the connection breaks.
            client.download_fileobj(self._bucket, self._prefix + name, content, Config=_ONE_THREAD)
        return content.getvalue()

    def _read_as_listed(self, name: str, etag: str) -> bytes:
        try:
            with self._reader(name) as client:
                # boto3's download, which tries again too, does not return the ETag of what it received.
                for attempt in _BROKEN_CONNECTION.copy():
                    with attempt:
                        answer = client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                        content = bytes(answer["Body"].read())
        except FileNotFoundError as error:
            raise DataError(f"{self.address}/{name} was deleted after it had been listed: run it again") from error
        if answer["ETag"] != etag:
            raise DataError(f"{self.address}/{name} was replaced after it had been listed: run it again")
        return content

    def write(self, name: str, content: BinaryIO) -> None:
        with self._client() as client:
            client.upload_fileobj(content, self._bucket, self._prefix + name, Config=_ONE_THREAD)

    def write_if_absent(self, name: str, content: bytes) -> bool:
        with self._client() as client:
            try:
                client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content, IfNoneMatch="*")
            except exceptions.ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
            else:
                return True
        try:
            return self.read(name) == content
        except FileNotFoundError:
            # Amazon refuses a write while another write of the same name is in progress.
            return self.write_if_absent(name, content)

    def delete(self, name: str) -> None:
        with self._client() as client:
            client.delete_object(Bucket=self._bucket, Key=self._prefix + name)

    def download(self, name: str, path: Path) -> None:
        with whole_file(path) as temporary, temporary.open("wb") as file, self._reader(name) as client:
            client.download_fileobj(self._bucket, self._prefix + name, file, Config=_ONE_THREAD)


def open_s3(address: str, *, patient: bool) -> S3Store:
    """Return the store of s3://bucket/prefix; see `components.stores.open_store`.

    Raises:
        ConfigError: the address names no bucket.
    """
    bucket, prefix = _parts(address)
    if not bucket:
        raise ConfigError(f"{address} names no bucket: an address looks like s3://bucket/folder")
    address = f"s3://{bucket}/{prefix}".rstrip("/")
    connect = cache(partial(_connected, address, patient=patient))
    return S3Store(address, bucket, f"{prefix}/" if prefix else "", connect)
