"""Time and memory of several ways to do one thing: each in a process of its own, in turn.

In processes of their own, because memory that one has given back would serve another. In turn (A B A B), because a
machine that is slow for a while must be so for all. Linux with glibc only: memory is read from /proc.
"""

import ctypes
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from components.progress import progress_bar

Outputs = Mapping[str, Tensor | Sequence[Tensor]]
"""Results by name, to be compared; several tensors are compared as one."""
Work = Callable[[], Outputs]
"""What is timed."""
Prepare = Callable[[], Work]
"""Makes the work, in its process; picklable. Memory counts from before it."""
Arrays = Mapping[str, npt.NDArray[np.float32]]

_LEAST_MEGABYTES = 1.0
"""Less is noise."""
_SECONDS_PER_TURN = 0.1
"""Shorter work is repeated in its turn, so that neither clock nor threads that fall asleep matter."""


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often all take their turn: until `seconds` have passed, but at least `least` times."""

    least: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One way's figures."""

    seconds: float
    """Median of one call."""
    megabytes: float
    """Largest memory in use at once: what stays after the first call, and what a call takes on top."""
    outputs: Arrays
    """Of the first call, each flattened."""


def process_memory(field: str) -> float:
    """Return VmRSS (resident), VmHWM (its peak) or RssAnon (resident, without files) of this process, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024 / 1e6
    raise OSError(f"/proc/self/status has no {field}: benchmarks need Linux")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _give_back() -> None:
    """Return freed memory to the system, which the allocator would keep."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def _flat(output: Tensor | Sequence[Tensor]) -> npt.NDArray[np.float32]:
    tensors = [output] if isinstance(output, Tensor) else output
    return np.concatenate([tensor.detach().float().flatten().numpy() for tensor in tensors])


def _serve(connection: Connection, prepare: Prepare) -> None:
    """Prepare, work once, tell the outputs; then time a turn whenever asked; tell the memory at the end."""
    before = process_memory("RssAnon")
    work = prepare()
    started = time.perf_counter()
    outputs = work()
    calls = math.ceil(_SECONDS_PER_TURN / (time.perf_counter() - started))
    connection.send({name: _flat(output) for name, output in outputs.items()})
    del outputs
    _give_back()
    stays, resident = process_memory("RssAnon") - before, process_memory("VmRSS")
    _forget_peak()
    while connection.recv():
        started = time.perf_counter()
        for _ in range(calls):
            work()
        connection.send((time.perf_counter() - started) / calls)
    connection.send(stays + process_memory("VmHWM") - resident)


@dataclass(frozen=True, slots=True)
class _Server:
    name: str
    process: SpawnProcess
    connection: Connection

    def answer(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"measuring {self.name} ended with exit code {self.process.exitcode}; its error stands above"
            ) from None


@contextmanager
def _server(name: str, prepare: Prepare) -> Iterator[_Server]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, prepare), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _Server(name, process, ours)
    finally:
        ours.close()
        process.terminate()
        process.join()


def in_turn(what: str, ways: Mapping[str, Prepare], rounds: Rounds) -> dict[str, Measured]:
    """Measure each way; all take turns, and no two ever work at once.

    Args:
        what: is done, for the progress line.
        ways: by name.
        rounds: how often.

    Raises:
        RuntimeError: a process died; its traceback is on stderr.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    outputs: dict[str, Arrays] = {}
    peaks: dict[str, float] = {}
    with ExitStack() as stack, progress_bar(what, "rounds", None) as advance:
        servers: dict[str, _Server] = {}
        for name, prepare in ways.items():
            servers[name] = stack.enter_context(_server(name, prepare))
            outputs[name] = servers[name].answer()
        end = time.monotonic() + rounds.seconds
        while min(len(taken) for taken in times.values()) < rounds.least or time.monotonic() < end:
            for name, server in servers.items():
                server.connection.send(True)
                times[name].append(server.answer())
            advance(1)
        for name, server in servers.items():
            server.connection.send(False)
            peaks[name] = max(server.answer(), _LEAST_MEGABYTES)
    return {name: Measured(statistics.median(times[name]), peaks[name], outputs[name]) for name in ways}


def difference(ours: Arrays, reference: Arrays) -> dict[str, float]:
    """Return |ours - reference| / |reference|, Euclidean, of each output.

    Raises:
        ValueError: the two have other outputs.
    """
    if ours.keys() != reference.keys():
        raise ValueError(f"outputs are {', '.join(ours)} here and {', '.join(reference)} there")
    return {
        name: float(np.linalg.norm(np.subtract(ours[name], wanted, dtype=np.float64)) / np.linalg.norm(wanted))
        for name, wanted in reference.items()
    }
