"""`python -m benchmarks.serving`: load `bebygan serve` while the champion changes, and check every answer.

Clients ask without pause. Meanwhile the alias champion moves between two versions and, after each move, to one whose
weights were tampered with. Each answer must be, byte for byte, what a version computes that was champion at some moment
of the request, and the version that the answer names. The generators are tiny: the load is on the server, not on torch.
"""

import argparse
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

import bebygan
from bebygan.files import sha256_of
from bebygan.imaging.kinds import upscale_any
from bebygan.imaging.tiling import upscale_fast
from bebygan.networks.generator import Generator
from bebygan.networks.naming import save_generator
from bebygan.settings import GeneratorShape
from components.cli import report_errors
from components.progress import say
from components.tracking.address import database_uri
from components.tracking.client import mlflow_client

ROOT = Path(__file__).resolve().parents[1]
MODEL = "bebygan"
_SECONDS_TO_SWITCH = 60.0


class Registry:
    """The embedded registry of a workspace, with versions of tiny generators. This process uses it from now on."""

    def __init__(self, workspace: Path) -> None:
        workspace.mkdir(exist_ok=True)
        self.workspace, self.uri = workspace, database_uri(workspace / "mlflow.db")
        os.environ["MLFLOW_TRACKING_URI"] = self.uri
        self.client = mlflow_client()
        self.client.create_registered_model(MODEL)
        self.stored: dict[str, Path] = {}
        """File of the weights of each version."""

    def add(self, seed: int) -> str:
        """Register random weights and return the number of the version."""
        torch.manual_seed(seed)
        folder = self.workspace / f"stored-{seed}"
        path = folder / "artifacts" / "generator.safetensors"
        path.parent.mkdir(parents=True)
        save_generator(Generator(GeneratorShape(blocks=1, features=4, growth=2)), path)
        tags = {"weights_sha256": sha256_of(path)}
        version = str(self.client.create_model_version(MODEL, folder.as_uri(), tags=tags).version)
        self.stored[version] = path
        return version

    def tamper(self, version: str) -> None:
        """Change one bit of the weights of a version."""
        content = bytearray(self.stored[version].read_bytes())
        content[-5] ^= 1
        self.stored[version].write_bytes(content)

    def promote(self, version: str) -> None:
        """Give a version the alias champion."""
        self.client.set_registered_model_alias(MODEL, "champion", version)

    def answer(self, version: str, image: bytes) -> bytes:
        """Return what the library makes of the bytes of an image."""
        upscaler = bebygan.load(self.stored[version])
        return bytes(upscale_any(image, lambda rgb: upscale_fast(upscaler, rgb, precision="fp32")))


@contextmanager
def served(workspace: Path, *options: str, wait_for: str = "readyz") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Start `bebygan serve`, whose output goes to WORKSPACE/log; yield its port and process when a path answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--workspace", str(workspace), "--port", str(port)]
    log = workspace / "log"
    with log.open("w") as lines:
        server = subprocess.Popen([*command, "--precision", "fp32", *options], cwd=ROOT, stdout=lines, stderr=lines)
    try:
        while not _answers(port, wait_for):
            if server.poll() is not None:
                raise RuntimeError(f"bebygan serve ended with exit code {server.returncode}: {log.read_text()}")
            time.sleep(0.1)
        yield port, server
    finally:
        server.terminate()
        server.wait(60)


def _answers(port: int, path: str) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5):
            return True
    except OSError:
        return False


@dataclass
class Load:
    """What happened while clients asked."""

    answers: list[tuple[float, float, int, str]] = field(default_factory=list)
    """Start, end, status and version of each."""
    wrong: list[str] = field(default_factory=list)
    """Answers that are not what any version computes, and errors of connections."""
    moves: list[tuple[float, float, str]] = field(default_factory=list)
    """When a version got the alias, when the server answered with it, and its number."""
    refused: int = 0
    """How often the server refused the version that was tampered with."""
    megabytes: list[float] = field(default_factory=list)
    """Memory of the server after the first tenth of the requests, and at the end."""

    def stale(self) -> list[str]:
        """Return the answers of versions that were not champion at any moment of the request."""
        found = []
        ends = [served for _, served, _ in self.moves[1:]] + [float("inf")]
        for start, end, status, version in self.answers:
            at_the_time = {
                each for (began, _, each), over in zip(self.moves, ends, strict=True) if began <= end and start <= over
            }
            if status == 200 and version not in at_the_time:
                found.append(f"version {version} answered when {sorted(at_the_time)} could be champion")
        return found


