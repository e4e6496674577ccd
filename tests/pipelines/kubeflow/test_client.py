"""kfp's real client against a stand-in that is as strict as the official models."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler
from kfp_server_api import ApiException

from bebygan.errors import ConfigError, ServiceError
from pipelines.kubeflow import client as kubeflow
from pipelines.kubeflow.client import Kubeflow, connect
from tests.standins.kubeflow import Standin, greeting, reachable, standin
from tests.standins.tls import loopback_certificate


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("package") / "greeting.yaml"
    compiler.Compiler().compile(greeting, str(path))
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    with reachable(monkeypatch) as server:
        yield server


@pytest.fixture
def job(server: Standin, package: Path) -> dict[str, Any]:
    """What a run and a recurring run have in common."""
    connected = connect()
    assert connected.host == server.url
    pipeline = connected.pipeline("greeting")
    return {
        "name": "daily",
        "description": "for tests",
        "experiment_id": connected.experiment("tests"),
        "pipeline_id": pipeline,
        "version_id": connected.version(pipeline, "greeting-1", package),
        "parameters": {"name": "Ada"},
        "service_account": "somebody",
    }


TRIGGER: dict[str, Any] = {"cron": "0 0 2 * * *", "interval": None, "concurrency": 1, "catchup": False}


def test_a_recurring_run_is_made_disabled_and_can_be_enabled_disabled_and_deleted(
    server: Standin, job: dict[str, Any]
) -> None:
    connected = connect()
    made = connected.create_recurring_run(**job, **TRIGGER)
    [found] = connected.recurring_runs()
    assert (found.id, found.name, found.enabled, found.trigger) == (made, "daily", False, "0 0 2 * * *")
    assert (found.parameters, found.description) == ({"name": "Ada"}, "for tests")
    assert server.schedules()["daily"][0]["no_catchup"] is True
    connected.enable(made)
    assert connected.recurring_runs()[0].enabled
    connected.disable(made)
    assert not connected.recurring_runs()[0].enabled
    connected.delete(made)
    assert connected.recurring_runs() == []


def test_a_recurring_run_can_have_an_interval(job: dict[str, Any]) -> None:
    connect().create_recurring_run(**job, **(TRIGGER | {"cron": None, "interval": 900}))
    [found] = connect().recurring_runs()
    assert found.trigger == "every 900 s"


def test_deleting_a_recurring_run_leaves_its_runs_alone(server: Standin, job: dict[str, Any]) -> None:
    connected = connect()
    made = connected.create_recurring_run(**job, **TRIGGER)
    connected.enable(made)
    [run] = server.tick()
    connected.delete(made)
    assert server.killed == []
    assert connected.run(run).alive


def test_what_is_gone_needs_no_disabling_or_deleting(server: Standin) -> None:
    connect().disable("0000")
    connect().delete("0000")
    assert len(server.requests) == 4


def test_experiments_pipelines_and_versions_are_made_once(server: Standin, job: dict[str, Any], package: Path) -> None:
    connected = connect()
    assert connected.experiment("tests") == job["experiment_id"]
    assert connected.pipeline("greeting") == job["pipeline_id"]
    assert connected.version(job["pipeline_id"], "greeting-1", package) == job["version_id"]
    assert [len(server.tables[each]) for each in ("experiments", "pipelines", "pipeline_versions")] == [1, 1, 1]


@pytest.mark.parametrize("taken", [409, 500])
def test_somebody_who_was_quicker_is_no_error(server: Standin, package: Path, taken: int) -> None:
    server.taken_status = taken
    together = threading.Barrier(2, timeout=10)

    def meet(request: str) -> None:
        if request.startswith("POST"):
            together.wait()

    server.before = meet
    made = []

    def make() -> None:
        connected = connect()
        pipeline = connected.pipeline("greeting")
        made.append((connected.experiment("tests"), pipeline, connected.version(pipeline, "greeting-1", package)))

    people = [threading.Thread(target=make) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert made[0] == made[1]
    assert len(server.tables["pipeline_versions"]) == 1


def test_the_newest_version_is_found(server: Standin, job: dict[str, Any], package: Path) -> None:
    connected = connect()
    server.now += 1
    newer = connected.version(job["pipeline_id"], "greeting-2", package)
    assert connected.find_version(job["pipeline_id"]) == newer
    assert connected.find_version(job["pipeline_id"], "greeting-1") == job["version_id"]
    assert connected.find_version(job["pipeline_id"], "greeting-3") is None


def test_a_run_is_started_watched_and_stopped(job: dict[str, Any]) -> None:
    connected = connect()
    started = connected.create_run(**job)
    found = connected.run(started)
    assert (found.name, found.state, found.alive, found.pipeline_id) == ("daily", "PENDING", True, job["pipeline_id"])
    assert [run.id for run in connected.alive_runs()] == [started]
    connected.terminate(started)
    assert not connected.run(started).alive
    assert connected.alive_runs() == []
    assert [run.id for run in connected.runs()] == [started]


def test_runs_are_told_apart_by_the_recurring_run_that_started_them(server: Standin, job: dict[str, Any]) -> None:
    connected = connect()
    first, second = (connected.create_recurring_run(**job, **TRIGGER) for _ in range(2))
    connected.enable(first)
    [run] = server.tick()
    assert [each.id for each in connected.alive_runs(first)] == [run]
    assert connected.alive_runs(second) == []


def test_every_page_is_read(server: Standin, job: dict[str, Any]) -> None:
    connected = connect()
    for _ in range(450):
        server.create_run(
            {
                "display_name": "many",
                "experiment_id": job["experiment_id"],
                "runtime_config": {"parameters": job["parameters"]},
                "pipeline_version_reference": {
                    "pipeline_id": job["pipeline_id"],
                    "pipeline_version_id": job["version_id"],
                },
            }
        )
        server.now += 1
    found = [run.id for run in connected.runs()]
    assert len(set(found)) == len(found) == 450
    assert len(connected.alive_runs()) == 450


def test_tasks_tell_their_states_errors_and_what_follows(server: Standin, job: dict[str, Any]) -> None:
    started = connect().create_run(**job)
    server.tables["runs"][started]["run_details"] = {
        "task_details": [
            {
                "task_id": "1",
                "display_name": "greet",
                "state": "FAILED",
                "start_time": "2026-11-22T12:00:00Z",
                "child_tasks": [{"pod_name": "greeting-x-2"}],
                "error": {"message": "exit code\n 3"},
            },
            {"task_id": "2", "display_name": "greet-2"},
        ]
    }
    first, second = connect().run(started).tasks
    assert (first.name, first.state, first.alive, first.error) == ("greet", "FAILED", False, "exit code 3")
    assert (first.children, str(first.started_at)) == (("greeting-x-2",), "2026-11-22 12:00:00+00:00")
    assert (second.state, second.alive, second.children, second.started_at) == (
        "RUNTIME_STATE_UNSPECIFIED", True, (), None,
    )  # fmt: skip


def test_the_log_of_a_pod_is_read_where_there_is_one(server: Standin, job: dict[str, Any]) -> None:
    server.token = "good"
    os.environ["KFP_TOKEN"] = "good"
    try:
        started = connect().create_run(**job)
        server.logs["greeting-x-2"] = "training ...\nl\u00f6ss 0.5\n"
        assert connect().log(started, "greeting-x-2") == "training ...\nl\u00f6ss 0.5\n"
        assert connect().log(started, "elsewhere") is None
    finally:
        del os.environ["KFP_TOKEN"]


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "correct what it names"),
        (401, "expired: renew KFP_TOKEN"),
        (403, "let this account do that"),
        (404, "it is not there"),
        (409, "choose another name"),
        (429, "try again later"),
        (500, "see its log"),
    ],
)
def test_a_refusal_becomes_one_line_with_advice(server: Standin, status: int, told: str) -> None:
    connected = connect()
    server.fail(status, times=20)
    with pytest.raises(ServiceError) as caught:
        connected.experiment("tests")
    line = str(caught.value)
    assert "\n" not in line
    assert told in line
    assert server.url in line
    assert f"({status} told to fail)" in line
    assert caught.value.exit_code == 4


def test_a_busy_server_is_asked_again(server: Standin) -> None:
    connected = connect()
    server.fail(429, times=2)
    assert connected.recurring_runs() == []
    server.fail(429, times=2, request="POST")
    assert connected.experiment("tests")


def test_a_server_that_stumbles_is_asked_again_for_what_does_no_harm(server: Standin) -> None:
    connected = connect()
    server.fail(503, times=2)
    assert connected.recurring_runs() == []


def test_what_may_have_been_done_is_not_asked_for_again(server: Standin, job: dict[str, Any]) -> None:
    connected = connect()
    server.fail(500, times=1, request="POST")
    with pytest.raises(ServiceError, match="starting daily failed"):
        connected.create_run(**job)
    assert [request for request in server.requests if request == "POST /apis/v2beta1/runs"] == [
        "POST /apis/v2beta1/runs"
    ]


def test_a_login_page_is_not_taken_for_an_answer(server: Standin) -> None:
    connected = connect()
    server.fail(200, body="<html>please log in</html>")
    with pytest.raises(ServiceError, match=r"a login page perhaps.*KFP_TOKEN"):
        connected.recurring_runs()
    server.fail(200, body="<html>please log in</html>")
    with pytest.raises(ServiceError, match="asking whether it is well failed"):
        connect()


@pytest.mark.parametrize(
    "ask",
    [lambda connected: connected.recurring_runs(), lambda connected: connected.delete("0000")],
    ids=["a question", "a deletion"],
)
def test_a_server_that_never_answers_is_given_up_within_a_minute(
    server: Standin, monkeypatch: pytest.MonkeyPatch, ask: Callable[[Kubeflow], object]
) -> None:
    # urllib3 asks four times where asking again does no harm.
    assert 4 * sum(kubeflow._PATIENCE) <= 60
    assert sum(kubeflow._PATIENCE_FOR_CHANGES) <= 60
    monkeypatch.setattr(kubeflow, "_PATIENCE", (0.2, 0.2))
    monkeypatch.setattr(kubeflow, "_PATIENCE_FOR_CHANGES", (0.2, 4))
    connected = connect()
    server.fail(0, times=9)
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"\(no answer in time\): see that it runs and can be reached"):
        ask(connected)
    assert time.monotonic() - started < 10


def test_a_server_that_cuts_every_connection_is_told(server: Standin) -> None:
    connected = connect()
    server.dies_at = 0
    with pytest.raises(
        ServiceError, match=r"listing the schedules failed at .* \(Remote end closed .* response\): see that it runs"
    ):
        connected.recurring_runs()


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_an_address_where_nobody_answers_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    monkeypatch.setenv("KFP_HOST", host)
    with pytest.raises(
        ServiceError, match=r"\((Connection refused|Name or service not known|.*resolution)\)"
    ) as caught:
        connect()
    assert host in str(caught.value)
    assert "correct KFP_HOST" in str(caught.value)
    assert not caplog.records


def test_a_certificate_that_is_not_trusted_is_told_and_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, authority = loopback_certificate(tmp_path)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("KF_PIPELINES_SA_TOKEN_PATH", raising=False)
    with standin(certificate) as server:
        monkeypatch.setenv("KFP_HOST", server.url)
        with pytest.raises(ServiceError, match="its certificate is not trusted: name its authority by SSL_CERT_FILE"):
            connect()
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        assert connect().recurring_runs() == []


def test_the_token_is_read_again_for_each_request(
    server: Standin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = "first"
    file = tmp_path / "token"
    file.write_text("first")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    connected = connect()
    server.token = "second"
    with pytest.raises(ServiceError, match="401"):
        connected.recurring_runs()
    file.write_text("second")
    assert connected.recurring_runs() == []


@pytest.mark.parametrize("name", ["KF_PIPELINES_SA_TOKEN_PATH", "SSL_CERT_FILE"])
def test_a_file_that_is_named_and_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch, server: Standin, name: str
) -> None:
    monkeypatch.setenv(name, "/nowhere/file")
    with pytest.raises(ConfigError, match=f"in /nowhere/file, which {name} names"):
        connect()
    assert server.requests == []


def test_with_several_users_the_namespace_is_asked_for_and_named(
    server: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.multi_user = True
    with pytest.raises(ConfigError, match="KFP_NAMESPACE"):
        connect()
    monkeypatch.setenv("KFP_NAMESPACE", "ada")
    connected = connect()
    assert connected.namespace == "ada"
    assert connected.recurring_runs() == []
    connected.experiment("tests")
    [experiment] = server.tables["experiments"].values()
    assert experiment["namespace"] == "ada"


def test_with_one_user_a_namespace_does_no_harm(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_NAMESPACE", "ada")
    connect().experiment("tests")
    [experiment] = server.tables["experiments"].values()
    assert "namespace" not in experiment


def test_the_stand_in_refuses_what_the_models_do_not_know(job: dict[str, Any]) -> None:
    """It is worth nothing when it lets everything pass."""
    connected = connect()
    client: Any = connected._client
    for broken in ({"max_concurrency": 1}, {"unheard_of": "1"}, {"mode": "SOMETIMES"}, {"trigger": {"cron": "x"}}):
        with pytest.raises(ApiException, match="V2beta1RecurringRun"):
            client.recurring_runs.recurring_run_service_create_recurring_run({"display_name": "daily"} | broken)
    with pytest.raises(ServiceError, match="the input name is missing"):
        connected.create_run(**(job | {"parameters": {}}))
    with pytest.raises(ServiceError, match="no inputs"):
        connected.create_run(**(job | {"parameters": {"name": "Ada", "nmae": "Bob"}}))


def test_a_task_of_a_pipeline_can_connect(server: Standin) -> None:
    """There kfp leaves out a part of itself."""
    probe = "import kfp.dsl.executor_main; from pipelines.kubeflow.client import connect; print(connect().host)"
    inside = os.environ | {"_KFP_RUNTIME": "true"}
    done = subprocess.run(
        [sys.executable, "-c", probe], env=inside, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == f"{server.url}\n", done.stderr
