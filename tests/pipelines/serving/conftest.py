"""A registry with versions of tiny generators, and a server in front of it within this process."""

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import uvicorn
from PIL import Image

from benchmarks.serving import MODEL, Registry
from pipelines.serving.following import Follower
from pipelines.serving.server import Limits, Server, configured
from tests.pipelines.serving.asking import RGB, file_of, until


@pytest.fixture
def registry(tmp_path: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(empty_mlflow_database, workspace / "mlflow.db")
    # Registry sets it; this restores it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    return Registry(workspace)


@pytest.fixture
def image() -> bytes:
    return file_of(Image.fromarray(RGB))


@dataclass
class Running:
    """A server in a thread."""

    port: int
    server: Server
    program: uvicorn.Server
    thread: threading.Thread


@pytest.fixture
def start(registry: Registry) -> Iterator[Callable[..., Running]]:  # noqa: ARG001
    """Starts a server with small limits, and waits until it answers."""
    started = []

    def begin(**limits: int) -> Running:
        listening = socket.create_server(("127.0.0.1", 0))
        allowed = Limits(**{"bytes": 100_000, "pixels": 10_000, "waiting": 2} | limits)
        server = Server(Follower("champion", MODEL, "fp32"), allowed, 0.1)
        program = uvicorn.Server(configured(server))
        started.append(
            Running(
                listening.getsockname()[1], server, program, threading.Thread(target=program.run, args=([listening],))
            )
        )
        started[-1].thread.start()
        until(lambda: program.started)
        return started[-1]

    yield begin
    for each in started:
        each.program.should_exit = True
        each.thread.join(30)


@pytest.fixture
def ready(registry: Registry, start: Callable[..., Running]) -> Callable[..., Running]:
    """Starts a server of a champion, and waits until it is served."""

    def begin(**limits: int) -> Running:
        registry.promote(registry.add(1))
        running = start(**limits)
        until(lambda: running.server.follower.current is not None)
        return running

    return begin
