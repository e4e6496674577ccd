import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest

from bebygan.errors import BebyganError, ConfigError, ServiceError, StorageError
from components.tracking.client import mlflow_client, service_errors, uploading

ROOT = Path(__file__).parents[3]
EXPERIMENT = {
    "experiment": {
        "experiment_id": "1",
        "name": "bebygan",
        "artifact_location": "mlflow-artifacts:/1",
        "lifecycle_stage": "active",
    }
}
RUN = {"run": {"info": {"run_id": "a" * 32, "artifact_uri": "mlflow-artifacts:/1/a", "status": "RUNNING"}, "data": {}}}


class Server:
    """MLflow server with configurable answers, which stores artifacts slowly."""

    def __init__(self) -> None:
        self.refusal: tuple[int, str] | None = None
        self.seconds_for_questions = 0.0
        self.seconds_for_files = 0.0
        self.stored: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                upload = self.command == "PUT"
                time.sleep(outer.seconds_for_files if upload else outer.seconds_for_questions)
                status, text = outer.refusal or (200, json.dumps(RUN if "runs" in self.path else EXPERIMENT))
                if upload and status == 200:
                    outer.stored.append(f"{self.path.rpartition('/')[2]} {len(content)}")
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text.encode())
                except OSError:
                    pass

            def do_GET(self) -> None:
                self.answer()

            do_POST = do_PUT = do_GET  # noqa: N815 - the names that http.server calls

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address.replace("//", "//me:a-secret@"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    yield server
    server.close()


def failure(call: Callable[[], object] = lambda: mlflow_client().get_experiment_by_name("bebygan")) -> BebyganError:
    with pytest.raises(BebyganError) as caught, service_errors("asking"):
        call()
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "You are not authenticated.", r"it asks for a login): set MLFLOW_TRACKING_USERNAME"),
        (403, "Permission denied", "permission is denied): ask its administrator"),
        (403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "no"}), "permission is denied): ask"),
        (200, "<html>login</html>", "check that it runs and that you have access"),
        (502, "bad gateway", "check that it runs and that you have access"),
    ],
)
def test_errors_of_the_server_say_what_to_do(server: Server, status: int, text: str, said: str) -> None:
    server.refusal = (status, text)
    error = failure()
    assert isinstance(error, ServiceError)
    assert str(error).startswith(f"asking failed at MLflow's {server.address} (")
    assert said in str(error)


def test_uploads_have_a_longer_time_limit(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow server answers an upload when it has stored the file."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    server.seconds_for_files = 2.5
    model = tmp_path / "model.bin"
    model.write_bytes(bytes(3_000_000))
    client = mlflow_client()
    assert "did not answer in time" in str(failure(lambda: client.log_artifact("a" * 32, str(model))))
    with uploading():
        with uploading():
            pass
        client.log_artifact("a" * 32, str(model))
    assert server.stored[-1] == "model.bin 3000000"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"
    server.seconds_for_questions = 2.5
    said = "(it did not answer in time): check whether it is overloaded, or raise MLFLOW_HTTP_REQUEST_TIMEOUT"
    assert said in str(failure())


class OldStore(BaseHTTPRequestHandler):
    """S3 server that does not know the checksums of newer clients."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        unknown = [name for name in self.headers if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]
        self.send_response(400 if unknown else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_mlflow_stores_files_in_an_s3_store_without_newer_checksums(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), OldStore)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (tmp_path / "note.txt").write_text("content")
    program = """
import components.tracking
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
get_artifact_repository("s3://bucket/prefix").log_artifact("note.txt")
"""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))}
    variables |= {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr


def test_uploads_keep_a_longer_limit_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
    with uploading():
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "300"


def test_an_invalid_address_raises_an_error_before_mlflow_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://me:a-secret@host")
    error = failure()
    assert isinstance(error, ConfigError)
    assert "MLFLOW_TRACKING_URI htp://host is not an address" in str(error)


def test_a_database_without_a_driver_raises_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mssql+pyodbc://me:a-secret@127.0.0.1:9/mlflow")
    error = failure()
    assert isinstance(error, ConfigError)
    assert "the driver pyodbc of MLflow's mssql+pyodbc://127.0.0.1:9/mlflow is not installed" in str(error)


def broken(store: str, how: str) -> None:
    path = Path(store.removeprefix("sqlite:///"))
    if how == "no database":
        path.write_bytes(bytes(range(256)) * 20)
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE alembic_version SET version_num = 'of another one'")
            database.commit()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("no database", "(the file is damaged or not an SQLite database): restore it from a backup"),
        ("another schema", "(the database was written by another version of MLflow): use that version, or upgrade"),
    ],
)
def test_errors_of_the_database_say_what_to_do(mlflow_store: str, how: str, said: str) -> None:
    broken(mlflow_store, how)
    error = failure()
    assert isinstance(error, ServiceError)
    assert str(error).startswith(f"opening the tracker failed at MLflow's {mlflow_store} (")
    assert said in str(error)


@pytest.mark.slow
def test_the_error_of_a_locked_database_says_what_to_do(mlflow_store: str) -> None:
    client = mlflow_client()
    # MLflow waits for 20 seconds.
    with closing(sqlite3.connect(mlflow_store.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        error = failure(lambda: client.create_experiment("new"))
    assert "(another process locks the database): wait for that process, or end it" in str(error)


@pytest.mark.usefixtures("mlflow_store")
def test_errors_about_deleted_objects_say_what_to_do() -> None:
    client = mlflow_client()
    client.delete_experiment(client.create_experiment("bebygan"))
    found = client.get_experiment_by_name("bebygan")
    assert found is not None
    error = failure(lambda: client.create_run(found.experiment_id))
    assert "(the experiment was deleted): `mlflow experiments restore` it" in str(error)
    error = failure(lambda: client.create_run("404"))
    assert "(there is no such experiment or run): it was deleted or belongs to another server" in str(error)
    error = failure(lambda: client.get_run("0" * 32))
    assert "correct MLFLOW_EXPERIMENT_ID and MLFLOW_RUN_ID" in str(error)
    error = failure(lambda: client.set_registered_model_alias("gone", "champion", "1"))
    assert "(the model or its file was deleted): restore it, or promote another version" in str(error)
    error = failure(lambda: mlflow.artifacts.download_artifacts("models:/gone/1"))
    assert "(the model or its file was deleted)" in str(error)


@pytest.mark.slow
def test_two_processes_can_open_a_new_workspace_at_the_same_time(tmp_path: Path) -> None:
    code = "from components.tracking.client import mlflow_client; print(mlflow_client().create_experiment({!r}))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code.format(f"experiment {number}")],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    answers = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert {path.name for path in (tmp_path / "workspace").iterdir()} == {"mlflow.db"}


def test_opening_a_copy_of_an_empty_database_does_not_change_it(mlflow_store: str, tmp_path: Path) -> None:
    before = shutil.copy(mlflow_store.removeprefix("sqlite:///"), tmp_path / "before.db")
    mlflow_client()
    mlflow_client()
    assert Path(before).read_bytes() == Path(mlflow_store.removeprefix("sqlite:///")).read_bytes()


def test_a_read_only_database_raises_an_error_about_the_disk_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(tmp_path / "a.db")) as database, database:
        database.execute("CREATE TABLE a (b)")
    with (
        closing(sqlite3.connect(f"file:{tmp_path}/a.db?mode=ro", uri=True)) as database,
        pytest.raises(StorageError, match="the database cannot be written, the disk is full or read-only"),
        service_errors("trying"),
    ):
        database.execute("INSERT INTO a VALUES (1)")
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR)
    assert not caplog.records
