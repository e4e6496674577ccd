"""A workspace in which a real run has finished, and processes that see it through a sandbox of their own."""

import multiprocessing
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import yaml
from boto3.session import Session

from components.config import load_params, plain
from tests.conftest import KEYS, free_ports
from tests.servers import answers, wait_for
from tests.system.conftest import ROOT, TINY

_PRELOADED = (
    "tests.system.faults.cells", "components.ingest.expectations", "pipelines.local.command", "pipelines.verification",
    "pipelines.models", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.db.utils", "mlflow.tracing.export", "alembic.command", "alembic.ddl.sqlite", "matplotlib.figure",
    "matplotlib.backends.backend_svg", "pyarrow.parquet", "pyarrow.dataset", "scipy.stats", "networkx", "rich.console",
    "torch.utils.serialization", "dvc.cli", "dvc.commands.checkout", "dvc.commands.add", "dvc.render",
    "PIL.PngImagePlugin",
)  # fmt: skip
"""Imported once; all processes of the tests are forked from one that has them."""
_FOREIGN = ("MLFLOW_", "BEBYGAN_PARENT", "BEBYGAN_FAILURE", "BEBYGAN_WATCHER", "KFP_", "AWS_")
_PHOTOGRAPHS = 12
_FASTEST: dict[str, Any] = {
    "ingest": {"minimum_side": 64, "quarantine_tolerance": 0.3},
    "warmup": {
        "generator": {"blocks": 1, "features": 4, "growth": 2}, "weights": None, "iterations": 1, "batch": 2,
        "crop": 48, "log_every": 1, "checkpoint_every": 1, "validate_every": 0, "picture_every": 0,
    },
    "train": {
        "losses": {"best_buddy": 1.0, "back_projection": 0.0, "perceptual": 0.0, "adversarial": 0.0},
        "validate_every": 0, "picture_every": 0, "deliver": {"by": "last"},
    },
}  # fmt: skip


def _laid_over(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    for name, value in changes.items():
        inner = isinstance(value, dict) and isinstance(values.get(name), dict) and name != "thresholds"
        values[name] = _laid_over(values[name], value) if inner else value
    return values


def _sent(connection: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        connection.send((True, work(*arguments)))
    except BaseException:  # noqa: BLE001 - reported by the test
        connection.send((False, traceback.format_exc()))


class Outside:
    """Runs functions in processes that are forked from one with all imports."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))

    def __call__(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns; fail with its traceback."""
        here, there = self._context.Pipe()
        process = self._context.Process(target=_sent, args=(there, work, arguments))
        process.start()
        there.close()
        try:
            good, found = here.recv()
        except EOFError:
            good, found = False, "the process ended early"
        process.join()
        assert good, found
        return found


@pytest.fixture(scope="session")
def outside() -> Outside:
    """See `Outside`. The process that is forked gets an environment of its own; that of other tests stays."""
    made = Outside()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
            patch.delenv(name)
        # Before the forks: a library of threads that has begun to work does not survive a fork.
        for name, value in {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "DVC_NO_ANALYTICS": "1"}.items():
            patch.setenv(name, value)
        made(_environment)
    return made


def _environment() -> dict[str, str]:
    return dict(os.environ)


def _older(folder: Path) -> None:
    from tests.system.faults import things

    os.chdir(folder)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = scratch
        things.prepare()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, outside: Outside, picture: Any) -> Path:
    """A folder with photographs, parameters, the workspace of a finished run, and what older runs left."""
    folder = tmp_path_factory.mktemp("world")
    values = plain(load_params(ROOT / "params/compact.yaml"))
    (folder / "params.yaml").write_text(yaml.safe_dump(_laid_over(_laid_over(values, TINY), _FASTEST)))
    (folder / "photographs").mkdir()
    for number in range(_PHOTOGRAPHS):
        picture(number).save(folder / "photographs" / f"{number:02}.png")
    command = [sys.executable, "-m", "pipelines.cli", "run", "--source", "photographs", "--params", "params.yaml"]
    environment = outside(_environment) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    outside(_older, folder)
    return folder


@pytest.fixture(scope="session")
def known(world: Path, outside: Outside) -> Callable[[str], Any]:
    """What each undamaged thing is."""
    found: dict[str, Any] = {}

    def ask(column: str) -> Any:
        if column not in found:
            found[column] = outside(_measured, world, column)
        return found[column]

    return ask


def _measured(folder: Path, column: str) -> Any:
    from tests.system.faults.cells import COLUMNS, Sandbox, measure

    return measure(Sandbox(folder), COLUMNS[column])


@pytest.fixture(scope="session")
def servers(
    world: Path, outside: Outside, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Starts SeaweedFS with the photographs, and MLflow's server with a copy of the database, when they are needed."""
    with ExitStack() as started:

        @cache
        def start() -> dict[str, str]:
            endpoint, folder = request.getfixturevalue("s3_endpoint"), tmp_path_factory.mktemp("tracker")
            client = Session().client(
                "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            )  # fmt: skip
            client.create_bucket(Bucket="faults")
            for path in (world / "photographs").iterdir():
                client.upload_file(str(path), "faults", f"photographs/{path.name}")
            shutil.copy(world / "workspace/mlflow.db", folder)
            port = free_ports(1)[0]
            command = [
                sys.executable, "-m", "mlflow", "server", f"--backend-store-uri=sqlite:///{folder}/mlflow.db",
                "--host=127.0.0.1", f"--port={port}", "--workers=1",
            ]  # fmt: skip
            log = started.enter_context((folder / "log").open("w"))
            environment = outside(_environment) | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            server = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            started.callback(server.wait)
            started.callback(os.killpg, server.pid, signal.SIGKILL)
            address = f"http://127.0.0.1:{port}"
            wait_for(lambda: answers(f"{address}/health"), server, folder / "log")
            region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
            return {**KEYS, **region, "AWS_ENDPOINT_URL": endpoint, "TRACKER_OF_FAULTS": address}

        yield start


@pytest.fixture
def end_of(world: Path, outside: Outside, known: Callable[[str], Any], servers: Any) -> Callable[[str, str], str]:
    """Returns how a cell ends."""

    def run(row: str, column: str) -> str:
        seed = secrets.randbelow(2**32)
        try:
            there = servers() if row in ("network cut", "server dies") else {}
            return str(outside(_ended, there, world, row, column, known(column), seed))
        except AssertionError as error:
            pytest.fail(f"{row}, {column}, seed {seed}: {error}", pytrace=False)

    return run


def _ended(servers: dict[str, str], *arguments: Any) -> str:
    from tests.system.faults.cells import run_cell

    return run_cell(*arguments, servers=servers)
