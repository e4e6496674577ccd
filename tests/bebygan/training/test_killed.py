"""A training that is killed again and again, at random moments, ends as one that nothing came between."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bebygan.errors import BebyganError
from bebygan.imaging.shards import read_patches
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import Delivery, GeneratorShape, Retention
from bebygan.training.checkpoint import Checkpoints, checkpoints_in
from bebygan.training.loop import TrainStep, fit
from bebygan.training.state import TrainState, new_state
from bebygan.training.step import gan_step
from tests.bebygan.training.test_loop import SETTINGS, assert_equal, make_patches

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
JOB = {"step": "train"}
ITERATIONS = 60
KINDS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "fp16, accumulated, clipped, validated": {
        "precision": "fp16",
        "accumulate": 2,
        "clip_norm": 1.0,
        "validate_every": 4,
        "picture_every": 0,
        "keep": Retention(newest=2, every=0, best="validation.psnr_y"),
        "deliver": Delivery(by="validation.psnr_y", lr_psnr_floor=5.0),
    },
}


def noisy(step: TrainStep) -> TrainStep:
    """Draw from every random generator in each iteration: one that is not restored shows in the weights."""

    def drawn(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        noise = torch.randn_like(lr) * random.random() * np.random.random()  # noqa: S311
        return step(state, lr + 0.01 * noise, hr)

    return drawn


def train(patches: Path, checkpoints: Path, kind: str) -> None:
    settings = replace(SETTINGS, iterations=ITERATIONS, checkpoint_every=3, **KINDS[kind])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    discriminator = Discriminator(settings.crop, settings.discriminator_width)
    state = new_state(generator, discriminator, settings, torch.device("cpu"))
    fit(
        state,
        read_patches(patches, "train"),
        settings,
        noisy(gan_step(settings, None)),
        checkpoints=checkpoints,
        identity=JOB,
        watch=lambda iteration, _: print(iteration, flush=True),
        validation=read_patches(patches, "validation"),
    )


def serve(patches: str, kind: str) -> None:
    """Train into the folder of each line of standard input, in a process of its own.

    Importing torch once and forking saves a minute: a training that is to be killed is there at once.
    """
    for line in sys.stdin:
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            print("ended", os.waitstatus_to_exitcode(status), flush=True)
            continue
        print("started", os.getpid(), flush=True)
        try:
            train(Path(patches), Path(line.strip()), kind)
        except BebyganError as error:
            os._exit(error.exit_code)
        os._exit(0)


@contextmanager
def trainer(patches: Path, kind: str) -> Iterator["subprocess.Popen[str]"]:
    code = f"from {__name__} import serve; serve({str(patches)!r}, {kind!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment, cwd=ROOT,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def begin(process: "subprocess.Popen[str]", folder: Path) -> int:
    """Start a training; returns its process number."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{folder}\n")
    process.stdin.flush()
    word, number = process.stdout.readline().split()
    assert word == "started"
    return int(number)


def end_of(process: "subprocess.Popen[str]", iterations: int | None = None) -> int | None:
    """Wait for a training's end, or only for so many iterations; returns the exit code, or None at the latter."""
    assert process.stdout is not None
    while iterations is None or iterations > 0:
        line = process.stdout.readline().split()
        if line[0] == "ended":
            return int(line[1])
        if iterations is not None:
            iterations -= 1
    return None


def being_written(folder: Path) -> set[Path]:
    return set(folder.glob(".iteration-*.part"))


def strike(process: "subprocess.Popen[str]", pid: int, folder: Path, moment: random.Random, by: signal.Signals) -> bool:
    """Send a signal a few iterations on, at any time or while a checkpoint is written; returns whether one was."""
    assert end_of(process, moment.randrange(6)) is None
    abandoned = being_written(folder)
    if moment.random() < 0.5:
        time.sleep(moment.random() * 0.02)
    else:
        deadline = time.monotonic() + 30
        while not being_written(folder) - abandoned:
            assert time.monotonic() < deadline
    os.kill(pid, by)
    return bool(being_written(folder) - abandoned)


def state_in(folder: Path) -> dict[str, Any]:
    with Checkpoints(folder, JOB, SETTINGS.keep) as checkpoints:
        state = checkpoints.load()
    assert state is not None
    return {**state, "random": [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()]}


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_killed_twenty_times_ends_as_one_that_never_was(kind: str, tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    patches = make_patches(tmp_path / "patches")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    moment = random.Random(7)  # noqa: S311
    ends = []
    mid_write = 0
    with trainer(patches, kind) as process:
        begin(process, whole)
        assert end_of(process) == 0
        for number in range(24):
            pid = begin(process, killed)
            by = signal.SIGTERM if number % 6 == 5 else signal.SIGKILL
            mid_write += strike(process, pid, killed, moment, by)
            ends.append(end_of(process))
        begin(process, killed)
        assert end_of(process) == 0
    assert ends.count(-signal.SIGKILL) == 20
    assert ends.count(75) + ends.count(-signal.SIGTERM) == 4
    assert mid_write
    assert_equal(state_in(killed), state_in(whole))
    assert max(checkpoints_in(killed)) == ITERATIONS
