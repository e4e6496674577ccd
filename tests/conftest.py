"""What many tests need: a real S3 server, and photographs made on the fly."""

import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

KEYS = {"AWS_ACCESS_KEY_ID": "bebygan-tests", "AWS_SECRET_ACCESS_KEY": "not-a-secret"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, so that no worker is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, "system" not in item.path.parts))


@pytest.fixture(autouse=True, scope="session")
def _call_stacks_without_source_lines() -> Iterator[None]:
    """KFP asks for the whole call stack at each setting of a task, though only for a name.

    With the source lines of each of pytest's many frames, that takes most of the time of a compilation.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspect, "stack", partial(inspect.stack, context=0))
        yield


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nothing listens."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _answers(url: str) -> bool:
    try:
        with closing(urllib.request.urlopen(url, timeout=2)):  # noqa: S310 - loopback
            return True
    except urllib.error.HTTPError as error:
        return error.code == 403
    except OSError:
        return False


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a SeaweedFS server that knows KEYS and nobody else."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEYS["AWS_ACCESS_KEY_ID"], "secretKey": KEYS["AWS_SECRET_ACCESS_KEY"]}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], free_ports(8), strict=True))
    arguments = [
        f"-{name}.port{'.grpc' if grpc else ''}={port}"
        for key, port in ports.items()
        for name, _, grpc in [key.partition(".")]
    ]
    weed = Path(sys.executable).with_name("weed")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                str(weed if weed.exists() else shutil.which("weed")), f"-logdir={folder}", "server", f"-dir={folder}",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", f"-s3.config={folder / 's3.json'}",
                "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=1000", "-s3.port.iceberg=0",
                "-s3.port.lance=0", *arguments,
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(endpoint):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield endpoint
    finally:
        # Asked politely it takes 25 s, to save what nobody wants.
        server.kill()
        server.wait()


@pytest.fixture
def s3_environment(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The variables that name the server; set for this test, and to hand to processes."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = {
        **KEYS,
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


@pytest.fixture
def s3(s3_environment: dict[str, str]) -> Any:
    """A boto3 client of the server."""
    from boto3.session import Session

    return Session().client("s3", endpoint_url=s3_environment["AWS_ENDPOINT_URL"])


@pytest.fixture
def bucket(s3: Any) -> str:
    """Name of a fresh, empty bucket."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs. Tests copy it, because the creation of its tables takes seconds."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlartifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes a picture that looks like a photograph to all measures: smooth parts, texture, edges, no two alike."""

    def make(seed: int, width: int = 96, height: int = 80) -> Image.Image:
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        noise = random.normal(0, 25, (height, width, 1)) * (np.arange(width) > width // 3)[:, None]
        return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture
def photographs(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """A folder of 24 PNG photographs, enough for each side of a split."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(24):
        picture(seed).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 128 KiB that is really full after that."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(command, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
