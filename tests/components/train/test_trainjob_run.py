import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bebygan.errors import ConfigError, DataError, ServiceError
from components.train.trainjob_run import run_trainjob
from tests.components.train.trainings import NAME, SETTINGS, Watcher, spec
from tests.standins.kubernetes import ApiServer
from tests.standins.trainer import ROOT, Controllers


def test_a_training_runs_to_its_end_and_its_log_is_printed(controllers: Controllers, server: ApiServer) -> None:
    controllers.sources = {
        "bebygan": {"MLFLOW_TRACKING_URI": "http://mlflow"},
        "bebygan-s3": {"AWS_ACCESS_KEY_ID": "k"},
    }
    lines = Watcher(
        spec('echo "$MLFLOW_TRACKING_URI $AWS_ACCESS_KEY_ID ${AWS_SECRET_ACCESS_KEY-none} $KFP_RUN_ID"; echo end >&2',
             lineage={"KFP_RUN_ID": "run-1"})
    ).finish()  # fmt: skip
    assert lines[0].startswith(f"TrainJob team/{NAME} started")
    assert lines[2:] == ["http://mlflow k none run-1", "end", f"TrainJob team/{NAME} is complete"]
    assert len(server.created) == 1


WATCH = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from components.cli import report_errors
from components.train.trainjob import *
from components.train.trainjob_run import run_trainjob
from components.config import from_yaml
spec = TrainJobSpec(name={NAME!r}, settings=from_yaml(TrainJobSettings, {SETTINGS!r}),
    command=("sh", "-c", sys.argv[1]), lineage={{}},
    environment={{"BEBYGAN_IMAGE": "registry.invalid/torch@sha256:1234"}})
sys.exit(report_errors(lambda: run_trainjob(spec, lambda line: print(line, flush=True))))
"""


@pytest.mark.parametrize(("sig", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75)])
def test_a_new_launcher_attaches_to_the_training_of_a_killed_one(
    sig: signal.Signals, code: int, controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    script = f"echo begin; while [ ! -e {tmp_path}/go ]; do sleep 0.05; done; echo end"
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout
    assert "begin\n" in iter(process.stdout.readline, "")
    process.send_signal(sig)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    if sig == signal.SIGTERM:
        assert error == f"error: stopped on request; TrainJob {NAME} keeps running, run again to attach to it\n"

    watcher = Watcher(spec(script))
    watcher.until(lambda: "begin" in watcher.lines)
    (tmp_path / "go").touch()
    lines = watcher.finish()
    assert lines[0] == f"TrainJob team/{NAME} already runs; attached to it"
    assert lines[2:4] == ["begin", "end"]
    assert len(server.created) == controllers.starts == 1


def test_two_runs_share_the_same_training(server: ApiServer) -> None:
    first = Watcher(spec(lineage={"KFP_RUN_ID": "run-1"}))
    server.wait_until(lambda: server.created)
    second = Watcher(spec(lineage={"KFP_RUN_ID": "run-2"}))
    second.until(lambda: second.lines)
    server.end(NAME, "Complete", "AllJobsCompleted", "done")
    assert first.finish()[0] != second.finish()[0] == f"TrainJob team/{NAME} already runs; attached to it"
    assert len(server.created) == 1


def test_a_running_training_with_other_settings_raises_an_error(server: ApiServer) -> None:
    Watcher(spec())
    server.wait_until(lambda: server.created)
    with pytest.raises(
        ConfigError, match=r"with other settings: node_selector\.pool unset -> spot, nodes 1 -> 2; wait"
    ):
        run_trainjob(spec(nodes=2, node_selector={"pool": "spot"}), print)
    assert len(server.created) == 1


def test_a_foreign_trainjob_raises_an_error_and_keeps_running(server: ApiServer) -> None:
    Watcher(spec())
    server.wait_until(lambda: server.created)
    del server.trainjobs[NAME]["metadata"]["annotations"]
    with pytest.raises(ConfigError, match="is not of this pipeline"):
        run_trainjob(spec(), print)


def test_a_deleted_trainjob_raises_an_error(server: ApiServer) -> None:
    watcher = Watcher(spec())
    server.wait_until(lambda: server.created)
    server.delete(NAME)
    with pytest.raises(ServiceError, match=r"TrainJob .* was deleted"):
        watcher.finish()


def test_a_lost_answer_does_not_start_a_second_training(controllers: Controllers, server: ApiServer) -> None:
    # The TrainJob exists, but the connection broke before the launcher got the answer.
    accept = server.accept

    def accept_and_break(body: dict[str, Any]) -> dict[str, Any]:
        server.accept = accept  # type: ignore[method-assign]
        server.on_create(accept(body))
        raise ConnectionResetError

    server.accept = accept_and_break  # type: ignore[method-assign]
    lines = Watcher(spec("sleep 1")).finish()
    assert lines[0] == f"TrainJob team/{NAME} already runs; attached to it"
    assert controllers.starts == 1


def test_preempted_trainings_restart_without_limit(controllers: Controllers, tmp_path: Path) -> None:
    script = f"echo >> {tmp_path}/starts; n=$(wc -l < {tmp_path}/starts); echo start $n; [ $n -gt 5 ] || exit 75"
    lines = Watcher(spec(script)).finish()
    assert controllers.starts == 6
    assert lines[-2] == "start 6"


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
def test_a_training_on_a_reclaimed_machine_restarts(
    sig: signal.Signals, controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    file = f"{tmp_path}/again-$PET_NODE_RANK"
    watcher = Watcher(
        spec(f"echo begin; if [ -e {file} ]; then echo end; else touch {file}; exec sleep 60; fi", nodes=2)
    )
    watcher.until(lambda: (tmp_path / "again-1").exists() and "begin" in watcher.lines)
    controllers.evict(server.pods[1], sig)
    lines = watcher.finish()
    assert controllers.starts == 2
    assert controllers.actions == ["RestartJobSetAndIgnoreMaxRestarts"]
    assert [line for line in lines if not line.startswith(("log of", "Train"))] == ["begin", "begin", "end"]


def test_a_failed_training_is_started_again_by_the_next_run(
    controllers: Controllers, server: ApiServer, tmp_path: Path
) -> None:
    script = f"[ -e {tmp_path}/mended ] || exit 3; echo mended"
    with pytest.raises(DataError):
        Watcher(spec(script)).finish()
    (tmp_path / "mended").touch()
    lines = Watcher(spec(script)).finish()
    assert lines[0].startswith(f"an earlier TrainJob team/{NAME} ended (FailJobSetAction: ")
    assert "mended" in lines
    assert len(server.created) == controllers.starts == 2
    assert [pod for pod in server.pods if not pod.ended] == []
