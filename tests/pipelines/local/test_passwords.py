"""No failure of a service prints the password in its address: the real command, with servers that really fail."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipelines import cli
from tests.conftest import free_ports
from tests.servers import new_secrets, postgres, services

SAMPLE = Path(__file__).parents[3] / "data" / "sample"
LOGIN = "ann:s3cret@"


class _AsksForALogin(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(401)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Host and port of a server that answers every request with 401."""
    with HTTPServer(("127.0.0.1", 0), _AsksForALogin) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{started.server_port}"
        started.shutdown()


FAILURES = [
    ("MLFLOW_TRACKING_URI", f"http://{LOGIN}127.0.0.1:1", 4),
    ("MLFLOW_TRACKING_URI", f"http://{LOGIN}SERVER", 4),
    ("MLFLOW_TRACKING_URI", f"htp://{LOGIN}SERVER", 2),
    ("MLFLOW_TRACKING_URI", f"{LOGIN}SERVER", 2),
    ("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://{LOGIN}127.0.0.1:1/mlflow", 4),
    ("MLFLOW_TRACKING_URI", "postgresql+psycopg2://127.0.0.1:1/mlflow?user=me&password=s3cret", 4),
    ("MLFLOW_TRACKING_URI", f"postgresql://{LOGIN}127.0.0.1:port/mlflow", 2),
    ("AWS_ENDPOINT_URL", f"http://{LOGIN}127.0.0.1:1", 4),
    ("AWS_ENDPOINT_URL", f"http://{LOGIN}SERVER", 4),
    ("AWS_ENDPOINT_URL", f"{LOGIN}SERVER", 4),
    ("AWS_ENDPOINT_URL", f"http://{LOGIN}127.0.0.1:port", 4),
]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An empty folder, credentials, a tracker, and no second attempts."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("mlflow.store.db.utils.MAX_RETRY_COUNT", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return monkeypatch


@pytest.mark.parametrize("failure", FAILURES, ids=" ".join(f"{name}={value}" for name, value, _ in FAILURES).split())
def test_a_service_that_fails_is_named_without_its_password(
    failure: tuple[str, str, int], server: str, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    variable, value, code = failure
    environment.setenv(variable, value.replace("SERVER", server))
    source = "s3://photographs" if variable.startswith("AWS") else str(SAMPLE)
    params = str(SAMPLE.parents[1] / "params/compact.yaml")
    assert cli.main(["run", "--source", source, "--workspace", "w", "--params", params]) == code
    printed = "".join(capfd.readouterr())
    assert printed.startswith("error: ")
    assert "s3cret" not in printed
    assert "ann:" not in printed


def _refused(address: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a run ends at an address of PostgreSQL, within seconds and without the password."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    params = str(SAMPLE.parents[1] / "params/compact.yaml")
    started = time.monotonic()
    assert cli.main(["run", "--source", str(SAMPLE), "--workspace", "w", "--params", params]) == 4
    assert time.monotonic() - started < 30
    printed = "".join(capfd.readouterr())
    assert printed.startswith("error: opening the tracker failed at MLflow's postgresql")
    assert printed.count("\n") == 1
    assert "s3cret" not in printed
    return printed


@pytest.mark.parametrize("scheme", ["postgresql", "postgresql+psycopg2"])
def test_a_database_server_that_does_not_run_is_named_within_seconds(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    address = f"{scheme}://{LOGIN}127.0.0.1:{free_ports(1)[0]}/mlflow"
    assert "Connection refused" in _refused(address, monkeypatch, capfd)


@pytest.mark.slow
def test_a_database_server_that_refuses_the_password_is_named_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with postgres(services(new_secrets())["postgres"]) as variables:
        place = f"127.0.0.1:{variables['PGPORT']}/{variables['PGDATABASE']}"
        assert "password authentication failed" in _refused(f"postgresql://{LOGIN}{place}", monkeypatch, capfd)
