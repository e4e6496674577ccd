"""The commands that speak to a cluster, with the real pipelines, against a stand-in server."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp.compiler import Compiler

from components.config import load_params, to_yaml
from components.job import inputs_of
from pipelines import cli
from pipelines.kubeflow import runs
from pipelines.kubeflow import schedule_file as declared
from pipelines.kubeflow.client import connect
from pipelines.kubeflow.resources import Cluster
from pipelines.kubeflow.schedule_file import Package
from tests.standins.kubeflow import Standin, greeting, reachable

ROOT = Path(__file__).parents[3]
DIGEST = "@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def compile_once() -> Callable[..., Callable[[Cluster], Package]]:
    """Compiling takes a second, and gives the same for the same."""
    packages: dict[str, Package] = {}

    def wrapped(compile_: Callable[[Cluster], Package]) -> Callable[[Cluster], Package]:
        def once(cluster: Cluster) -> Package:
            key = f"{compile_.__name__}\n{to_yaml(cluster)}"
            if key not in packages:
                packages[key] = compile_(cluster)
            return packages[key]

        return once

    return wrapped


@pytest.fixture
def server(
    monkeypatch: pytest.MonkeyPatch, compile_once: Callable[..., Callable[[Cluster], Package]]
) -> Iterator[Standin]:
    retrain = compile_once(declared.retrain_package)
    monkeypatch.setattr(declared, "retrain_package", retrain)
    monkeypatch.setattr(runs, "retrain_package", retrain)
    for name in [name for name in os.environ if name.startswith("BEBYGAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(runs, "_SECONDS_BETWEEN_LOOKS", 0.05)
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
    assert "create often: bebygan-retrain, 0 */15 * * * *\n" in planned
    assert not [request for request in server.requests if not request.startswith("GET")]
    assert cli.main(["schedule", "apply"]) == 0
    assert capsys.readouterr().out == "create often\ncreate weekly\nenable often\nunchanged: 0 of 2\n"
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
    server: Standin, file: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """Whether or not the schedule keeps its name: the detector was another pipeline."""
    connected = connect()
    package = tmp_path / "detect.yaml"
    Compiler().compile(greeting, str(package))
    pipeline = connected.pipeline("bebygan-detect")
    old = connected.create_recurring_run(
        name=name,
        description=f"bebygan schedule us/{name} {'0' * 64}",
        experiment_id=connected.experiment("bebygan"),
        pipeline_id=pipeline,
        version_id=connected.version(pipeline, "bebygan-detect-0", package),
        parameters={"name": "s3://photographs"},
        cron="0 */15 * * * *",
        interval=None,
        concurrency=1,
        catchup=False,
        service_account="bebygan-detect",
    )
    connected.enable(old)
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
        "create often{}", "create weekly{}", "disable often (an old one)", "enable often",
        "disable weekly (an old one)", "enable weekly", "delete often (an old one)", "unchanged: 0 of 2",
    ]  # fmt: skip
    why = (" anew: 0 */15 * * * * -> every 3600 s", " anew: train.seed 1 -> 7")
    assert capsys.readouterr().out.splitlines() == "\n".join(steps).format(*why).splitlines()
    assert cli.main(["schedule", "apply", "--file", changed]) == 0
    goes_on = "a run of an old version goes on, a later apply removes it: weekly"
    assert capsys.readouterr().out.splitlines() == [*"\n".join(steps).format("", "").splitlines(), goes_on]
    server.finish(server.runs("PENDING")[0]["run_id"])
    assert cli.main(["schedule", "plan", "--file", file(schedules=[])]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "disable often (no longer declared)", "disable weekly (no longer declared)",
        "delete weekly (no longer declared)", "delete often (no longer declared)",
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
        ({"weekly": {"name": "often"}}, "schedule often: there are two of this name"),
        ({"weekly": {"cluster": "infra/nowhere.yaml"}}, "schedule weekly: cannot read the cluster's settings"),
        ({"require_digests": True}, "schedule often: infra/cluster.yaml names an image without a digest"),
    ],
)
def test_what_is_wrong_is_refused_before_any_request(
    server: Standin,
    file: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    told: str,
) -> None:
    assert cli.main(["schedule", "apply", "--file", file(**changes)]) == 2
    assert told in capsys.readouterr().err
    assert server.requests == []


def test_images_by_digest_are_taken_where_they_are_required(
    server: Standin, file: Callable[..., str], tmp_path: Path
) -> None:
    cluster = tmp_path / "cluster.yaml"
    text = (ROOT / "infra" / "cluster.yaml").read_text()
    cluster.write_text(text.replace(":latest", f":1{DIGEST}"))
    assert cli.main(["schedule", "apply", "--file", file(require_digests=True, cluster=str(cluster))]) == 0
    assert len(server.schedules()) == 2


def test_a_server_that_dies_amid_apply_is_told_and_a_second_apply_completes_the_first(
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


WORKFLOW = "bebygan-retrain-x7k2p"
AFTER = {
    "": ["root-driver"],
    "root-driver": ["root"],
    "root": ["root.all-driver"],
    "root.all-driver": ["root.all"],
    "root.all": ["root.all.ingest-driver", "root.all.onExit"],
    "root.all.ingest-driver": ["root.all.ingest"],
    "root.all.ingest": ["root.all.ingest.executor"],
    "root.all.ingest.executor": ["root.all.new-driver"],
    "root.all.new-driver": ["root.all.new"],
    "root.all.new": ["root.all.new.train-driver"],
    "root.all.new.train-driver": ["root.all.new.train"],
    "root.all.new.train": ["root.all.new.train.executor"],
    "root.all.new.train.executor": ["root.all.new.train.executor(0)", "root.all.new.train.executor(1)"],
    "root.all.new.train.executor(0)": [],
    "root.all.new.train.executor(1)": ["root.all.new.evaluate-driver"],
    "root.all.new.evaluate-driver": ["root.all.new.evaluate"],
    "root.all.new.evaluate": [],
    "root.all.onExit": ["root.all.onExit.notify-driver"],
    "root.all.onExit.notify-driver": ["root.all.onExit.notify"],
    "root.all.onExit.notify": ["root.all.onExit.notify.executor"],
    "root.all.onExit.notify.executor": [],
}
"""What comes after each node of Argo, as Kubeflow 2.16 told of a run: `train` is retried, `evaluate` left out."""


def node(path: str) -> str:
    return runs._node(WORKFLOW, f"{WORKFLOW}.{path}") if path else WORKFLOW


def pod(path: str, template: str = "system-container-impl-") -> str:
    """What Argo calls the pod of a node."""
    return node(path).replace(f"{WORKFLOW}-", f"{WORKFLOW}-{template}")


TRAIN = [pod(f"root.all.new.train.executor({attempt})", "retry-system-container-impl-") for attempt in (0, 1)]
INGEST, NOTIFY = pod("root.all.ingest.executor"), pod("root.all.onExit.notify.executor")


def details(state: str, error: str = "") -> dict[str, Any]:
    """The nodes of a run whose training is in a state, as the server tells of them: in no order, without their ids."""
    told = []
    for path, after in sorted(AFTER.items(), key=lambda each: node(each[0])):
        *outer, name = (path or WORKFLOW).split(".")
        task: dict[str, Any] = {
            "task_id": f"task {path}",
            "display_name": f"{outer[-1]}.onExit" if name == "onExit" else name,
            "start_time": f"2026-11-22T12:{list(AFTER).index(path):02}:00Z",
            "child_tasks": [{"pod_name": node(each)} for each in after],
        }
        if not name.startswith("evaluate"):
            task["state"] = state if name == "train" else "SUCCEEDED"
        if error and name == "train":
            task["error"] = {"message": error}
        told.append(task)
    return {"task_details": told}


def submitted(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str, str]:
    """Submit; return the exit code, the run's id and what a person was told."""
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
    assert yaml.safe_load(parameters["train_params"])["seed"] == 7
    code, again, _ = submitted(capsys, "--set", "train.seed=8")
    assert (code, again != run) == (0, True)
    # Parameters are inputs: they make no new version.
    assert len(server.tables["pipeline_versions"]) == 1


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 4), ("CANCELED", 4)])
def test_waiting_for_a_run_ends_as_the_run_does(
    server: Standin, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    looks = []

    def go_on(request: str) -> None:
        if re.match(r"GET /apis/v2beta1/runs/", request):
            looks.append(request)
            [run] = server.runs()
            run["run_details"] = details("RUNNING" if len(looks) < 3 else state, "exit code 3" if code else "")
            run["state"] = "RUNNING" if len(looks) < 3 else state

    server.before = go_on
    found, run, told = submitted(capsys, "--wait")
    assert (found, len(looks)) == (code, 3)
    assert told.count("train running\n") == 1
    assert "driver" not in told
    if code:
        assert f"error: the run {run} ended {state.lower()}" in told
        assert f"`bebygan logs {run}`" in told
    if state == "FAILED":
        assert "(train: exit code 3)" in told


def test_waiting_outlasts_a_server_that_is_away(
    server: Standin, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    def be_away(request: str) -> None:
        if request.startswith("GET /apis/v2beta1/runs/"):
            looks.append(request)
            server.dies_at = 0 if 3 < len(looks) < 12 else None
            if len(looks) == 12:
                server.finish(server.runs()[0]["run_id"])

    server.before = be_away
    code, _, _ = submitted(capsys, "--wait")
    assert (code, len(looks)) == (0, 12)
    assert [record.message.endswith("; trying on") for record in caplog.records] == [True]


def test_waiting_ends_with_the_token(
    server: Standin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_TOKEN", "ours")
    looks = []

    def expire(request: str) -> None:
        if request.startswith("GET /apis/v2beta1/runs/"):
            looks.append(request)
            server.token = "another" if len(looks) > 2 else None

    server.before = expire
    code, _, told = submitted(capsys, "--wait")
    assert (code, len(looks)) == (4, 3)
    assert re.search(r"^error: asking for the run .* \(401 .*renew KFP_TOKEN", told, re.MULTILINE)


def test_runs_are_listed_newest_first(server: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs"]) == 0
    assert capsys.readouterr().out == "there are no runs\n"
    server.now = 1_700_000_000
    _, first, _ = submitted(capsys)
    server.now += 86400
    _, second, _ = submitted(capsys)
    server.finish(first)
    assert cli.main(["runs"]) == 0
    _, newest, oldest = capsys.readouterr().out.splitlines()
    assert newest.split()[0] == second
    assert oldest.split()[0] == first
    assert "succeeded" in oldest
    cli.main(["runs", "--number", "1"])
    assert first not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("general-cpu-rnggt.root-driver", 3519902132),
        ("general-cpu-rnggt.root.workspace-name.executor(0)", 1467617326),
        ("general-cpu-rnggt.root.workspace-name.onExit.close", 4146050085),
    ],
)
def test_a_nodes_id_is_the_one_that_argo_gave_it(path: str, known: int) -> None:
    workflow = path.partition(".")[0]
    assert runs._node(workflow, path) == f"{workflow}-{known}"


def test_the_logs_of_a_runs_tasks_are_shown_in_the_order_of_their_start(
    server: Standin, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run, _ = submitted(capsys)
    server.tables["runs"][run]["run_details"] = details("FAILED", "exit code 3")
    assert cli.main(["logs", run, "--task", "train"]) == 0
    assert capsys.readouterr().out == "== train (failed): exit code 3\n"
    server.logs = {NOTIFY: "told\n", TRAIN[1]: "went on\nerror: no patches\n", INGEST: "7 photographs\n"}
    server.logs[TRAIN[0]] = "lost\n"
    shown = "== train (failed): exit code 3\nlost\nwent on\nerror: no patches\n"
    assert cli.main(["logs", run, "--task", "train"]) == 0
    assert capsys.readouterr().out == shown
    assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().out == (f"== ingest (succeeded)\n7 photographs\n{shown}== notify (succeeded)\ntold\n")
    assert not [request for request in server.requests if pod("root.all.new.train.executor") in request]
    # Older versions of Argo call the pod like the node.
    server.logs = {node("root.all.ingest.executor"): "as before\n"}
    assert cli.main(["logs", run, "--task", "ingest"]) == 0
    assert capsys.readouterr().out == "== ingest (succeeded)\nas before\n"
    assert cli.main(["logs", run, "--task", "trian"]) == 2
    assert "has no task trian; it has ingest, notify, train\n" in capsys.readouterr().err


@pytest.mark.usefixtures("server")
def test_logs_that_are_gone_are_told_with_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    _, run, _ = submitted(capsys)
    assert cli.main(["logs", run]) == 4
    assert f"kubectl logs --selector pipeline/runid={run} --container main" in capsys.readouterr().err


def test_a_reader_who_has_seen_enough_ends_the_logs_without_a_word(
    server: Standin, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, run, _ = submitted(capsys)
    server.tables["runs"][run]["run_details"] = details("SUCCEEDED")
    server.logs = {INGEST: "7 photographs\n"}
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["logs", run]) == 0
    assert capsys.readouterr().err == ""


def script(server: Standin, run: str, *steps: Callable[[dict[str, Any]], object]) -> None:
    """Let a step happen before each look at a run."""
    rest = list(steps)

    def go_on(request: str) -> None:
        if request == f"GET /apis/v2beta1/runs/{run}" and rest:
            rest.pop(0)(server.tables["runs"][run])

    server.before = go_on


def test_a_log_is_followed_line_by_line_until_the_run_ends(server: Standin, capsys: pytest.CaptureFixture[str]) -> None:
    _, run, _ = submitted(capsys)
    server.logs = {INGEST: "7 photographs\n", TRAIN[0]: "step 1\nste", NOTIFY: "told\n"}

    def one_goes_on(_: dict[str, Any]) -> None:
        server.logs[TRAIN[0]] = "step 1\nstep 2\nlost"

    def another_attempt(_: dict[str, Any]) -> None:
        # The first one's pod is gone, and with it its log.
        del server.logs[TRAIN[0]]
        server.logs[TRAIN[1]] = "step 3\n"

    def ends(told: dict[str, Any]) -> None:
        server.logs[TRAIN[1]] = "step 3\nstep 4"
        told |= {"state": "SUCCEEDED", "run_details": details("SUCCEEDED")}

    script(
        server, run,
        lambda told: told.update(state="RUNNING"),
        lambda told: told.update(run_details=details("RUNNING")),
        one_goes_on, lambda _: server.fail(503, request="/log$"), another_attempt, ends,
    )  # fmt: skip
    assert cli.main(["logs", run, "--follow"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "== ingest (succeeded)", "7 photographs",
        "== train (running)", "step 1",
        "== notify (succeeded)", "told",
        "== train (running)", "step 2", "step 3",
        "== train (succeeded)", "step 4",
    ]  # fmt: skip
    # What has ended is read once.
    assert len([request for request in server.requests if INGEST in request]) == 1


def test_help_does_not_wait_for_kubeflow(capsys: pytest.CaptureFixture[str]) -> None:
    probe = (
        "import sys; from pipelines import cli; cli._parser(); print([m for m in ('kfp', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    with pytest.raises(SystemExit):
        cli.main(["schedule", "--help"])
    assert "KFP_HOST" in capsys.readouterr().out
