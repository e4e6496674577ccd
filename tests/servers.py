"""The servers of infra/compose.yaml as processes on loopback: the same commands and variables, other addresses."""

import glob
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import free_ports

INFRA = Path(__file__).parents[1] / "infra"
SCRIPTS = INFRA / "team-server"
_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)(?:(:-)([^}]*)|:\?[^}]*)?\})")


def new_secrets() -> dict[str, str]:
    """What team-server/secrets.sh prints, by name."""
    text = subprocess.run(["sh", SCRIPTS / "secrets.sh"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def services(secrets: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of compose.yaml with the variables filled in as compose does."""

    def value(found: re.Match[str]) -> str:
        name, optional, default = found.groups()
        if name is None:
            return "$"
        return secrets.get(name) or default if optional else secrets[name]

    text = (INFRA / "compose.yaml").read_text()
    described: dict[str, dict[str, Any]] = yaml.safe_load(_VARIABLE.sub(value, text))["services"]
    return described


def wait_for(ready: Callable[[], bool], server: subprocess.Popen[Any], log: Path, seconds: float = 120) -> None:
    """Wait until a server answers; a server that ends, or does not answer in time, fails with its log."""
    deadline = time.monotonic() + seconds
    while not ready():
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def answers(url: str) -> bool:
    """Whether a GET of the address succeeds."""
    try:
        with closing(urllib.request.urlopen(url, timeout=5)):  # noqa: S310 - loopback
            return True
    except OSError:
        return False


def install(what: str, package: str) -> None:
    """Install a package of Debian; where that is not possible, skip the test."""
    if os.geteuid() or not shutil.which("apt-get"):
        pytest.skip(f"{what} of Debian is not installed, and installing it takes root and apt-get")
    for command in (["update"], ["install", "--yes", "--no-install-recommends", package]):
        subprocess.run(["apt-get", "--quiet", *command], check=True, stdout=subprocess.DEVNULL)


def _postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, which Debian's package installs outside PATH."""

    def found() -> list[str]:
        return sorted(glob.glob("/usr/lib/postgresql/*/bin"))

    if not found():
        install("PostgreSQL", "postgresql")
    return Path(found()[-1])


@contextmanager
def postgres(service: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Start PostgreSQL as the service says; yield the PG* variables by which it is reached."""
    programs, described = _postgres_programs(), service["environment"]
    # It refuses to be root, and its user may not enter pytest's folders.
    user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
    port, folder = free_ports(1)[0], Path(tempfile.mkdtemp(prefix="bebygan-postgres-"))
    (folder / "password").write_text(described["POSTGRES_PASSWORD"])
    if os.geteuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    variables = {
        "PGHOST": "127.0.0.1",
        "PGPORT": str(port),
        "PGUSER": described["POSTGRES_USER"],
        "PGDATABASE": described["POSTGRES_DB"],
        "PGPASSWORD": described["POSTGRES_PASSWORD"],
    }
    as_user: dict[str, Any] = {"user": user, "group": user, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        subprocess.run(
            [
                programs / "initdb", f"--pgdata={folder / 'data'}", f"--username={described['POSTGRES_USER']}",
                f"--pwfile={folder / 'password'}", "--no-sync", *described["POSTGRES_INITDB_ARGS"].split(),
            ],
            check=True, capture_output=True, cwd=folder, **as_user,
        )  # fmt: skip
        log = folder / "log"
        with log.open("w") as lines:
            server = subprocess.Popen(
                [
                    programs / "postgres", "-D", folder / "data", *service["command"], "-c", f"port={port}",
                    "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={folder}",
                    "-c", "fsync=off",
                ],
                stdout=lines, stderr=lines, cwd=folder, **as_user,
            )  # fmt: skip
        try:
            environment = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **variables}
            ready = ["psql", "--dbname=postgres", "--command=select 1"]
            wait_for(
                lambda: subprocess.run(ready, env=environment, capture_output=True, check=False).returncode == 0,
                server,
                log,
            )
            subprocess.run(["createdb", described["POSTGRES_DB"]], env=environment, check=True)
            yield variables | {"PATH": environment["PATH"]}
        finally:
            server.terminate()
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


STRANGER = {"aws_access_key_id": "stranger", "aws_secret_access_key": "a-key-that-the-stranger-chose"}


def _protobuf(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(bytes([number << 3 | 2, len(value)]) + value for number, value in fields)


_KEYS = _protobuf(*((number, value.encode()) for number, value in enumerate(STRANGER.values(), start=1)))
_GRPC_CALLS = {
    "messaging_pb.SeaweedS3IamCache/PutIdentity": _protobuf(
        (1, _protobuf((1, b"stranger"), (2, _KEYS), (3, b"Admin"), (3, b"Read"), (3, b"List"), (3, b"Write")))
    ),
    "messaging_pb.SeaweedS3IamCache/RemoveIdentity": _protobuf((1, b"nobody")),
    "messaging_pb.SeaweedS3IamCache/PutPolicy": _protobuf((1, b"all"), (2, b"{}")),
    "messaging_pb.SeaweedS3IamCache/ListPolicies": b"",
    "s3_lifecycle_pb.SeaweedS3LifecycleInternal/LifecycleDelete": _protobuf((1, b"no-bucket"), (2, b"no-object")),
}
"""Calls of SeaweedFS's administration, by method."""


def grpc_answers(host: str, port: int, method: str, message: bytes) -> bool:
    """Whether a gRPC call without a login is executed: a refused one is answered by a status without a message."""

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    headers = {":method": "POST", ":scheme": "http", ":path": f"/{method}", ":authority": host}
    headers |= {"content-type": "application/grpc", "te": "trailers"}
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    body = b"\0" + len(message).to_bytes(4, "big") + message
    settings, data, end = 4, 0, 1
    with socket.create_connection((host, port), 10) as connection, connection.makefile("rb") as received:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0))
        connection.sendall(frame(1, 4, 1, block) + frame(data, end, 1, body))
        while len(head := received.read(9)) == 9:
            received.read(int.from_bytes(head[:3], "big"))
            kind, flags = head[3], head[4]
            if kind == data:
                return True
            if kind == settings and not flags:
                connection.sendall(frame(settings, 1, 0))
            if kind == 1 and flags & end:
                break
    return False


def listening(host: str) -> set[int]:
    """Ports on which a server listens on an address of this machine."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    address = socket.inet_aton(host)[::-1].hex().upper()
    return {
        int(local.split(":")[1], 16) for _, local, _, state, *_ in lines if local.startswith(address) and state == "0A"
    }


def open_to_strangers(store: str) -> list[str]:
    """What else than S3 a server executes without a login on the address of its store: port and method."""
    host, port = store.removeprefix("http://").split(":")
    return [
        f"{other} {method}"
        for other in sorted(listening(host) - {int(port)})
        for method, message in _GRPC_CALLS.items()
        if grpc_answers(host, other, method, message)
    ]


@contextmanager
def seaweedfs(service: Mapping[str, Any], folder: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Start SeaweedFS as the service says, S3 on `host`; yield the address of its S3 store."""
    folder.mkdir()
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([*names, *(f"{name}.grpc" for name in names)], free_ports(8), strict=True))
    there = [
        f"-{name}.port{'.grpc' if grpc else ''}={port}"
        for key, port in ports.items()
        for name, _, grpc in [key.partition(".")]
    ]
    environment = {
        **service["environment"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(folder),
    }
    script = SCRIPTS / Path(service["entrypoint"][1]).name
    log = folder / "log"
    with log.open("w") as lines:
        server = subprocess.Popen(
            ["sh", script, *service["command"], f"-dir={folder}", f"-s3.ip.bind={host}", *there],
            env=environment, stdout=lines, stderr=lines,
        )  # fmt: skip
    address = f"http://{host}:{ports['s3']}"
    try:
        wait_for(lambda: answers(f"{address}/healthz"), server, log)
        yield address
    finally:
        # Asked politely it takes 25 s, to save what nobody wants.
        server.kill()
        server.wait()


@contextmanager
def mlflow_server(
    service: Mapping[str, Any], database: Mapping[str, str], store: str, folder: Path, port: int
) -> Iterator[str]:
    """Start MLflow as the service says, with one worker; yield its address."""
    folder.mkdir(exist_ok=True)
    environment = {
        **service["environment"],
        **database,
        "AWS_ENDPOINT_URL": store,
        "MLFLOW_AUTH_CONFIG_PATH": str(_on_this_machine(service, service["environment"]["MLFLOW_AUTH_CONFIG_PATH"])),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{database['PATH']}",
        "HOME": str(folder),
    }
    here = ["--host=127.0.0.1", f"--port={port}", "--workers=1", f"--expose-prometheus={folder / 'metrics'}"]
    log = folder / "log"
    with log.open("a") as lines:
        server = subprocess.Popen(
            [*service["command"], *here], env=environment, cwd=folder, stdout=lines, stderr=lines, process_group=0
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{address}/health"), server, log)
        yield address
    finally:
        # Its workers do not end with it when it is killed.
        os.killpg(server.pid, 15)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def _on_this_machine(service: Mapping[str, Any], path: str) -> Path:
    """Where a file that a service has mounted lies in the project."""
    [source] = [source for source, target, *_ in (each.split(":") for each in service["volumes"]) if target == path]
    return INFRA / source


@dataclass
class TeamServer:
    """The three servers, started, and their settings."""

    services: Mapping[str, Mapping[str, Any]]
    secrets: Mapping[str, str]
    folder: Path
    database: Mapping[str, str]
    store: str
    _tracker_port: int
    _tracker: ExitStack = field(default_factory=ExitStack)

    @property
    def tracker(self) -> str:
        """Address of the tracking server."""
        return f"http://127.0.0.1:{self._tracker_port}"

    def start_tracker(self) -> None:
        """Start the tracking server."""
        self._tracker.enter_context(
            mlflow_server(
                self.services["mlflow"], self.database, self.store, self.folder / "mlflow", self._tracker_port
            )
        )

    def stop_tracker(self) -> None:
        """Stop it."""
        self._tracker.close()

    def environment(self, service: str, **changes: str) -> dict[str, str]:
        """The variables of a service, with the addresses that hold here."""
        addresses = {"AWS_ENDPOINT_URL": self.store, "MLFLOW_TRACKING_URI": self.tracker}
        described = self.services[service]["environment"]
        # Fetched weights are kept where all tests keep them.
        own = {name: str(value) for name, value in described.items() if name not in ("HOME", "BEBYGAN_CACHE")}
        return own | {name: value for name, value in addresses.items() if name in own} | changes


@contextmanager
def team_server(folder: Path) -> Iterator[TeamServer]:
    """Start everything."""
    secrets = new_secrets()
    described = services(secrets)
    with (
        postgres(described["postgres"]) as database,
        seaweedfs(described["seaweedfs"], folder / "seaweedfs") as store,
    ):
        server = TeamServer(described, secrets, folder, database, store, free_ports(1)[0])
        server.start_tracker()
        try:
            yield server
        finally:
            server.stop_tracker()
