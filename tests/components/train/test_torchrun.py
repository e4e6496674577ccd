import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from components.common.tracking import mlflow_client
from tests.components.train.test_step import FILES, ROOT, TINY
from tests.components.trained import contents

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("mlflow_store")
def test_two_processes_deliver_and_track_one_challenger(
    patches: Path, generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    warmup = generator_folder("warmup", 1)
    settings = [f"--set={setting}" for setting in (*TINY, "train.validate_every=2")]
    places = ["--patches", str(patches), "--warmup", str(warmup), "--output", "out"]
    step = ["-m", "components.train", *places, "--params", str(ROOT / "params.yaml"), *settings]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *step],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    assert set(contents(tmp_path / "out")) == FILES
    history = [json.loads(line) for line in (tmp_path / "out" / "history.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in history] == [1, 2, 3, 4]
    assert len(list((tmp_path / "workspace" / "checkpoints").glob("train-*"))) == 1
    client = mlflow_client()
    [run] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(run.info.run_id, "best_buddy")) == 4


@pytest.mark.usefixtures("mlflow_store")
def test_a_batch_that_processes_cannot_share_ends_with_the_code_of_parameters(
    patches: Path, generator_folder: Callable[..., Path], tmp_path: Path
) -> None:
    warmup = generator_folder("warmup", 1)
    settings = [f"--set={setting}" for setting in (*TINY, "train.batch=3")]
    places = ["--patches", str(patches), "--warmup", str(warmup), "--output", "out"]
    step = ["-m", "components.train", *places, "--params", str(ROOT / "params.yaml"), *settings]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *step],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(r"error: a batch of 3 cannot be divided among 2 processes in 1 parts each", done.stderr)
    assert re.search(r"exitcode\s*: 2 ", done.stderr)
    assert not (tmp_path / "out").exists()
