"""The commands for a cluster, with the real pipeline and a stand-in server."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.config import load_params, to_yaml
from components.job import inputs_of
from pipelines import cli
from pipelines.kubeflow import commands, schedule_file
from pipelines.kubeflow.compilation import compiled_retrain
from pipelines.kubeflow.requests import CompiledPipeline, DeclaredSchedule
from pipelines.kubeflow.resources import Cluster
from tests.standins.kubeflow import Standin, connect, reachable

ROOT = Path(__file__).parents[3]
DIGEST = "@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def compile_once() -> Callable[[Cluster], CompiledPipeline]:
    """Compiling takes a second, and gives the same for the same cluster."""
    pipelines: dict[str, CompiledPipeline] = {}

    def once(cluster: Cluster) -> CompiledPipeline:
        key = to_yaml(cluster)
        if key not in pipelines:
            pipelines[key] = compiled_retrain(cluster)
        return pipelines[key]

    return once


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, compile_once: Callable[[Cluster], CompiledPipeline]) -> Iterator[Standin]:
    for module in (commands, schedule_file):
        monkeypatch.setattr(module, "compiled_retrain", compile_once)
    for name in [name for name in os.environ if name.startswith("BEBYGAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    with reachable(monkeypatch) as server:
        yield server


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., str]:
    """Writes a file of two schedules, with changes to either."""

    def write(often: dict[str, Any] | None = None, weekly: dict[str, Any] | None = None, **outer: Any) -> str:
        declared = [
            {"name": "often", "cron": "0 */15 * * * *", "source": "s3://photographs"},
            {"name": "weekly", "cron": "0 0 2 * * sun", "source": "s3://photographs"},
        ]
        changed = [each | change for each, change in zip(declared, (often or {}, weekly or {}), strict=True)]
        path = tmp_path / "schedules.yaml"
        path.write_text(yaml.safe_dump({"owner": "us", "cluster": "infra/cluster.yaml", "schedules": changed} | outer))
        return str(path)

    return write


def test_the_file_in_the_project_is_planned_applied_and_listed(
    server: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["schedule", "plan"]) == 0
    planned = capsys.readouterr().out
    assert "create often (bebygan-retrain, 0 */15 * * * *)\n" in planned
    assert not [request for request in server.requests if not request.startswith("GET")]
    assert cli.main(["schedule", "apply"]) == 0
    assert capsys.readouterr().out == planned
    assert planned.endswith("\nenable often\nunchanged: 0 of 2\n")
    assert cli.main(["schedule", "apply"]) == 0
    assert capsys.readouterr().out == "unchanged: 2 of 2\n"
    assert cli.main(["schedule", "list"]) == 0
    heading, often, weekly = capsys.readouterr().out.splitlines()
    assert heading.split() == ["NAME", "WHEN", "STATE", "AGE", "ID"]
    assert re.match(r"often +0 \*/15 \* \* \* \* +enabled", often)
    assert re.match(r"weekly +0 0 2 \* \* sun +disabled", weekly)


def test_every_schedule_and_submit_start_the_same_version_with_the_parameters_of_the_file(
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["schedule", "apply", "--file", file()])
    capsys.readouterr()
    _, submitted_run, _ = submitted(capsys)
    started = [each for [each] in server.schedules().values()] + [server.tables["runs"][submitted_run]]
    assert len(server.tables["pipeline_versions"]) == 1
    assert {each["service_account"] for each in started} == {"bebygan-retrain"}
    for each in started:
        assert inputs_of(load_params()).items() <= each["runtime_config"]["parameters"].items()


@pytest.mark.parametrize("name", ["often", "detect"])
def test_the_recurring_run_of_a_change_detector_that_an_older_version_applied_is_removed(
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str], daily: DeclaredSchedule, name: str
) -> None:
    """Whether or not the schedule keeps its name: the detector was another pipeline."""
    connected = connect()
    detector = replace(
        daily,
        name=name,
        pipeline=replace(daily.pipeline, name="bebygan-detect"),
        experiment="bebygan",
        service_account="bebygan-detect",
    )
    old = connected.create_recurring_run(detector, f"bebygan schedule us/{name} {'0' * 64}")
    connected.change("enable", old)
    assert cli.main(["schedule", "apply", "--file", file()]) == 0
    assert f"delete {name} " in capsys.readouterr().out
    assert set(server.schedules()) == {"often", "weekly"}
    assert old not in server.tables["recurring_runs"]
    [enabled] = server.schedules()["often"]
    assert (enabled["mode"], enabled["service_account"]) == ("ENABLE", "bebygan-retrain")


def test_a_plan_names_what_changed_and_apply_does_it(
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["schedule", "apply", "--file", file()])
    [first, _] = server.tick()
    server.finish(first)
    capsys.readouterr()
    changed = file(often={"every": "1 h", "cron": None}, weekly={"set": ["train.seed=7"]})
    assert cli.main(["schedule", "plan", "--file", changed]) == 0
    steps = [
        "create often (0 */15 * * * * -> every 3600 s)", "create weekly (train.seed 1 -> 7)",
        "disable often (replaced)", "enable often", "disable weekly (replaced)", "enable weekly",
        "delete often (replaced)", "unchanged: 0 of 2",
    ]  # fmt: skip
    assert capsys.readouterr().out.splitlines() == steps
    assert cli.main(["schedule", "apply", "--file", changed]) == 0
    waiting = "old versions still have active runs, a later apply removes them: weekly"
    assert capsys.readouterr().out.splitlines() == [*steps, waiting]
    server.finish(server.runs("PENDING")[0]["run_id"])
    assert cli.main(["schedule", "plan", "--file", file(schedules=[])]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "disable often (no longer declared)", "disable weekly (no longer declared)",
        "delete often (no longer declared)", "delete weekly (no longer declared)",
        "delete weekly (no longer declared)", "unchanged: 0 of 0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"weekly": {"cron": "0 0 25 * * *"}}, "schedule weekly: parameter cron: hour: '25' is not within 0-23"),
        ({"weekly": {"set": ["train.sead=7"]}}, "schedule weekly: there is no parameter train.sead; did you mean"),
        ({"weekly": {"set": ["train.seed=x"]}}, "schedule weekly: parameter train.seed"),
        ({"weekly": {"params": "params/nowhere.yaml"}}, "schedule weekly: cannot read the parameters"),
        (
            {"weekly": {"pipeline": "detect"}},
            "schedule weekly: remove the line `pipeline: detect`: every",
        ),
        ({"weekly": {"name": "often"}}, "schedule often: two schedules have this name"),
        ({"weekly": {"cluster": "infra/nowhere.yaml"}}, "schedule weekly: cannot read the cluster's settings"),
        ({"require_digests": True}, "schedule often: infra/cluster.yaml names an image without a digest"),
    ],
)
def test_invalid_schedules_are_rejected_before_any_request(
    server: Standin,
    file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    told: str,
) -> None:
    assert cli.main(["schedule", "apply", "--file", file(**changes)]) == 2
    assert told in capsys.readouterr().err
    assert server.requests == []


def test_images_with_digests_are_accepted_where_digests_are_required(
    server: Standin, file: Callable[..., str], tmp_path: Path
) -> None:
    cluster = tmp_path / "cluster.yaml"
    text = (ROOT / "infra" / "cluster.yaml").read_text()
    cluster.write_text(text.replace(":latest", f":1{DIGEST}"))
    assert cli.main(["schedule", "apply", "--file", file(require_digests=True, cluster=str(cluster))]) == 0
    assert len(server.schedules()) == 2


def test_a_server_that_dies_during_apply_is_reported_and_a_second_apply_completes_the_first(
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    server.dies_at = 8
    assert cli.main(["schedule", "apply", "--file", file()]) == 4
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    server.dies_at = None
    assert cli.main(["schedule", "apply", "--file", file()]) == 0
    assert [each["mode"] for found in server.schedules().values() for each in found] == ["ENABLE", "ENABLE"]


def test_a_schedule_is_paused_and_resumed_by_its_name(
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = file()
    cli.main(["schedule", "apply", "--file", path])
    assert cli.main(["schedule", "pause", "weekly", "--file", path]) == 0
    cli.main(["schedule", "apply", "--file", path])
    capsys.readouterr()
    cli.main(["schedule", "list", "--file", path])
    assert "paused by hand" in capsys.readouterr().out
    assert server.schedules()["weekly"][0]["mode"] == "DISABLE"
    assert cli.main(["schedule", "resume", "weekly", "--file", path]) == 0
    assert server.schedules()["weekly"][0]["mode"] == "ENABLE"
    assert cli.main(["schedule", "resume", "weekly", "--file", path]) == 2


def submitted(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    """Submit a run; return the exit code, the run's id and the messages."""
    code = cli.main(["submit", "--source", "s3://photographs", *options])
    told = capsys.readouterr()
    return code, told.out.strip(), told.err


