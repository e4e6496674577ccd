"""Train every cell with every seed, measure all of them, and write the page; a second call goes on where one ended."""

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bebygan.errors import ConfigError
from bebygan.files import sha256_of, storage_errors
from bebygan.imaging.shards import read_patches
from bebygan.precision import resolve, tf32, training_device
from bebygan.training.sampling import batch
from components.artifacts import photographs_version
from components.checkout import PARAMS_VARIABLE
from components.cli import end_quickly
from components.config import Params
from components.evaluate.measuring import load_networks
from components.progress import say
from components.tracking.address import VARIABLE, tracking_uri
from components.tracking.runs import StepRun
from components.train.step import prepared, train
from components.training import is_made, tracked_training
from components.warmup.step import warm_up
from pipelines.ablation.measures import (
    DEFINITIONS,
    Photograph,
    Upscale,
    bicubic,
    generator_of,
    identity_of,
    measured_rows,
    photographs_of,
)  # fmt: skip
from pipelines.ablation.plan import Training, read_ablation, trainings_of
from pipelines.ablation.report import write_page
from pipelines.measured import Row, measured_once

WEIGHTS = "generator.safetensors"
SECONDS = ".seconds"
"""Suffix of a file with the seconds that a training took, one line for each time that it was started."""
_TIMED = 3
"""Iterations that are timed of each cell, after one that warms up."""


def seconds_of_an_iteration(params: Params, patches: Path, start: Path) -> float:
    """Return the median time of a few iterations in which generator and discriminator learn."""
    settings = params.train
    state, step = prepared(start, settings)
    state.iteration = settings.discriminator_first
    device = next(state.generator.parameters()).device
    samples = read_patches(patches, "train", verify=False)
    pair = batch(samples, settings.seed, 0, settings.batch, crop=settings.crop, device=device)
    taken = []
    for _ in range(1 + _TIMED):
        began = time.perf_counter()
        with tf32(settings.tf32):
            values = step(state, *pair)
        # Waits for a GPU.
        values["total"].item()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def _announce_hours(waiting: list[Training], patches: Path, start: Path) -> None:
    """Print how long the trainings will take, by cell and in all."""
    by_cell: dict[str, list[Training]] = {}
    for training in waiting:
        by_cell.setdefault(training.cell, []).append(training)
    total = 0.0
    for cell, trainings in by_cell.items():
        params = trainings[0].params
        each = seconds_of_an_iteration(params, patches, start)
        hours = each * params.train.iterations * len(trainings) / 3600
        total += hours
        say(
            f"{cell}: {len(trainings)} trainings of {params.train.iterations} iterations at {each:.2f} s: {hours:.2f} h"
        )
    say(f"{len(waiting)} trainings will take {total:.2f} hours on this machine, and the comparison comes on top")


@contextmanager
def _timed(file: Path) -> Iterator[None]:
    """Add the seconds that the context takes to those in a file."""
    began = time.monotonic()
    try:
        yield
    finally:
        with storage_errors(file), file.open("a") as taken:
            taken.write(f"{time.monotonic() - began:.1f}\n")


def _hours(files: Iterable[Path]) -> float:
    # A training of an earlier version has no file.
    return sum(float(seconds) for file in files if file.is_file() for seconds in file.read_text().split()) / 3600


def _train(training: Training, patches: Path, start: Path, folder: Path) -> None:
    settings = training.params.train
    with tracked_training("ablate", settings, photographs_version(patches)) as track:
        if isinstance(track, StepRun):
            track.describe({"ablation": training.cell, "mlflow.runName": training.name})
        checkpoints = folder / "checkpoints" / training.name
        with _timed(folder / f"{training.name}{SECONDS}"):
            train(patches, start.parent, folder / training.name, checkpoints, params=settings, track=track)
    shutil.rmtree(checkpoints, ignore_errors=True)


def _measured(
    file: Path, make: Callable[[], Upscale], photographs: list[Photograph], of: Mapping[str, object]
) -> list[Row]:
    """Return the rows of one candidate, measured now or before; `of` is what they depend on."""

    def measure() -> list[Row]:
        return measured_rows(file.stem, make(), photographs, load_networks(training_device()))

    return measured_once(file, of, measure)


def ablate(options: argparse.Namespace) -> None:
    """Run `bebygan ablate`.

    Raises:
        ConfigError: the description or a parameter is wrong, or a benchmark is named twice.
        DataError: there are no patches, or a benchmark has no photographs.
        WeightsError: weights of the start, a loss or a metric are unavailable.
        Preempted: SIGTERM came during a training, whose state is saved.
    """
    benchmarks = dict(options.benchmark)
    if len(benchmarks) < len(options.benchmark):
        raise ConfigError("two benchmarks have the same name")
    ablation = read_ablation(options.ablation)
    trainings = trainings_of(ablation, Path(os.environ[PARAMS_VARIABLE]), options.set)
    photographs = photographs_of(benchmarks)
    shown = photographs_of(dict(options.show)) or photographs
    patches = options.patches or options.workspace / "patches"
    data_version = photographs_version(patches)
    folder = options.workspace / "ablation"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ[VARIABLE] = tracking_uri(options.workspace)
    params = trainings[0].params
    start = folder / "start" / WEIGHTS
    if not is_made(start, params.warmup, patches):
        warm_up(patches, start.parent, folder / "checkpoints", params=params.warmup, track=lambda *_: None)
    waiting = [
        each for each in trainings if not is_made(folder / each.name / WEIGHTS, each.params.train, patches, start)
    ]
    if waiting:
        _announce_hours(waiting, patches, start)
    if options.dry_run:
        return
    for number, training in enumerate(waiting, start=1):
        say(f"training {number} of {len(waiting)}: {training.name}")
        _train(training, patches, start, folder)
    upscalers: dict[str, Callable[[], Upscale]] = {
        "bicubic": lambda: bicubic, "start": partial(generator_of, start, params.evaluate),
    }  # fmt: skip
    weights = {"bicubic": "bicubic", "start": sha256_of(start)}
    for training in trainings:
        path = folder / training.name / WEIGHTS
        upscalers[training.name] = partial(generator_of, path, params.evaluate)
        weights[training.name] = sha256_of(path)

    def rows_of(name: str, of: list[Photograph], file: Path) -> list[Row]:
        precision = resolve(params.evaluate.precision, training_device())
        depends = {"weights": weights[name], "precision": precision, "definitions": dict(DEFINITIONS)}
        return _measured(file, upscalers[name], of, {"photographs": identity_of(of), **depends})

    rows = {name: rows_of(name, photographs, folder / f"{name}.json") for name in upscalers}
    of_shown = rows_of("start", shown, folder / "shown" / "start.json") if options.show else rows["start"]
    write_page(
        options.output, ablation, trainings=trainings, rows=rows, photographs=photographs, upscalers=upscalers,
        shown=shown, of_shown=of_shown, data_version=data_version,
        hours=_hours(folder / f"{each.name}{SECONDS}" for each in trainings),
    )  # fmt: skip
    say(f"{options.output}: {len(ablation.cells)} cells, {len(ablation.seeds)} seeds, {len(photographs)} photographs")
    end_quickly()
