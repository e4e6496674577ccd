"""Starting a retraining, against a stand-in server."""

import threading
from collections.abc import Iterator

import pytest
from kfp import compiler, dsl

from bebygan.errors import ServiceError
from components.start.kubeflow_client import connect
from components.start.step import PIPELINE, start
from tests.standins.kubeflow import ALIVE, Standin, reachable

INPUTS = {"source": "s3://photographs", "train_params": "seed: 1\n"}


@dsl.component(base_image="example:1", install_kfp_package=False)
def train(source: str) -> str:
    return source


@dsl.pipeline(name=PIPELINE)
def retrain(source: str, train_params: str, reason: str = "", force: str = "auto") -> None:
    train(source=source)
    train(source=train_params)
    train(source=reason)
    train(source=force)


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    path = tmp_path_factory.mktemp("package") / "retrain.yaml"
    compiler.Compiler().compile(retrain, str(path))
    with reachable(monkeypatch) as server:
        connected = connect()
        for version in ("older", "newer"):
            connected.version(connected.pipeline(PIPELINE), version, path)
            server.now += 1
        server.requests.clear()
        yield server


def begin(inputs: dict[str, str] = INPUTS, version: str = "") -> str:
    return start(inputs, experiment="tests", version=version, service_account="trainer", reason="new photographs")


def version_of(server: Standin, run: str) -> str:
    reference = server.tables["runs"][run]["pipeline_version_reference"]
    return str(server.tables["pipeline_versions"][reference["pipeline_version_id"]]["display_name"])


def test_the_newest_version_is_started_or_the_one_that_is_named(server: Standin) -> None:
    first = begin()
    assert version_of(server, first) == "newer"
    server.finish(first)
    assert version_of(server, begin(version="older")) == "older"


def test_a_run_is_told_its_inputs_and_the_reason(server: Standin) -> None:
    run = server.tables["runs"][begin()]
    assert run["runtime_config"]["parameters"] == {**INPUTS, "reason": "new photographs"}
    assert (run["service_account"], run["description"]) == ("trainer", "new photographs")


def test_nothing_is_started_while_a_run_of_the_same_inputs_is_alive(
    server: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    first = begin()
    assert begin() == first
    server.tables["runs"][first]["state"] = "RUNNING"
    assert begin() == first
    assert len(server.runs()) == 1
    assert "has not ended" in capsys.readouterr().err
    server.finish(first, "FAILED")
    assert begin() != first


def test_runs_of_other_inputs_or_of_other_pipelines_do_not_count(server: Standin) -> None:
    first = begin()
    assert begin({**INPUTS, "train_params": "seed: 2\n"}) != first
    server.tables["runs"][first]["pipeline_version_reference"]["pipeline_id"] = "another"
    assert begin() != first


@pytest.mark.parametrize("_", range(5))
def test_two_who_start_at_once_end_with_one_run(server: Standin, _: int) -> None:
    """Within one second, in which the server cannot tell the older from the younger."""
    together = threading.Barrier(2)
    met: set[int] = set()

    def meet(request: str) -> None:
        if request == "POST /apis/v2beta1/runs" and len(met) < 2:
            met.add(threading.get_ident())
            together.wait(timeout=20)

    server.before = meet
    told: list[str] = []
    people = [threading.Thread(target=lambda: told.append(begin())) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert len(server.runs()) == 2
    [alive] = server.runs(*ALIVE)
    assert alive["run_id"] in told


def test_a_pipeline_or_version_that_is_not_there_is_told(server: Standin) -> None:
    with pytest.raises(ServiceError, match=r"in version newest.*bebygan schedule apply"):
        begin(version="newest")
    server.tables["pipelines"].clear()
    with pytest.raises(ServiceError, match="has no pipeline bebygan-retrain: upload it"):
        begin()
    assert server.runs() == []
