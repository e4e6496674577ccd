"""`bebygan calibrate`: how much models differ that were trained with other seeds and nothing else.

The interval of a gain says which other photographs could have been held out. It does not say that another seed would
have given another model. The spread between seeds gives the gain that a repeated training reaches by chance.
"""

import argparse
import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from bebygan.errors import ConfigError, DataError
from bebygan.files import sha256_of, storage_errors, whole_file
from bebygan.settings import GanSettings
from components.artifacts import Candidate
from components.cli import end_quickly, stoppable
from components.comparison import METRICS, TITLES, shown
from components.config import PARAMS_FILE, EvaluateParams, Metric, Params, digest
from components.evaluate.evidence import students_quantile
from components.evaluate.step import flat_photographs, measure
from components.ingest.step import ingest
from components.patches.step import make_patches
from components.progress import progress
from components.stores.data_version import data_version
from components.train.step import train
from components.training import is_made
from components.warmup.step import warm_up
from pipelines.measured import Row, measured_once

FEWEST = 5
"""Seeds below which a standard deviation says nothing."""
RESULT = "calibration.json"
_CHECKPOINTS = "checkpoints"
WEIGHTS = "generator.safetensors"
_START: tuple[Candidate, ...] = ("bicubic", "warmup")


def least_gain(means: Sequence[float], confidence: float) -> float:
    """Return the gain over one training that another, which differs in the seed, exceeds with half of 1 - confidence.

    Args:
        means: of a metric, of trainings that differ in their seeds; they are taken to be normally distributed.
        confidence: 0.95 gives the gain that 2.5 % of pairs exceed.
    """
    spread = float(np.std(means, ddof=1))
    # The difference of two has twice the variance of one.
    return students_quantile((1 - confidence) / 2, len(means) - 1) * math.sqrt(2) * spread


def training_noise(means: pd.DataFrame, confidence: float) -> dict[Metric, float]:
    """Return `least_gain` of each metric that was measured and differs between trainings.

    Args:
        means: a row for each training, a column for each metric.
        confidence: see `least_gain`.
    """
    # A metric of a region that no photograph has is NaN, which is no value.
    differing = [metric for metric in METRICS if metric in means and means[metric].nunique() > 1]
    return {metric: least_gain(means[metric].tolist(), confidence) for metric in differing}


def _rounded_up(value: float) -> str:
    """Return a positive value with two digits, never below itself."""
    digits = 1 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.{max(digits, 0)}f}"


def prepare(source: str, folder: Path, params: Params) -> None:
    """Make dataset, patches and warm-up generator in a folder; raises as the steps do."""
    patches, warmup = folder / "patches", folder / "warmup"
    ingest(source, folder / "dataset", folder / "docs", params.ingest)
    make_patches(folder / "dataset", patches, params.patches)
    if not is_made(warmup / WEIGHTS, params.warmup, patches):
        warm_up(patches, warmup, folder / _CHECKPOINTS / "warmup", params=params.warmup, track=_track_nothing)


def _track_nothing(iteration: int, values: Mapping[str, object]) -> None:
    del iteration, values


def trained(folder: Path, params: GanSettings, start: str = "warmup") -> Path:
    """Return the weights of a training with these parameters in a prepared folder, trained now or before.

    Args:
        folder: see `prepare`.
        params: of the training.
        start: folder in it with the generator that training starts from.
    """
    patches, warmup = folder / "patches", folder / start
    output = folder / f"trained-{digest(params)[:16]}{start.removeprefix('warmup')}"
    if not is_made(output / WEIGHTS, params, patches, warmup / WEIGHTS):
        checkpoints = folder / _CHECKPOINTS / output.name
        train(patches, warmup, output, checkpoints, params=params, track=_track_nothing)
        shutil.rmtree(checkpoints)
    return output / WEIGHTS


def measured_start(folder: Path, params: EvaluateParams) -> dict[Candidate, pd.DataFrame]:
    """Return the metrics of bicubic and the start by photograph, of those held out that are not flat.

    Raises:
        DataError: all are flat.
    """
    rows = _measured(folder, {"warmup": folder / "warmup" / WEIGHTS}, params, _START)
    rows = rows[~rows["photograph"].isin(flat_photographs(rows))].set_index("photograph")
    if rows.empty:
        raise DataError(f"{folder / 'dataset'} holds out only flat photographs: add photographs with texture")
    return {name: rows.loc[rows["candidate"] == name, list(METRICS)] for name in _START}


