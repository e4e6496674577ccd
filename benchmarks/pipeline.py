"""What the pipeline costs beside its steps: a whole run on this machine, and compiling for a cluster."""

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.figures import Figure, limited
from benchmarks.measuring import Rounds

ROOT = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"(\w+)( \.\.\.| done in \d+ s)")
_QUICK = {
    "train.iterations": 2,
    "train.batch": 2,
    "train.crop": 48,
    "train.discriminator_width": 8,
    "evaluate.crop": 64,
}
"""Little work; the pipeline around it is what a long run has too."""


def _told(*command: str) -> Iterator[tuple[float, str]]:
    """Run one of our commands and yield what it tells, each line with its time in seconds, and last its end.

    Raises:
        RuntimeError: it failed.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    last = ""
    for line in process.stderr:
        last = line
        yield time.perf_counter(), line
    if process.wait():
        raise RuntimeError(f"bebygan {command[0]} ended with exit code {process.returncode}: {last.strip()}")
    yield time.perf_counter(), ""


def seconds_in_steps(lines: Iterable[tuple[float, str]]) -> float:
    """Add up the time between each step's first and last word.

    Args:
        lines: what a run told, each with its time.

    Raises:
        RuntimeError: no step told anything.
    """
    began: dict[str, float] = {}
    took: dict[str, float] = {}
    for when, line in lines:
        if not (match := _LINE.fullmatch(line.strip())):
            continue
        step, said = match.groups()
        if said == " ...":
            began[step] = when
        else:
            took[step] = when - began[step]
    if not took:
        raise RuntimeError("no step told that it began and ended")
    return sum(took.values())


def overhead() -> list[Figure]:
    """Time of a run on this machine that is no step's: starting Python and Kubeflow, the processes, the bookkeeping."""
    with TemporaryDirectory() as folder:
        settings = [word for name, value in _QUICK.items() for word in ("--set", f"{name}={value}")]
        started = time.perf_counter()
        lines = list(_told("run", "--workspace", str(Path(folder) / "workspace"), *settings))
        whole = lines[-1][0] - started
    name = "pipeline, a run on this machine: time outside its steps"
    return [limited(name, whole - seconds_in_steps(lines), "s", 10)]


def compiling(rounds: Rounds) -> list[Figure]:
    """Time of `bebygan compile`, start of Python included."""
    taken = []
    with TemporaryDirectory() as folder:
        for _ in range(rounds.least):
            started = time.perf_counter()
            *_, (ended, _) = _told("compile", str(Path(folder) / "pipeline.yaml"))
            taken.append(ended - started)
    return [limited("pipeline, compiling it for a cluster", statistics.median(taken), "s", 3)]
