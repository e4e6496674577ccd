"""MLflow's client and its errors. Other packages import mlflow from here, see `components.tracking`."""

import errno
import logging
import os
import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from bebygan.errors import ConfigError, ServiceError, StorageError, without_password
from bebygan.files import lock, storage_errors
from components.tracking.address import database_file, is_database_server, tracking_uri, with_driver
from components.tracking.artifact_places import follow_database

__all__ = ["MlflowClient", "MlflowException", "mlflow", "mlflow_client", "service_errors", "tracker", "uploading"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_UNWRITABLE = "disk is full|readonly database"
_LIMIT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
_SECONDS_TO_CONNECT = 10
_SECONDS_FOR_UPLOADS = 120
"""MLflow's own default."""
_ADVICE = (
    ("CERTIFICATE_VERIFY_FAILED", "", "name the certificate of its authority in MLFLOW_TRACKING_SERVER_CERT_PATH"),
    (r"UNAUTH|\b401\b", "it asks for a login", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
    (r"PERMISSION_DENIED|\b403\b", "permission is denied", "ask its administrator, or log in as another user"),
    ("timed out|timeout exception", "it did not answer in time", f"check whether it is overloaded, or raise {_LIMIT}"),
    (
        "out-of-date database schema|Can't locate revision",
        "the database was written by another version of MLflow",
        f"use that version, or upgrade a copy of the database by `mlflow db upgrade` of MLflow {mlflow.__version__}",
    ),
    ("database is locked", "another process locks the database", "wait for that process, or end it"),
    (
        "file is not a database|disk image is malformed",
        "the file is damaged or not an SQLite database",
        "restore it from a backup, or move it elsewhere to start with an empty one",
    ),
    ("'active' state", "the experiment was deleted", "`mlflow experiments restore` it, or set MLFLOW_EXPERIMENT_NAME"),
    (
        r"No Experiment with id|Run with id|Run '\w+' not found",
        "there is no such experiment or run",
        "it was deleted or belongs to another server: correct MLFLOW_EXPERIMENT_ID and MLFLOW_RUN_ID",
    ),
    (
        "Registered Model .*not found|Model Version .*not found|No such artifact",
        "the model or its file was deleted",
        "restore it, or promote another version",
    ),
)
"""Pattern of error codes and messages; reason ("" for the message itself); what to do."""
_opening = threading.Lock()
_opened: set[str] = set()
_changing_limit = threading.Lock()
_limits_before: list[str] = []

for _noisy in ("alembic", "mlflow", "urllib3.connectionpool"):
    logging.getLogger(_noisy).setLevel(logging.ERROR)
# It logs a traceback of each error that it raises.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _explained(error: BaseException) -> tuple[str, str]:
    """Return the reason and what to do, each in one line."""
    reasons = [each.strerror for each in _chain(error) if isinstance(each, OSError) and each.strerror]
    # Before it is cut: the rest of a password would not be recognised.
    raw = reasons[0] if reasons else without_password(" ".join(str(error).split()))[:300]
    text = " ".join(f"{getattr(each, 'error_code', '')} {each}" for each in _chain(error))
    for pattern, reason, cure in _ADVICE:
        if re.search(pattern, text):
            return reason or raw, cure
    if isinstance(error, (Boto3Error, BotoCoreError, ClientError)):
        return raw, "check that the bucket of its artifacts is reachable, and that the AWS_* variables give access"
    return raw, "check that it runs and that you have access"


def _without_room(error: BaseException) -> str | None:
    """Return what could not be written on this machine, or None if an error has another cause."""
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _NO_ROOM:
            return str(each.filename or f"the folder of temporary files {tempfile.gettempdir()}")
        if isinstance(each, SQLAlchemyError | sqlite3.Error) and re.search(_UNWRITABLE, str(each)):
            return "the database"
        # MLflow keeps only the text of errors of single files. Those of a server name a path of the server.
        found = re.search(rf"\[Errno (?:{'|'.join(map(str, _NO_ROOM))})\] [^:]+: '([^']+)'", str(each))
        if found and (found[1].startswith(tempfile.gettempdir()) or Path(found[1]).parent.exists()):
            return found[1]
    return None


@contextmanager
def service_errors(doing: str) -> Iterator[None]:
    """Translate errors of mlflow.

    Raises:
        ServiceError: the server, or the bucket of its artifacts, is unreachable or refuses.
        StorageError: the disk of temporary files, or of an embedded store, is full or read-only.
    """
    try:
        yield
    # boto3's errors: clients of some servers upload files to the bucket themselves.
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, Boto3Error, BotoCoreError, ClientError) as error:
        if place := _without_room(error):
            raise StorageError(
                f"{doing} failed: {place} cannot be written, the disk is full or read-only: make room, then run again"
            ) from error
        reason, cure = _explained(error)
        raise ServiceError(
            f"{doing} failed at MLflow's {tracking_uri()} ({reason}): {cure}, or correct MLFLOW_TRACKING_URI"
        ) from error


def _open_database(uri: str) -> None:
    """Create the tables of an embedded database and correct the places in it, one process at a time.

    MLflow does not lock this itself. To a database server, connect once: MLflow would try for minutes.
    """
    file = database_file(uri)
    if uri in _opened:
        return
    if file is None:
        if is_database_server(uri):
            # libpq, which has no limit of its own, reads it.
            os.environ.setdefault("PGCONNECT_TIMEOUT", str(_SECONDS_TO_CONNECT))
            create_engine(uri, poolclass=NullPool).connect().close()
            _opened.add(uri)
        return
    with storage_errors(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        lock(folder, wait=True)
        MlflowClient().search_registered_models(max_results=1)
        follow_database(file)
    finally:
        os.close(folder)
    _opened.add(uri)


def mlflow_client() -> MlflowClient:
    """Return a client of the tracking server and model registry.

    Raises:
        ConfigError: MLFLOW_TRACKING_URI is not an address that MLflow knows, or its database has no driver here.
        ServiceError: the database cannot be opened.
        StorageError: the folder of the database cannot be created.
    """
    uri = with_driver(tracking_uri())
    with service_errors("opening the tracker"), _opening:
        mlflow.set_tracking_uri(uri)
        try:
            _open_database(uri)
            return MlflowClient()
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"the driver {error.name} of MLflow's {uri} is not installed: install it, or name "
                "the MLflow server in front of the database in MLFLOW_TRACKING_URI"
            ) from error


@contextmanager
def tracker(doing: str) -> Iterator[MlflowClient]:
    """Yield a client; errors as in `mlflow_client` and, in the body, `service_errors`."""
    client = mlflow_client()
    with service_errors(doing):
        yield client


@contextmanager
def uploading() -> Iterator[None]:
    """Raise the time limit of MLflow's requests for files; the server answers only after it has stored them.

    MLflow reads the limit before each request. Several threads may upload at the same time.
    """
    with _changing_limit:
        before = os.environ.get(_LIMIT, str(_SECONDS_FOR_UPLOADS))
        _limits_before.append(before)
        os.environ[_LIMIT] = str(max(int(before), _SECONDS_FOR_UPLOADS))
    try:
        yield
    finally:
        with _changing_limit:
            before = _limits_before.pop()
            if not _limits_before:
                os.environ[_LIMIT] = before