class _Clients:
    """Threads that ask without pause on a connection each, with an image each, until they have `number` answers."""

    def __init__(
        self, port: int, images: Sequence[bytes], expected: Sequence[Mapping[str, bytes]], number: int
    ) -> None:
        self.load, self._port, self._left = Load(), port, number
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._ask, args=pair) for pair in zip(images, expected, strict=True)]
        for thread in self.threads:
            thread.start()

    def _ask(self, image: bytes, expected: Mapping[str, bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while self._taken():
            start = time.monotonic()
            try:
                connection.request("POST", "/upscale", image, {"Content-Type": "image/png"})
                response = connection.getresponse()
                answer, version = response.read(), response.getheader("X-Model-Version", "")
            except (OSError, http.client.HTTPException) as error:
                self.load.wrong.append(repr(error))
                connection.close()
                continue
            self.load.answers.append((start, time.monotonic(), response.status, version))
            if response.status != 200 or answer != expected.get(version):
                self.load.wrong.append(f"status {response.status}, version {version or 'none'}: {answer[:80]!r}")
        connection.close()

    def _taken(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def wait_for(self, answers: int) -> None:
        """Wait until there are so many answers, or the clients have ended."""
        while len(self.load.answers) < answers and any(thread.is_alive() for thread in self.threads):
            time.sleep(0.005)


def _await(port: int, name: str, value: str) -> float:
    """Wait until a fact of /version holds a text, and return the time.

    Raises:
        RuntimeError: it does not within a minute.
    """
    deadline = time.monotonic() + _SECONDS_TO_SWITCH
    while time.monotonic() < deadline:
        with urlopen(f"http://127.0.0.1:{port}/version", timeout=60) as response:
            now, found = time.monotonic(), json.load(response)
        if value in str(found[name]):
            return now
        time.sleep(0.02)
    raise RuntimeError(f"/version did not show {name} {value} in time, but {found}")


def _megabytes(process: int) -> float:
    [line] = [each for each in Path(f"/proc/{process}/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def load(workspace: Path, *, requests: int, clients: int, moves: int, side: int = 64, poll: float = 2.0) -> Load:
    """Load a server while the champion changes.

    Args:
        workspace: folder of its registry, which is created.
        requests: of all clients.
        clients: each has an image of its own and a connection of its own.
        moves: of the alias, forth and back; after each the tampered version gets it for a moment.
        side: of the images, pixels.
        poll: seconds between the server's looks at the alias.

    Raises:
        RuntimeError: the server ended, or did not follow the alias within a minute.
    """
    registry = Registry(workspace)
    versions = [registry.add(1), registry.add(2)]
    tampered = registry.add(3)
    registry.tamper(tampered)
    random = np.random.default_rng(0)
    images = []
    for _ in range(clients):
        file = io.BytesIO()
        # Smooth, as noise takes PNG longer than the network.
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "PNG")
        images.append(file.getvalue())
    expected = [{version: registry.answer(version, image) for version in versions} for image in images]
    registry.promote(versions[0])
    with served(workspace, "--poll", str(poll)) as (port, server):
        asking = _Clients(port, images, expected, requests)
        found = asking.load
        found.moves.append((0.0, 0.0, versions[0]))
        for move in range(1, moves + 1):
            asking.wait_for(requests * move // (moves + 1))
            if not found.megabytes and move * 10 >= moves:
                found.megabytes.append(_megabytes(server.pid))
            version = versions[move % 2]
            began = time.monotonic()
            registry.promote(version)
            found.moves.append((began, _await(port, "version", version), version))
            registry.promote(tampered)
            _await(port, "fault", f"models:/{MODEL}/{tampered} is damaged")
            found.refused += 1
            registry.promote(version)
            _await(port, "fault", "None")
        for thread in asking.threads:
            thread.join()
        found.megabytes.append(_megabytes(server.pid))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code, which is 1 if an answer is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--moves", type=int, default=20, help="promotions and rollbacks (default: %(default)s)")
    options = parser.parse_args(arguments)
    wrong: list[str] = []

    def run() -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = load(
                Path(folder) / "workspace", requests=options.requests, clients=options.clients, moves=options.moves
            )
        seconds = sorted(end - start for start, end, _, _ in found.answers)
        switches = [served - began for began, served, _ in found.moves[1:]]
        counts = {version: sum(each[3] == version for each in found.answers) for version in ("1", "2")}
        wrong.extend([*found.wrong, *found.stale()])
        lines = [
            ["answers, of versions 1 and 2", f"{len(found.answers)}, {counts['1']} and {counts['2']}"],
            ["wrong, failed or of a version of another time", len(wrong)],
            ["promotions and rollbacks", len(switches)],
            ["seconds from the alias to the first answer, median and most",
             f"{sorted(switches)[len(switches) // 2]:.2f}, {max(switches):.2f}"],
            ["refusals of the tampered version", f"{found.refused} of {options.moves}"],
            ["seconds of a request, median, 99 %, most",
             ", ".join(f"{seconds[int(share * (len(seconds) - 1))]:.3f}" for share in (0.5, 0.99, 1))],
            ["memory of the server after a tenth and at the end, MB",
             " and ".join(f"{each:.0f}" for each in found.megabytes)],
            ["seconds in all", f"{time.monotonic() - started:.0f}"],
        ]  # fmt: skip
        print(tabulate(lines, tablefmt="github", headers=["", ""], disable_numparse=True))
        for each in wrong[:10]:
            say(each)

    return report_errors(run) or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
