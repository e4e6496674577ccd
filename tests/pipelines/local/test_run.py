import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bebygan.errors import ConfigError, DataError, Preempted
from bebygan.files import lock
from components.tracking.client import mlflow_client
from components.tracking.runs import step_run
from pipelines import cli
from pipelines.local.run import (
    Outcome,
    _check_cache,
    _end_runs_of_killed_tasks,
    _failure_of_task,
    _log_of_this_run,
    _remove_unused,
    publish,
)


def test_two_runs_in_a_workspace_detect_each_other(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    with path.open("w") as ours:
        with path.open("w") as theirs:
            assert lock(theirs)
            assert not lock(ours)
        assert lock(ours)


def test_the_log_is_truncated_unless_another_run_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("of an earlier run\n")
    with _log_of_this_run(path) as first:
        print("first", file=first, flush=True)
        with _log_of_this_run(path) as second:
            print("second", file=second, flush=True)
        print("first again", file=first)
    assert path.read_text() == "first\nsecond\nfirst again\n"


def test_a_run_works_on_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with _log_of_this_run(tmp_path / "run.log") as log:
        assert not lock(log)


@pytest.mark.parametrize(
    ("left", "stopped", "kind", "message"),
    [
        ({"step": "train", "message": "train: no data", "exit_code": 3}, True, DataError, "train: no data"),
        ({"step": "train"}, False, Preempted, r"train was killed, perhaps .* \(SIGKILL\): run again; .* checkpoint"),
        ({"step": "train"}, True, Preempted, "stopped on request; run again to continue"),
        (None, True, Preempted, "stopped on request; run again to continue"),
        (None, False, RuntimeError, r"a step failed unexpectedly; the end of run\.log shows how"),
        ({}, False, RuntimeError, r"a step failed unexpectedly; the end of run\.log shows how"),
    ],
)
def test_the_failure_file_of_a_task_determines_the_error(
    left: dict[str, object] | None, stopped: bool, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "failure.json"
    if left is not None:
        path.write_text(json.dumps(left) if left else "")
    failure = _failure_of_task(path, Path("run.log"), stopped=stopped)
    assert type(failure) is kind
    with pytest.raises(kind, match=f"^{message}"):
        raise failure


def test_a_task_that_exceeds_its_memory_limit_raises_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text(json.dumps({"step": "train"}))
    (tmp_path / "failure.json.memory").write_text(f"{64 << 20}\n")
    failure = _failure_of_task(tmp_path / "failure.json", Path("run.log"), stopped=False)
    with pytest.raises(ConfigError, match=r"^train ran out of memory \(64 MiB\): lower its batch, crop or shards$"):
        raise failure


def test_the_runs_of_killed_tasks_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow_client()
    with step_run("retrain", {}) as parent:
        tags = {"mlflow.parentRunId": parent.run_id}
        experiment = client.get_run(parent.run_id).info.experiment_id
        runs = [client.create_run(experiment, tags=each).info.run_id for each in (tags, tags, {})]
        client.set_terminated(runs[0], "FINISHED")
        _end_runs_of_killed_tasks(parent)
    assert [client.get_run(run).info.status for run in runs] == ["FINISHED", "KILLED", "RUNNING"]


def test_ctrl_c_prints_a_message_at_once_and_stops_the_running_task(tmp_path: Path) -> None:
    program = """
import os, signal, sys, threading
from pathlib import Path
from components.progress import WATCHER
from pipelines.local.run import _environment, _stop_requests_passed_on, _watcher
with (
    _watcher(Path(sys.argv[1]), containers=False) as watcher, _environment({WATCHER: watcher}),
    _stop_requests_passed_on(lambda: print("asked", flush=True) or 1) as stopped,
):
    os.kill(os.getpid(), signal.SIGINT)
    print(stopped())
    try:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(10)
    except KeyboardInterrupt:
        print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == "asked\nTrue\ninterrupted\n", done.stderr
    assert done.stderr == "stopping: finished steps are kept, a training saves a checkpoint; run again to continue\n"


def test_a_stop_request_between_two_tasks_reaches_the_next_one() -> None:
    program = """
import os, signal, time
from pipelines.local.run import _stop_requests_passed_on
tasks, asked = [0, 1], []
def ask():
    asked.append(tasks[len(asked)])
    return asked[-1]
with _stop_requests_passed_on(ask) as stopped:
    os.kill(os.getpid(), signal.SIGTERM)
    while len(asked) < 2:
        time.sleep(0.05)
    time.sleep(1.2)
print(asked, stopped())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "[0, 1] True\n", done.stderr


def test_outputs_that_cannot_be_removed_do_not_block_the_end_of_a_run(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from components.progress import WATCHER
from pipelines.local.run import _environment, _remove_unused, _watcher
folder = Path(sys.argv[1])
(folder / "pipeline").mkdir()
(folder / "pipeline" / "foreign").touch()
with _watcher(folder, containers=False) as watcher, _environment({WATCHER: watcher}):
    _remove_unused(folder / "pipeline", ())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr.count("cannot remove outputs of an earlier run in ")) == (0, 1), done.stderr


def test_publish_replaces_the_whole_report(tmp_path: Path) -> None:
    for text in ("first", "second"):
        made = tmp_path / text
        (made / "pictures").mkdir(parents=True)
        (made / "report.html").write_text(text)
        (made / "pictures" / f"{text}.png").touch()
        page = publish(Outcome(made, made, made), tmp_path)
    assert page.read_text() == "second"
    assert [path.name for path in (tmp_path / "report" / "pictures").iterdir()] == ["second.png"]


def test_a_read_only_workspace_raises_an_error_before_the_run_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///never.db")
    (tmp_path / "file").touch()
    assert cli.main(["run", "--workspace", str(tmp_path / "file" / "workspace")]) == 6
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write {tmp_path}/file/workspace: ")
    assert said.count("\n") == 1


def test_a_copied_cache_forgets_the_outputs_of_the_original_workspace(tmp_path: Path) -> None:
    cache, outputs = tmp_path / "cache", tmp_path / "ä%2F b" / "pipeline"
    cache.mkdir()
    for name, path in (("here", outputs), ("original", tmp_path / "pipeline")):
        (cache / f"{name}.json").write_text(json.dumps({"dataset": {"uri": f"{path}/run/ingest/dataset"}}))
    _check_cache(cache, outputs, bypass=False)
    assert [path.name for path in cache.iterdir()] == ["here.json"]


def test_unused_outputs_are_removed_with_a_warning_for_those_that_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for task in ("first/ingest", "first/train", "second/train", "third/evaluate"):
        (tmp_path / task / "artifact").mkdir(parents=True)
    (tmp_path / "foreign").touch()
    _remove_unused(tmp_path, {tmp_path / "first/ingest", tmp_path / "third/evaluate"})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*")}
    assert left == {"first/ingest", "third/evaluate"}
    assert {path.name for path in tmp_path.iterdir()} == {"first", "third", "foreign"}
    assert caplog.messages == [
        f"warning: cannot remove outputs of an earlier run in {tmp_path / 'foreign'}: Not a directory"
    ]
