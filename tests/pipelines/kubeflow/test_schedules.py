"""Schedules applied to a stand-in server through kfp's real client."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bebygan.errors import ConfigError, ServiceError
from pipelines.kubeflow.requests import CompiledPipeline, DeclaredSchedule
from pipelines.kubeflow.schedules import Action, apply, forecast, pause, resume
from tests.standins.kubeflow import ALIVE, Standin, connect


@pytest.fixture
def server(kubeflow_server: Standin) -> Standin:
    # Deleting a recurring run kills its runs, so only our own code protects them.
    kubeflow_server.honours_orphan = False
    return kubeflow_server


@pytest.fixture
def wanted(daily: DeclaredSchedule) -> Callable[..., DeclaredSchedule]:
    return lambda name, **changes: replace(daily, name=name, **changes)


def state(server: Standin) -> dict[str, list[tuple[str, str]]]:
    """Triggers and modes by name: what a clean apply determines."""
    return {
        name: sorted((each["trigger"].get("cron_schedule", {}).get("cron", ""), each["mode"]) for each in found)
        for name, found in server.schedules().items()
    }


def declared(schedules: Sequence[DeclaredSchedule]) -> dict[str, list[tuple[str, str]]]:
    return {each.name: [(each.cron or "", "DISABLE" if each.paused else "ENABLE")] for each in schedules}


def test_declared_schedules_are_created_and_enabled(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    schedules = [wanted("daily"), wanted("often", cron=None, interval=900), wanted("later", paused=True)]
    assert apply(connect(), "us", schedules) == []
    assert state(server) == declared(schedules)
    [often] = server.schedules()["often"]
    assert often["trigger"] == {"periodic_schedule": {"interval_second": "900"}}
    assert (often["no_catchup"], often["max_concurrency"], often["service_account"]) == (True, "1", "somebody")
    assert often["runtime_config"] == {"parameters": {"name": "Ada"}}
    assert len(server.tables["pipeline_versions"]) == 1


def test_applying_twice_changes_nothing(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    schedules = [wanted("daily"), wanted("later", paused=True)]
    apply(connect(), "us", schedules)
    before = {name: dict(rows) for name, rows in server.tables.items()}
    server.requests.clear()
    told: list[Action] = []
    apply(connect(), "us", schedules, report=told.append)
    assert told == []
    assert {name: dict(rows) for name, rows in server.tables.items()} == before
    assert not [request for request in server.requests if not request.startswith("GET")]


def test_a_hundred_unchanged_schedules_cost_two_requests_in_all(
    server: Standin, wanted: Callable[..., DeclaredSchedule]
) -> None:
    schedules = [wanted(f"schedule-{number}") for number in range(100)]
    apply(connect(), "us", schedules)
    server.requests.clear()
    apply(connect(), "us", schedules)
    assert server.requests == ["GET /apis/v2beta1/healthz", "GET /apis/v2beta1/recurringruns"]


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "0 0 3 * * *"},
        {"cron": None, "interval": 60},
        {"parameters": {"name": "Bob"}},
        {"concurrency": 2},
        {"catchup": True},
        {"experiment": "others"},
        {"service_account": "others"},
        {"pipeline": "another"},
    ],
)
def test_a_schedule_is_replaced_if_any_of_its_fields_changes(
    server: Standin,
    wanted: Callable[..., DeclaredSchedule],
    greeting_pipeline: CompiledPipeline,
    change: dict[str, Any],
) -> None:
    apply(connect(), "us", [wanted("daily")])
    [old] = server.schedules()["daily"]
    if "pipeline" in change:
        change = {"pipeline": CompiledPipeline("greeting", greeting_pipeline.content + b"# newer\n")}
    apply(connect(), "us", [wanted("daily", **change)])
    [new] = server.schedules()["daily"]
    assert new["recurring_run_id"] != old["recurring_run_id"]
    assert new["mode"] == "ENABLE"
    assert len(server.tables["pipeline_versions"]) == (2 if "pipeline" in change else 1)


def test_pausing_in_the_file_only_disables_the_recurring_run(
    server: Standin, wanted: Callable[..., DeclaredSchedule]
) -> None:
    apply(connect(), "us", [wanted("daily")])
    [old] = server.schedules()["daily"]
    apply(connect(), "us", [wanted("daily", paused=True)])
    [paused] = server.schedules()["daily"]
    assert (paused["recurring_run_id"], paused["mode"]) == (old["recurring_run_id"], "DISABLE")
    apply(connect(), "us", [wanted("daily")])
    assert server.schedules()["daily"][0]["mode"] == "ENABLE"


def test_a_schedule_with_an_active_run_is_disabled_and_deleted_later(
    server: Standin, wanted: Callable[..., DeclaredSchedule]
) -> None:
    apply(connect(), "us", [wanted("daily"), wanted("gone")])
    runs = server.tick()
    assert apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *")]) == ["daily", "gone"]
    assert state(server) == {
        "daily": [("0 0 2 * * *", "DISABLE"), ("0 0 3 * * *", "ENABLE")],
        "gone": [("0 0 2 * * *", "DISABLE")],
    }
    assert apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *")]) == ["daily", "gone"]
    for run in runs:
        server.finish(run)
    assert apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *")]) == []
    assert state(server) == {"daily": [("0 0 3 * * *", "ENABLE")]}
    assert server.killed == []


def test_an_old_recurring_run_is_reused_if_its_schedule_is_declared_again(
    server: Standin, wanted: Callable[..., DeclaredSchedule]
) -> None:
    apply(connect(), "us", [wanted("daily")])
    [old] = server.schedules()["daily"]
    server.tick()
    apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *")])
    apply(connect(), "us", [wanted("daily")])
    [again] = server.schedules()["daily"]
    assert (again["recurring_run_id"], again["mode"]) == (old["recurring_run_id"], "ENABLE")


def test_schedules_of_other_owners_are_not_changed(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    apply(connect(), "them", [wanted("daily")])
    connected = connect()
    by_hand = connected.create_recurring_run(wanted("daily", cron="0 0 1 * * *"), "made in the browser")
    connected.change("enable", by_hand)
    apply(connect(), "us", [])
    assert state(server) == {"daily": [("0 0 1 * * *", "ENABLE"), ("0 0 2 * * *", "ENABLE")]}


def test_the_forecast_is_what_apply_then_does(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    apply(connect(), "us", [wanted("daily"), wanted("gone"), wanted("busy")])
    server.tables["recurring_runs"][server.schedules()["daily"][0]["recurring_run_id"]]["mode"] = "DISABLE"
    server.tables["recurring_runs"][server.schedules()["gone"][0]["recurring_run_id"]]["mode"] = "DISABLE"
    server.tick()
    schedules = [wanted("daily"), wanted("busy", cron="0 0 3 * * *"), wanted("new")]
    expected = forecast(connect(), "us", schedules)
    writing = [request for request in server.requests if not request.startswith("GET")]
    done: list[Action] = []
    assert apply(connect(), "us", schedules, report=done.append) == ["busy"]
    assert sorted((action.kind, action.name) for action in done) == sorted(
        (action.kind, action.name) for action in expected
    )
    assert ("enable", "daily") in [(action.kind, action.name) for action in done]
    assert writing == [request for request in server.requests if not request.startswith("GET")][: len(writing)]


def test_a_schedule_paused_by_hand_stays_paused_until_it_is_resumed_by_hand(
    server: Standin, wanted: Callable[..., DeclaredSchedule]
) -> None:
    other = wanted("other")
    apply(connect(), "us", [wanted("daily"), other])
    pause(connect(), "us", "daily")
    assert {mode for _, mode in state(server)["daily"]} == {"DISABLE"}
    assert state(server)["other"] == [("0 0 2 * * *", "ENABLE")]
    apply(connect(), "us", [wanted("daily"), other])
    assert state(server)["daily"] == [("0 0 2 * * *", "DISABLE")]
    apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *"), other])
    assert state(server)["daily"] == [("0 0 3 * * *", "DISABLE")]
    resume(connect(), "us", "daily")
    assert state(server)["daily"] == [("0 0 3 * * *", "ENABLE")]
    apply(connect(), "us", [wanted("daily", cron="0 0 3 * * *"), other])
    assert state(server) == {"daily": [("0 0 3 * * *", "ENABLE")], "other": [("0 0 2 * * *", "ENABLE")]}


def test_pausing_and_resuming_restores_a_schedule(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    apply(connect(), "us", [wanted("daily")])
    server.tick()
    pause(connect(), "us", "daily")
    pause(connect(), "us", "daily")
    resume(connect(), "us", "daily")
    assert state(server) == {"daily": [("0 0 2 * * *", "ENABLE")]}
    with pytest.raises(ConfigError, match="is not paused by hand"):
        resume(connect(), "us", "daily")
    with pytest.raises(ConfigError, match="us has no schedule dialy on the server; it has daily"):
        pause(connect(), "us", "dialy")
    assert server.killed == []


@pytest.mark.parametrize("before", [True, False], ids=["before it did it", "after it did it"])
def test_pausing_and_resuming_can_be_repeated_after_the_server_died(
    server: Standin, wanted: Callable[..., DeclaredSchedule], before: bool
) -> None:
    apply(connect(), "us", [wanted("daily")])
    for change, mode in ((pause, "DISABLE"), (resume, "ENABLE")):
        died = 0
        while True:
            connected = connect()
            server.requests.clear()
            server.dies_at, server.dies_before = died + 1, before
            try:
                change(connected, "us", "daily")
            except ServiceError:
                server.dies_at = None
                died += 1
            except ConfigError:
                # Resumed by the request that got no answer.
                break
            else:
                break
            assert died < 20
        server.dies_at = None
        apply(connect(), "us", [wanted("daily")])
        assert state(server) == {"daily": [("0 0 2 * * *", mode)]}


@pytest.mark.parametrize("before", [True, False], ids=["before it did it", "after it did it"])
def test_the_next_apply_completes_one_during_which_the_server_died(
    server: Standin, wanted: Callable[..., DeclaredSchedule], before: bool
) -> None:
    """At each request in turn, of an apply that makes, replaces, pauses and removes, with a run alive."""
    first = [wanted("replaced"), wanted("gone"), wanted("paused"), wanted("busy")]
    second = [
        wanted("replaced", cron="0 0 3 * * *"),
        wanted("paused", paused=True),
        wanted("busy", cron="0 0 3 * * *"),
        wanted("new", experiment="others"),
    ]
    died = 0
    while True:
        server.dies_at = None
        for table in server.tables.values():
            table.clear()
        apply(connect(), "us", first)
        [run] = [run for run in server.tick() if server.tables["runs"][run]["display_name"] == "busy"]
        for each in server.runs():
            if each["run_id"] != run:
                server.finish(each["run_id"])
        connected = connect()
        server.requests.clear()
        server.dies_at, server.dies_before = died + 1, before
        try:
            apply(connected, "us", second)
        except ServiceError as error:
            assert "check that it runs" in str(error)  # noqa: PT017
        else:
            break
        died += 1
        server.dies_at = None
        assert apply(connect(), "us", second) == ["busy"]
        assert state(server) == declared(second) | {"busy": [("0 0 2 * * *", "DISABLE"), ("0 0 3 * * *", "ENABLE")]}
        assert server.tables["runs"][run]["state"] in ALIVE
    assert died >= 15
    assert server.killed == []


def test_two_concurrent_applies_create_no_duplicates(server: Standin, wanted: Callable[..., DeclaredSchedule]) -> None:
    """All requests fall into one second, so that the server cannot sort them by time."""
    schedules = [wanted("daily"), wanted("new")]
    for change in range(10):
        schedules = [wanted("daily", parameters={"name": f"{change}"}), wanted(f"new-{change}")]
        together = threading.Barrier(2)
        met = set()

        def meet(request: str, together: threading.Barrier = together, met: set[int] = met) -> None:
            # Each has looked, and neither has made anything yet.
            if request == "POST /apis/v2beta1/recurringruns" and len(met) < 2:
                met.add(threading.get_ident())
                together.wait(timeout=20)

        server.before = meet
        failed: list[BaseException] = []

        def one(schedules: list[DeclaredSchedule] = schedules, failed: list[BaseException] = failed) -> None:
            try:
                apply(connect(), "us", schedules)
            except BaseException as error:  # noqa: BLE001 - told by the thread that waits
                failed.append(error)

        people = [threading.Thread(target=one) for _ in range(2)]
        for person in people:
            person.start()
        for person in people:
            person.join()
        assert failed == []
        # Both made both.
        assert server.requests.count("POST /apis/v2beta1/recurringruns") == 4 * (change + 1)
        assert state(server) == declared(schedules)


NAMES = ("a", "b", "c")
FILES = st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(0, 2), st.booleans()))
STEPS = st.lists(st.tuples(FILES, st.booleans(), st.booleans()), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_after_any_edits_each_declared_schedule_exists_once_and_no_run_was_killed(
    server: Standin,
    wanted: Callable[..., DeclaredSchedule],
    steps: list[tuple[dict[str, tuple[int, bool]], bool, bool]],
) -> None:
    for table in server.tables.values():
        table.clear()
    for file, runs_start, runs_end in steps:
        schedules = [
            wanted(name, cron=f"0 0 {hour} * * *", paused=paused) for name, (hour, paused) in sorted(file.items())
        ]
        busy = apply(connect(), "us", schedules)
        on = {name: [entry for entry in found if entry[1] == "ENABLE"] for name, found in state(server).items()}
        assert {name: found for name, found in on.items() if found} == {
            name: found for name, found in declared(schedules).items() if found[0][1] == "ENABLE"
        }
        for name, found in state(server).items():
            kept_for_runs = [entry for entry in found if entry not in declared(schedules).get(name, [])]
            assert not kept_for_runs or name in busy
            assert len(set(found)) == len(found)
        if runs_start:
            server.tick()
        if runs_end:
            for run in server.runs(*ALIVE):
                server.finish(run["run_id"])
    assert server.killed == []
