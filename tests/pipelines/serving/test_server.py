"""A real server in front of a real registry."""

import http.client
import io
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bebygan.files import sha256_of
from bebygan.imaging.tiling import upscale_fast
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator, save_generator
from bebygan.settings import GeneratorShape
from components.tracking.address import database_uri
from components.tracking.client import mlflow_client
from pipelines.serving.following import Follower
from tests.bebygan.imaging.test_picture_files import bomb
from tests.conftest import free_ports
from tests.servers import answers, wait_for

ROOT = Path(__file__).parents[3]
RGB = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)


class Registry:
    """The registry of a workspace, with versions of small generators."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.stored: dict[str, Path] = {}
        self.client = mlflow_client()
        self.client.create_registered_model("bebygan")

    def add(self, seed: int) -> str:
        torch.manual_seed(seed)
        folder = self.workspace / f"stored-{seed}"
        path = folder / "artifacts" / "generator.safetensors"
        path.parent.mkdir(parents=True)
        save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), path)
        version = self.client.create_model_version(
            "bebygan", folder.as_uri(), tags={"weights_sha256": sha256_of(path)}
        ).version
        self.stored[str(version)] = path
        return str(version)

    def promote(self, version: str) -> None:
        self.client.set_registered_model_alias("bebygan", "champion", version)

    def expected(self, version: str) -> np.ndarray:
        generator = load_generator(self.stored[version]).eval().to(memory_format=torch.channels_last)
        return upscale_fast(generator, RGB, precision="fp32")


@pytest.fixture
def registry(tmp_path: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    shutil.copy(empty_mlflow_database, workspace / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database_uri(workspace / "mlflow.db"))
    return Registry(workspace)


@contextmanager
def serving(registry: Registry, *options: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start `bebygan serve`; yield its port when a model is ready."""
    [port] = free_ports(1)
    log = registry.workspace / "log"
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--workspace", str(registry.workspace)]
    command += ["--port", str(port), "--poll", "0.2", "--precision", "fp32", *options]
    with log.open("w") as lines:
        server = subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines)
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), server, log)
        yield port, server
    finally:
        server.terminate()
        server.wait(30)


