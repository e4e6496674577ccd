"""Several processes that each upscale one photograph at a time, with a share of the threads."""

import signal
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import torch

from bebygan.errors import DataError
from bebygan.networks.generator import Generator

Work = Callable[[Generator, Path, Path], None]
"""Upscales the first file into the second."""
_mine: list[tuple[Generator, Work]] = []
"""Of this process: set once, when it starts."""


def _start(generator: Generator, work: Work, threads: int) -> None:
    # Ctrl-C reaches all processes; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    _mine.append((generator, work))


def _upscale(source: Path, target: Path) -> None:
    [(generator, work)] = _mine
    work(generator, source, target)


def upscale_in_processes(
    generator: Generator, work: Work, targets: Mapping[Path, Path], processes: int
) -> Iterator[tuple[Path, DataError | None]]:
    """Upscale photographs in several processes; yield each when it is done, with the reason if it was refused.

    If a process is killed, the rest are upscaled one at a time, and one with which a process is killed again is
    refused.

    Args:
        generator: on its device.
        work: can be pickled; raises DataError for a photograph that is refused.
        targets: the file to write for each file to read.
        processes: how many.

    Raises:
        Exception: any other that `work` raises; then no further photograph is started.
    """
    threads, waiting = max(1, torch.get_num_threads() // processes), dict(targets)
    while waiting:
        # Threads and GPUs of this process would not survive a fork.
        pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (generator, work, threads))
        with pool:
            futures: dict[Future[None], Path] = {pool.submit(_upscale, *each): each[0] for each in waiting.items()}
            try:
                for future in as_completed(futures):
                    error = future.exception()
                    if isinstance(error, BrokenProcessPool):
                        continue
                    if error is not None and not isinstance(error, DataError):
                        raise error
                    del waiting[futures[future]]
                    yield futures[future], error
            finally:
                pool.shutdown(cancel_futures=True)
        if waiting and processes == 1:
            # They are taken in this order.
            source = next(iter(waiting))
            del waiting[source]
            yield source, DataError(f"{source}: its process was killed, perhaps for the memory that it took")
        processes = 1
