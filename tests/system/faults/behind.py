"""Things that lie behind a server: in a bucket of SeaweedFS, or in a tracking server of MLflow.

A server dies by SIGSTOP: to its clients a stopped server is one whose machine has crashed, because the system still
takes connections and nothing answers.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil

from components.ingest.step import ingest
from components.stores import open_store, s3
from components.stores.data_version import data_version, fetch, push
from components.stores.source import source_version
from components.tracking.ledger import entries
from tests.system.faults import things

BUCKET = "s3://faults"
TRACKER = "TRACKER_OF_FAULTS"
"""Environment variable: address of MLflow's server."""


def read_source() -> Any:
    source = f"{BUCKET}/photographs"
    report = ingest(source, things.scratch("dataset"), things.scratch("docs"), things.params().ingest)
    return source_version(source), report.data_version


def send_dataset() -> None:
    push(things.output("ingest", "dataset"), f"{BUCKET}/remote")


def fetch_dataset() -> str:
    version = data_version(things.output("ingest", "dataset"))
    # A folder that has this version is not fetched again.
    shutil.rmtree(things.scratch("dataset"), ignore_errors=True)
    fetch(version, f"{BUCKET}/remote", things.scratch("dataset"))
    return data_version(things.scratch("dataset"))


def write_ledger() -> None:
    store = open_store(f"{BUCKET}/ledger/{things.MODEL}")
    for path in sorted((things.LEDGER / things.MODEL).iterdir()):
        store.write_if_absent(path.name, path.read_bytes())


def read_ledger() -> Any:
    return [(move.number, move.version, move.previous) for move in entries(f"{BUCKET}/ledger", things.MODEL)]


def resume() -> str:
    things.train(
        things.output("patches", "shards"), things.output("warmup", "generator"), things.scratch("challenger"),
        f"{BUCKET}/checkpoints", params=things.params().train, track=lambda *_: None,
    )  # fmt: skip
    return things.sha256_of(things.scratch("challenger") / "generator.safetensors")


def _at_tracker(use: Callable[[], Any]) -> Any:
    os.environ |= {
        "MLFLOW_TRACKING_URI": os.environ[TRACKER],
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    return use()


def at_tracker(*uses: Callable[[], Any]) -> tuple[Callable[[], Any], ...]:
    """The same, with MLflow's server instead of the database in the workspace."""
    return tuple(partial(_at_tracker, use) for use in uses)


def _processes() -> list[int]:
    """The processes of both servers, which listen on the ports of their addresses."""
    ports = {urlsplit(os.environ[name]).port for name in ("AWS_ENDPOINT_URL", TRACKER)}
    return sorted(
        {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.pid and each.status == psutil.CONN_LISTEN and each.laddr.port in ports
        }
    )


@contextmanager
def dead_servers() -> Iterator[None]:
    """Both servers do not answer."""
    s3._SECONDS_TO_CONNECT = s3._SECONDS_TO_ANSWER = 3
    stopped = _processes()
    assert len(stopped) >= 2, stopped
    try:
        for process in stopped:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in stopped:
            os.kill(process, signal.SIGCONT)