def test_a_run_is_submitted_with_its_parameters(server: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    code, run, told = submitted(capsys, "--set", "train.seed=7", "--force", "--reason", "to try it")
    assert code == 0
    assert f"{server.url}/#/runs/details/{run}" in told
    parameters = server.tables["runs"][run]["runtime_config"]["parameters"]
    assert parameters["force"] == "always"
    assert parameters["reason"] == "to try it"
    assert yaml.safe_load(parameters["params"])["train"]["seed"] == 7
    code, again, _ = submitted(capsys, "--set", "train.seed=8")
    assert (code, again != run) == (0, True)
    # Parameters are inputs: they make no new version.
    assert len(server.tables["pipeline_versions"]) == 1


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--source=gs://photographs", "--source: gs://photographs is neither a folder nor s3://bucket/prefix"),
        ("--source=s3:/photographs", "--source: s3:/photographs is neither a folder nor s3://bucket/prefix"),
        ("--source=", "--source is empty"),
        ("--remote=s3://", "--remote: s3:// is neither"),
        ("--ledger=https://ledger", "--ledger: https://ledger is neither"),
        ("--checkpoints=gs://checkpoints", "--checkpoints: gs://checkpoints is neither"),
        ("--source=s3://b/f\u00f6tos", "--source: 's3://b/f\u00f6tos' must be at most 255 printable ASCII characters"),
        (
            "--reason=gr\u00fc\u00dfe \U0001f600",
            "--reason: 'gr\u00fc\u00dfe \U0001f600' must be at most 255 printable ASCII",
        ),
        ("--reason=one\ntwo", r"--reason: 'one\ntwo' must be"),
        (f"--reason={'x' * 256}", "--reason: 'xxx"),
        ("--experiment=\u00e9", "--experiment: '\u00e9' must be"),
    ],
)
def test_inputs_that_kubeflow_cannot_store_or_open_are_rejected_before_any_request(
    server: Standin, capsys: pytest.CaptureFixture[str], option: str, told: str
) -> None:
    code, _, error = submitted(capsys, option)
    assert (code, error.count("\n"), server.requests) == (2, 1, [])
    assert error.startswith(f"error: {told}")
