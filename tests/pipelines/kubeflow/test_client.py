"""The real generated client against a stand-in that is as strict as the official models."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import kfp_server_api
import pytest

from bebygan.errors import ConfigError, ServiceError
from pipelines.kubeflow import client
from pipelines.kubeflow.client import Kubeflow, Patience
from pipelines.kubeflow.requests import DeclaredSchedule
from tests.standins.kubeflow import Standin, connect, standin
from tests.standins.tls import loopback_certificate


@pytest.fixture
def server(kubeflow_server: Standin) -> Standin:
    return kubeflow_server


@pytest.fixture
def job(server: Standin, daily: DeclaredSchedule) -> DeclaredSchedule:
    """What a run and a recurring run do."""
    assert connect().host == server.url
    return daily


def test_a_recurring_run_is_created_disabled_and_can_be_enabled_disabled_and_deleted(
    server: Standin, job: DeclaredSchedule
) -> None:
    connected = connect()
    made = connected.create_recurring_run(job, "for tests")
    [found] = connected.recurring_runs()
    assert (found.id, found.name, found.enabled, found.trigger) == (made, "daily", False, "0 0 2 * * *")
    assert (found.parameters, found.description) == ({"name": "Ada"}, "for tests")
    assert server.schedules()["daily"][0]["no_catchup"] is True
    connected.change("enable", made)
    assert connected.recurring_runs()[0].enabled
    connected.change("disable", made)
    assert not connected.recurring_runs()[0].enabled
    connected.change("delete", made)
    assert connected.recurring_runs() == []


def test_a_recurring_run_can_have_an_interval(job: DeclaredSchedule) -> None:
    connect().create_recurring_run(replace(job, cron=None, interval=900), "for tests")
    [found] = connect().recurring_runs()
    assert found.trigger == "every 900 s"


def test_deleting_a_recurring_run_leaves_its_runs_alone(server: Standin, job: DeclaredSchedule) -> None:
    connected = connect()
    made = connected.create_recurring_run(job, "for tests")
    connected.change("enable", made)
    [run] = server.tick()
    connected.change("delete", made)
    assert server.killed == []
    assert connected.run(run).alive


def test_disabling_or_deleting_a_missing_recurring_run_succeeds(server: Standin) -> None:
    connect().change("disable", "0000")
    connect().change("delete", "0000")
    assert len(server.requests) == 4


def test_experiments_pipelines_and_versions_are_created_once(server: Standin, job: DeclaredSchedule) -> None:
    made = [(connected.upload(job.pipeline), connected.experiment("tests")) for connected in (connect(), connect())]
    assert made[0] == made[1]
    assert [len(server.tables[each]) for each in ("experiments", "pipelines", "pipeline_versions")] == [1, 1, 1]
    newer = replace(job.pipeline, content=job.pipeline.content + b"# newer\n")
    assert connect().upload(newer)[0] == made[0][0][0]
    assert [len(server.tables[each]) for each in ("pipelines", "pipeline_versions")] == [1, 2]


@pytest.mark.parametrize("taken", [409, 500])
def test_two_clients_that_create_the_same_object_concurrently_both_succeed(
    server: Standin, job: DeclaredSchedule, taken: int
) -> None:
    server.taken_status = taken
    together = threading.Barrier(2, timeout=10)

    def meet(request: str) -> None:
        if request.startswith("POST"):
            together.wait()

    server.before = meet
    made = []

    def make() -> None:
        connected = connect()
        made.append((connected.upload(job.pipeline), connected.experiment("tests")))

    people = [threading.Thread(target=make) for _ in range(2)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert made[0] == made[1]
    assert len(server.tables["pipeline_versions"]) == 1


def test_a_run_is_started_and_read(server: Standin, job: DeclaredSchedule) -> None:
    connected = connect()
    started = connected.create_run(job, "for tests")
    found = connected.run(started)
    assert (found.name, found.state, found.alive) == ("daily", "PENDING", True)
    assert server.tables["runs"][started]["description"] == "for tests"
    server.finish(started)
    assert not connected.run(started).alive
    assert [run.id for run in connected.runs()] == [started]


def test_active_runs_are_listed_by_the_recurring_run_that_started_them(server: Standin, job: DeclaredSchedule) -> None:
    connected = connect()
    first, second = (connected.create_recurring_run(job, "for tests") for _ in range(2))
    connected.change("enable", first)
    [run] = server.tick()
    assert [each.id for each in connected.alive_runs(first)] == [run]
    assert connected.alive_runs(second) == []


def test_every_page_is_read(server: Standin, job: DeclaredSchedule) -> None:
    connected = connect()
    recurring = connected.create_recurring_run(replace(job, concurrency=10), "for tests")
    connected.change("enable", recurring)
    [run] = server.tick()
    for _ in range(449):
        server.create_run(dict(server.tables["runs"][run]))
        server.now += 1
    found = [run.id for run in connected.runs()]
    assert len(set(found)) == len(found) == 450
    assert len(connected.alive_runs(recurring)) == 450


def test_tasks_have_states_and_errors(server: Standin, job: DeclaredSchedule) -> None:
    started = connect().create_run(job, "for tests")
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
    assert (first.name, first.state, first.error) == ("greet", "FAILED", "exit code 3")
    assert (second.name, second.state, second.error) == ("greet-2", "RUNTIME_STATE_UNSPECIFIED", "")


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (400, "correct what it names"),
        (401, "expired: renew KFP_TOKEN"),
        (403, "allow this account to do that"),
        (404, "it does not exist"),
        (409, "choose another name"),
        (429, "try again later"),
        (500, "see the log of its deployment"),
    ],
)
def test_an_error_status_becomes_one_line_with_advice(server: Standin, status: int, told: str) -> None:
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


def test_a_request_to_a_busy_server_is_repeated(server: Standin) -> None:
    connected = connect()
    server.fail(429, times=2)
    assert connected.recurring_runs() == []
    server.fail(429, times=2, request="POST")
    assert connected.experiment("tests")


def test_a_repeatable_request_is_repeated_after_a_server_error(server: Standin) -> None:
    connected = connect()
    server.fail(503, times=2)
    assert connected.recurring_runs() == []


def test_a_request_that_may_have_succeeded_is_not_repeated(server: Standin, job: DeclaredSchedule) -> None:
    connected = connect()
    server.fail(500, times=1, request="POST /apis/v2beta1/runs")
    with pytest.raises(ServiceError, match="starting daily failed"):
        connected.create_run(job, "for tests")
    assert [request for request in server.requests if request == "POST /apis/v2beta1/runs"] == [
        "POST /apis/v2beta1/runs"
    ]


def test_a_login_page_is_rejected(server: Standin) -> None:
    connected = connect()
    server.fail(200, body="<html>please log in</html>")
    with pytest.raises(ServiceError, match=r"perhaps a login page.*KFP_TOKEN"):
        connected.recurring_runs()
    server.fail(200, body="<html>please log in</html>")
    with pytest.raises(ServiceError, match="the health check failed"):
        connect()


@pytest.mark.parametrize(
    "ask",
    [
        lambda connected: connected.recurring_runs(),
        lambda connected: connected.change("delete", "0000"),
        lambda connected: connected.change("enable", "0000"),
    ],
    ids=["a question", "a deletion", "a change"],
)
def test_a_request_without_answer_fails_within_its_time_limit(
    server: Standin, ask: Callable[[Kubeflow], object]
) -> None:
    assert Patience().request <= 60
    connected = client.connect(Patience(request=2))
    server.fail(0, times=9)
    started = time.monotonic()
    with pytest.raises(ServiceError, match=r"\(no answer in time\): check that it runs and is reachable"):
        ask(connected)
    assert time.monotonic() - started < 2 + 1


@pytest.mark.parametrize("busy", [429, 503])
def test_a_request_to_a_server_that_stays_busy_fails_within_its_time_limit(server: Standin, busy: int) -> None:
    connected = client.connect(Patience(request=1, pause=0.4))
    server.fail(busy, times=9)
    started = time.monotonic()
    with pytest.raises(ServiceError, match=f"\\({busy} told to fail\\)"):
        connected.recurring_runs()
    assert time.monotonic() - started < 1 + 1


def test_a_server_that_closes_every_connection_is_reported(server: Standin) -> None:
    connected = connect()
    server.dies_at = 0
    with pytest.raises(
        ServiceError, match=r"listing the schedules failed at .* \(Remote end closed .* response\): check that it runs"
    ):
        connected.recurring_runs()


@pytest.mark.parametrize("host", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_an_unreachable_address_is_reported(
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


def test_an_untrusted_certificate_is_reported_and_its_authority_can_be_named(
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
def test_a_missing_token_or_certificate_file_is_rejected(
    monkeypatch: pytest.MonkeyPatch, server: Standin, name: str
) -> None:
    monkeypatch.setenv(name, "/nowhere/file")
    with pytest.raises(ConfigError, match=f"in /nowhere/file, which {name} names"):
        connect()
    assert server.requests == []


def test_a_server_with_several_users_requires_a_namespace(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_server_with_one_user_ignores_the_namespace(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_NAMESPACE", "ada")
    connect().experiment("tests")
    [experiment] = server.tables["experiments"].values()
    assert "namespace" not in experiment


def test_the_stand_in_rejects_what_the_official_models_reject(server: Standin, job: DeclaredSchedule) -> None:
    """Otherwise the other tests would prove nothing."""
    connected = connect()
    settings = kfp_server_api.Configuration(host=server.url)
    create = kfp_server_api.RecurringRunServiceApi(
        kfp_server_api.ApiClient(settings)
    ).recurring_run_service_create_recurring_run
    for broken in ({"max_concurrency": 1}, {"unheard_of": "1"}, {"mode": "SOMETIMES"}, {"trigger": {"cron": "x"}}):
        with pytest.raises(kfp_server_api.ApiException, match="V2beta1RecurringRun"):
            create({"display_name": "daily"} | broken)
    with pytest.raises(ServiceError, match="the input name is missing"):
        connected.create_run(replace(job, parameters={}), "for tests")
    with pytest.raises(ServiceError, match="no inputs"):
        connected.create_run(replace(job, parameters={"name": "Ada", "nmae": "Bob"}), "for tests")
