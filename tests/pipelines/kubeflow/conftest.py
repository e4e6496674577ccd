"""A stand-in of Kubeflow Pipelines, and a small pipeline to run on it."""

from collections.abc import Callable, Iterator

import pytest
from kfp import compiler

from pipelines.kubeflow.requests import CompiledPipeline, DeclaredSchedule, RunRequest
from tests.standins.kubeflow import Standin, connect, greeting, reachable


@pytest.fixture(scope="session")
def greeting_pipeline(tmp_path_factory: pytest.TempPathFactory) -> CompiledPipeline:
    path = tmp_path_factory.mktemp("pipeline") / "greeting.yaml"
    compiler.Compiler().compile(greeting, str(path))
    return CompiledPipeline("greeting", path.read_bytes())


@pytest.fixture
def kubeflow_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    monkeypatch.delenv("BEBYGAN_CONSOLE", raising=False)
    with reachable(monkeypatch) as server:
        yield server


@pytest.fixture
def daily(greeting_pipeline: CompiledPipeline) -> DeclaredSchedule:
    return DeclaredSchedule(
        name="daily",
        pipeline=greeting_pipeline,
        parameters={"name": "Ada"},
        experiment="tests",
        service_account="somebody",
        paused=False,
        cron="0 0 2 * * *",
        interval=None,
        concurrency=1,
        catchup=False,
    )


@pytest.fixture
def start(kubeflow_server: Standin, greeting_pipeline: CompiledPipeline) -> Callable[[], str]:
    """Start a run on the server and return its id."""
    request = RunRequest(name="greeting", pipeline=greeting_pipeline, parameters={"name": "Ada"}, experiment="tests")

    def started() -> str:
        assert kubeflow_server.url == connect().host
        return connect().create_run(request, "for tests")

    return started