def measured(folder: Path, weights: Path, params: EvaluateParams) -> pd.DataFrame:
    """Return the metrics of a generator by photograph, of those held out that are not flat."""
    generators: dict[Candidate, Path] = {"warmup": folder / "warmup" / WEIGHTS, "challenger": weights}
    rows = _measured(folder, generators, params, ("challenger",)).set_index("photograph")
    return rows.loc[measured_start(folder, params)["bicubic"].index, list(METRICS)]


def _measured(
    folder: Path, generators: Mapping[Candidate, Path], params: EvaluateParams, only: tuple[Candidate, ...]
) -> pd.DataFrame:
    """Return metrics by photograph and candidate, measured now or before and kept beside the last generator."""
    dataset = folder / "dataset"
    weights = {name: sha256_of(path) for name, path in generators.items()}
    of = {"weights": weights, "dataset": data_version(dataset), "params": digest(params)}

    def rows() -> list[Row]:
        found, _ = measure(dataset, generators, params, only)
        records = found[["photograph", "candidate", *METRICS]].to_dict("records")
        return [{str(name): value for name, value in record.items()} for record in records]

    beside = list(generators.values())[-1].parent
    return pd.DataFrame(measured_once(beside / "per_photograph.json", of, rows))


def seeded(params: Params, seeds: Iterable[int]) -> list[Params]:
    """Return the parameters once for each seed of the training."""
    return [replace(params, train=replace(params.train, seed=seed)) for seed in seeds]


def measured_seeds(source: str, folder: Path, trainings: Sequence[Params]) -> list[pd.DataFrame]:
    """Return the metrics of each training by photograph; trainings of an interrupted call are resumed.

    Args:
        source: folder or s3://bucket/prefix with the photographs.
        folder: for everything that is made.
        trainings: which differ in `train` alone.

    Raises:
        BebyganError: a step failed, a generator cannot be measured, or the folder cannot be written.
        Preempted: SIGTERM came; the state of the training is saved.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    prepare(source, folder, trainings[0])
    tables = []
    for each in progress(trainings, "calibrate", "trainings", len(trainings)):
        tables.append(measured(folder, trained(folder, each.train), each.evaluate))
    return tables


def calibrate(options: argparse.Namespace) -> None:
    """Run `bebygan calibrate`.

    Raises:
        ConfigError: there are too few seeds.
        BebyganError: see `measured_seeds`.
    """
    if options.seeds < FEWEST:
        raise ConfigError(f"--seeds must be at least {FEWEST}, got {options.seeds}: fewer say nothing about the spread")
    params: Params = options.params
    folder, confidence = options.workspace / "calibration", params.evaluate.confidence
    trainings = seeded(params, range(1, options.seeds + 1))
    with stoppable("stopped on request; calibrate again to continue"):
        means = pd.DataFrame([table.mean() for table in measured_seeds(options.source, folder, trainings)])
    means = means.dropna(axis="columns")
    noise = training_noise(means, confidence)
    result = {
        "seeds": options.seeds,
        "confidence": confidence,
        "data_version": data_version(folder / "dataset"),
        "train": digest(replace(params.train, seed=0)),
        "means": means.to_dict("list"),
        "spread": means.std().to_dict(),
        "training_noise": noise,
    }
    with whole_file(folder / RESULT) as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    rows = [
        [TITLES[metric], *(shown(metric, value) for value in (means[metric].mean(), means[metric].std(), gain))]
        for metric in METRICS
        if metric in means
        for gain in [noise.get(metric, 0.0)]
    ]
    headings = ["", "mean", "standard deviation", "gain by chance"]
    print(tabulate(rows, headings, tablefmt="plain", disable_numparse=True))
    if alike := [metric for metric in METRICS if metric in means and metric not in noise]:
        print(f"\nthe same with every seed, so that no gain is proposed: {', '.join(alike)}")
    proposed = ", ".join(f"{metric}: {_rounded_up(gain)}" for metric, gain in noise.items())
    print(
        f"\nof two trainings with other seeds, one is better than the other by more than the gain by chance in "
        f"{(1 - confidence) / 2:.1%} of cases ({options.seeds} seeds). To let only larger gains replace the champion, "
        f"write in {PARAMS_FILE}, and calibrate again when parameters of train or the number of photographs change:\n\n"
        f"evaluate:\n  training_noise: {{{proposed}}}\n"
    )
    print(f"figures: {folder / RESULT}")
    end_quickly()
