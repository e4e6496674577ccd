"""`bebygan ui`: open MLflow's pages on the runs and the model of a workspace."""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from bebygan.errors import ServiceError, without_password
from components.tracking.address import tracking_uri, use_registry
from components.tracking.client import tracker
from components.tracking.runs import experiment_id

_SECONDS_TO_START = 120.0


def links(address: str, experiment: str, model: str) -> dict[str, str]:
    """Return the addresses of the list of runs and of the model's versions."""
    # MLflow 3 opens its pages for language models unless the type is named.
    return {
        "runs": f"{address}/#/experiments/{experiment}?workflowType=machine_learning",
        "model": f"{address}/#/models/{model}?workflowType=machine_learning",
    }


def where_shown(workspace: Path, model: str) -> str:
    """Return the link to the runs on a server, or the command that opens the pages of the embedded store."""
    uri = tracking_uri(workspace)
    if not uri.startswith("http"):
        return shlex.join((str(Path(sys.executable).with_name("bebygan")), "ui", "--workspace", str(workspace)))
    with tracker("asking for the experiment") as client:
        return links(without_password(uri).rstrip("/"), experiment_id(client), model)["runs"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):  # noqa: S310 - loopback
            return
        time.sleep(0.2)
    last = (log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
    raise ServiceError(f"MLflow did not start at {address} ({last}): correct MLFLOW_TRACKING_URI, or see its message")


def _print_links(address: str, experiment: str, model: str) -> None:
    for name, link in links(address, experiment, model).items():
        print(f"{f'{name}:':<10}{link}", flush=True)


def _end(server: subprocess.Popen[bytes]) -> None:
    # The server has processes of its own.
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(10)


def ui(options: argparse.Namespace) -> None:
    """Print links to runs and model; serve them from the embedded store until Ctrl-C, or name those of the server.

    Raises:
        WeightsError: the workspace has no runs.
        ServiceError: the store cannot be opened, or MLflow does not start.
    """
    use_registry(options.workspace)
    uri, model = tracking_uri(), options.params.evaluate.model_name
    with tracker("asking for the experiment") as client:
        experiment = experiment_id(client)
    if uri.startswith("http"):
        _print_links(without_password(uri).rstrip("/"), experiment, model)
        return
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    # In the environment: a command line, which may hold a password, is visible to other users.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    # SIGINT is ignored in what a shell starts in the background.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="mlflow-ui-") as scratch:
        log = Path(scratch) / "log"
        with log.open("wb") as lines:
            server = subprocess.Popen(command, env=environment, stdout=lines, stderr=lines, start_new_session=True)
        try:
            _wait_until_it_answers(server, address, log)
            _print_links(address, experiment, model)
            print("Ctrl-C ends it", flush=True)
            server.wait()
        except KeyboardInterrupt:
            return
        finally:
            _end(server)
    raise ServiceError("MLflow's server ended: start it again")