def asked(
    port: int, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_images_are_answered_in_their_kind_and_what_is_none_is_refused(registry: Registry) -> None:
    registry.promote(registry.add(1))
    with serving(registry, "--max-bytes", "100kB", "--max-pixels", "0.01", "--queue", "3") as (port, server):
        status, headers, content = asked(port, "POST", "/upscale", file_of(Image.fromarray(RGB)))
        assert (status, headers["content-type"], headers["x-model-version"]) == (200, "image/png", "1")
        assert np.array_equal(pixels(content), registry.expected("1"))
        _, headers, content = asked(
            port, "POST", "/", file_of(Image.fromarray(RGB), "JPEG"), {"Content-Type": "image/jpeg"}
        )
        assert (headers["content-type"], pixels(content).shape) == ("image/jpeg", (64, 48, 3))
        _, headers, content = asked(port, "POST", "/?format=webp", file_of(Image.fromarray(RGB[..., 0])))
        assert (headers["content-type"], pixels(content).shape[:2]) == ("image/webp", (64, 48))

        bomb(registry.workspace / "bomb.png")
        small = file_of(Image.fromarray(RGB))
        for path, body, kind, wanted, said in (
            ("/", file_of(Image.new("RGB", (200, 100))), "image/png", 413, "the image has 20000 pixels, and 10000 are"),
            ("/", (registry.workspace / "bomb.png").read_bytes(), "image/png", 413, "pixels that are allowed"),
            ("/", bytes(100_001), "image/png", 413, "the body has more than the 100000 bytes"),
            ("/", small, "text/plain", 415, "send the bytes of an image"),
            ("/", b"no image", "image/png", 415, "the body is no JPEG, PNG"),
            ("/", b"", "image/png", 415, "the body is no JPEG, PNG"),
            ("/", small[:200], "image/png", 400, "cannot read the image"),
            ("/?format=exe", small, "image/png", 400, "format must be one of jpg"),
        ):
            status, _, content = asked(port, "POST", path, body, {"Content-Type": kind})
            assert (status, said in content.decode()) == (wanted, True), content
            assert content.count(b"\n") == 1
        assert asked(port, "POST", "/elsewhere", b"x")[0] == 404
        assert asked(port, "GET", "/upscale")[0] == 405

        assert asked(port, "GET", "/healthz")[2] == b"ok\n"
        assert asked(port, "GET", "/readyz")[2] == b"ok\n"
        facts = json.loads(asked(port, "GET", "/version")[2])
        assert (facts["model"], facts["version"], facts["fault"]) == ("bebygan", "1", None)
        assert b"four times as large" in asked(port, "GET", "/")[2].lower()
        metrics = asked(port, "GET", "/metrics")[2].decode()
        assert 'bebygan_requests_total{code="200"} 3\n' in metrics
        assert 'bebygan_requests_total{code="413"} 3\n' in metrics
        assert 'bebygan_model_info{model="bebygan",version="1"} 1\n' in metrics

        # More at once than may wait.
        large = file_of(Image.fromarray(RGB.repeat(8, 0).repeat(6, 1)[:100, :70]))
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(asked(port, "POST", "/", large)[0])) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(found) <= {200, 429}
        assert found.count(200) >= 3

        # Requests that were accepted are answered after SIGTERM.
        found.clear()
        threads = [threading.Thread(target=lambda: found.append(asked(port, "POST", "/", large)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while b"bebygan_waiting_requests 0" in asked(port, "GET", "/metrics")[2] and time.monotonic() < deadline:
            if len(found) == len(threads):
                break
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert server.wait(30) in (0, -signal.SIGTERM)
        assert found == [200, 200]


class Clients:
    """Ask without pause, and compare each answer with what the version that it names computes."""

    def __init__(self, port: int, expected: dict[str, np.ndarray]) -> None:
        self.failed: list[object] = []
        self.answered = dict.fromkeys(expected, 0)
        self._port, self._expected, self._stop = port, expected, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        request = file_of(Image.fromarray(RGB))
        while not self._stop.is_set():
            try:
                status, headers, answer = asked(self._port, "POST", "/", request)
                version = headers.get("x-model-version", "")
                if status == 200 and np.array_equal(pixels(answer), self._expected[version]):
                    self.answered[version] += 1
                else:
                    self.failed.append((status, version, answer[:200]))
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(error)

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
def test_promotions_and_rollbacks_under_load_lose_no_request_and_broken_versions_are_not_served(
    registry: Registry,
) -> None:
    good = [registry.add(1), registry.add(2)]
    tampered = registry.add(3)
    content = bytearray(registry.stored[tampered].read_bytes())
    content[-5] ^= 1
    registry.stored[tampered].write_bytes(content)
    lost = registry.add(4)
    shutil.rmtree(registry.stored[lost].parent)
    expected = {version: registry.expected(version) for version in good}
    registry.promote(good[0])
    with serving(registry) as (port, server):

        def served() -> dict[str, str]:
            return dict(json.loads(asked(port, "GET", "/version")[2]))

        def becomes(name: str, value: str) -> None:
            deadline = time.monotonic() + 20
            while value not in str(served()[name]) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert value in str(served()[name])

        clients = Clients(port, expected)
        for number in range(6):
            registry.promote(good[(number + 1) % 2])
            becomes("version", good[(number + 1) % 2])
        for broken, said in ((tampered, f"models:/bebygan/{tampered} is damaged"), (lost, "fetching the weights of")):
            registry.promote(broken)
            becomes("fault", said)
            assert served()["version"] == good[0]
        registry.promote(good[1])
        becomes("version", good[1])
        assert served()["fault"] is None
        clients.end()
        metrics = asked(port, "GET", "/metrics")[2].decode()
        assert server.poll() is None
    assert clients.failed == []
    assert min(clients.answered.values()) > 5
    assert "bebygan_model_switches_total 7\n" in metrics
    assert "bebygan_model_refused_total 1\n" in metrics
    log = (registry.workspace / "log").read_text()
    assert f"models:/bebygan/{tampered} is damaged" in log
    assert f"models:/bebygan/{good[0]} is served on" in log


def test_without_a_champion_nothing_is_served_until_there_is_one(registry: Registry) -> None:
    follower = Follower("champion", "bebygan", "fp32")
    follower.refresh()
    assert follower.current is None
    assert "has no champion in this registry" in str(follower.fault)
    registry.promote(registry.add(1))
    follower.refresh()
    assert follower.current is not None
    assert (follower.current.version.version, follower.fault) == ("1", None)


def test_a_version_that_upscales_to_nothing_finite_is_not_served(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote(registry.add(1))
    follower = Follower("champion", "bebygan", "fp32")
    follower.refresh()
    before = follower.current
    registry.promote(registry.add(2))
    monkeypatch.setattr(Generator, "forward", lambda _, lr: torch.full((1, 3, 96, 68), float("nan")) + lr.sum())
    follower.refresh()
    assert follower.current is before
    assert follower.fault == "models:/bebygan/2 does not upscale a probe image: give the alias to another version"
