import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from components.tracking.client import mlflow_client
from components.train.torchrun import _code_of
from tests.components.train.test_step import FILES, ROOT, TINY
from tests.components.trained import contents
from tests.conftest import free_ports

pytestmark = pytest.mark.slow


CHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
print("begin", flush=True)
codes = sys.argv[1].split(",")
code = codes[int(os.environ["RANK"])]
time.sleep(60) if code == "wait" else sys.exit(int(code))
"""


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Run torchrun as in a pod, with processes that exit with the given codes."""
    (tmp_path / "child.py").write_text(CHILD)

    def run(codes: str, *options: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "components.train.torchrun", *options, str(tmp_path / "child.py"), codes],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", **variables},
        )  # fmt: skip

    return run


def test_torchruns_exit_code_is_that_of_the_process_that_failed_first(
    torchrun: Callable[..., "subprocess.Popen[str]"],
) -> None:
    plans = ("wait,3", "wait,wait")
    running = {codes: torchrun(codes, "--nproc-per-node", "2") for codes in plans}
    waiting = running["wait,wait"].stdout
    assert waiting
    assert [waiting.readline(), waiting.readline()] == ["begin\n", "begin\n"]
    running["wait,wait"].send_signal(signal.SIGTERM)
    for process in running.values():
        process.communicate(timeout=120)
    codes = {codes: process.returncode for codes, process in running.items()}
    assert codes == {"wait,3": 3, "wait,wait": 75}


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        # 75 is the code of a process that lost another one; a signal may come from torchrun, which ends the others.
        ((75, 5), 5),
        ((-signal.SIGTERM, 5), 5),
        ((-signal.SIGKILL, 5), 5),
        ((75, -signal.SIGKILL), 137),
        ((-signal.SIGTERM, 75), 75),
        ((-signal.SIGTERM,), 143),
    ],
)
def test_the_exit_code_is_that_of_the_cause_and_not_of_its_effects(
    codes: tuple[int, ...], expected: int, tmp_path: Path
) -> None:
    failures = [ProcessFailure(rank, 1, code, str(tmp_path / "none")) for rank, code in enumerate(codes)]
    assert _code_of(failures) == expected


def test_a_machine_that_lost_another_exits_after_it(
    torchrun: Callable[..., "subprocess.Popen[str]"],
) -> None:
    places = {"PET_NNODES": "2", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(free_ports(1)[0])}
    here, there = (torchrun("75,wait", PET_NODE_RANK=str(rank), **places) for rank in (0, 1))
    assert here.stdout
    assert here.stderr
    assert here.stdout.readline() == "begin\n"
    # torchrun has detected the end of its process.
    assert any("exitcode: 75" in line for line in iter(here.stderr.readline, ""))
    time.sleep(2)
    assert here.poll() is None
    for process in (here, there):
        process.terminate()
    assert here.wait(timeout=20) == 75
    there.communicate(timeout=60)


def test_machines_that_do_not_meet_exit_as_resumable_and_a_single_one_does_not(
    torchrun: Callable[..., "subprocess.Popen[str]"],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = [*free_ports(2), taken.getsockname()[1]]
        started = [
            torchrun(
                "0", "--rdzv-conf", "timeout=1", PET_NNODES=nodes, PET_NODE_RANK=rank, PET_MASTER_ADDR="127.0.0.1",
                PET_MASTER_PORT=str(port),
            )
            for nodes, rank, port in zip("221", "010", ports, strict=True)
        ]  # fmt: skip
        said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [75, 75, 4]
    for out, error in said:
        assert out == ""
        assert error.splitlines()[-1].startswith("error: the machines of the training did not meet at 127.0.0.1:")


@pytest.fixture
def train_in_two_processes(
    patches: Path, generator_folder: Callable[..., Path], tmp_path: Path, mlflow_store: str
) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Train into `out` like a pod with two GPUs."""
    assert mlflow_store
    places = ["--patches", str(patches), "--warmup", str(generator_folder("warmup", 1)), "--output", "out"]

    def run(*settings: str) -> "subprocess.CompletedProcess[str]":
        step = ["-m", "components.train", *places, "--params", str(ROOT / "params/compact.yaml")]
        step += [f"--set={setting}" for setting in (*TINY, *settings)]
        return subprocess.run(
            [sys.executable, "-m", "components.train.torchrun", "--standalone", "--nproc-per-node", "2", *step],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_two_processes_write_and_track_one_challenger(
    train_in_two_processes: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    done = train_in_two_processes("train.validate_every=2", "train.deliver.by=validation.lpips")
    assert done.returncode == 0, done.stderr

    assert set(contents(tmp_path / "out")) == FILES
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in history] == [0, 1, 2, 3, 4]
    assert history[-1]["delivered"] in {2, 4}
    assert len(list((tmp_path / "workspace" / "checkpoints").glob("train-*"))) == 1
    client = mlflow_client()
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "best_buddy")) == 4


def test_a_batch_that_processes_cannot_share_exits_with_the_code_of_parameters(
    train_in_two_processes: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    done = train_in_two_processes("train.batch=3")
    assert done.returncode == 2
    assert "error: a batch of 3 cannot be divided among 2 processes in 1 parts each" in done.stderr
    assert not (tmp_path / "out").exists()
