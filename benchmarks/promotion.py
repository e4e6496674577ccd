"""Count how often the gate promotes a repeated training, and how often one that is really better.

`python -m benchmarks.promotion --folder promotion --params params/compact.yaml --set train.iterations=60` calibrates
with some seeds, trains with many others, and asks of each ordered pair whether one would replace the other as champion.
Then the same for trainings that are several times as long. A second call goes on where one ended.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from components.artifacts import Candidate, Means
from components.checkout import in_checkout
from components.cli import add_params_arguments, read_params, report_errors
from components.comparison import METRICS
from components.config import EvaluateParams, Metric, Params
from components.evaluate.evidence import Table, gains_of
from components.evaluate.step import flat_photographs, measure, objective_of
from components.evaluate.verdict import Measured, judge
from pipelines.calibration import WEIGHTS, least_gain, measured, measured_seeds, seeded

Rows = Mapping[Candidate, pd.DataFrame]
"""Metrics by photograph."""


def promoted(
    floors: Rows,
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    noise: Mapping[Metric, float],
    *,
    params: EvaluateParams,
    warmup: Path,
) -> bool:
    """Return whether a challenger would replace a champion, measured on the same photographs."""
    rows = {**floors, "champion": champion, "challenger": challenger}
    values: dict[Candidate, Table] = {name: each[list(METRICS)].to_numpy() for name, each in rows.items()}
    means: Means = {name: {metric: float(each[metric].mean()) for metric in METRICS} for name, each in rows.items()}
    opponents = [name for name in rows if name != "challenger"]
    known = Measured(
        means=means,
        gains=gains_of(values, opponents, params.confidence),
        photographs=len(challenger),
        objective=objective_of(warmup, means)[0],
    )
    return judge(known, params.thresholds, params.confidence, noise)[0] == "promote"


def run(options: argparse.Namespace) -> None:
    """Train, measure and print a Markdown table."""
    params: Params = read_params(options)
    folder: Path = options.folder
    longer = replace(params, train=replace(params.train, iterations=options.longer * params.train.iterations))
    trainings = [
        *seeded(params, range(1, options.calibration + 1)),
        *seeded(params, range(101, 101 + options.repeats)),
        *seeded(longer, range(201, 201 + options.planted)),
    ]
    tables = measured_seeds(options.source, folder, trainings)
    calibration, rest = tables[: options.calibration], tables[options.calibration :]
    repeated, better = rest[: options.repeats], rest[options.repeats :]
    warmup = folder / "warmup" / WEIGHTS
    bicubic, _ = measure(folder / "dataset", {}, params.evaluate)
    bicubic = bicubic[~bicubic["photograph"].isin(flat_photographs(bicubic))].set_index("photograph")
    floors: Rows = {"bicubic": bicubic[list(METRICS)], "warmup": measured(folder, warmup, params.evaluate)}
    # A metric of a region that no photograph has is not a number.
    means = pd.DataFrame([table.mean() for table in calibration]).dropna(axis="columns")
    noise = {
        metric: least_gain(means[metric].tolist(), params.evaluate.confidence) for metric in METRICS if metric in means
    }
    print(f"{len(bicubic)} held-out photographs, {options.calibration} seeds for the noise: {noise}\n")
    rows = []
    for gate, known in (("photographs alone", {}), ("and training noise", noise)):
        for what, challengers in (("the same", repeated), (f"{options.longer} times as long", better)):
            shares = []
            for champion in repeated:
                others = [each for each in challengers if each is not champion]
                passed = sum(
                    promoted(floors, champion, each, known, params=params.evaluate, warmup=warmup) for each in others
                )
                shares.append(passed / len(others))
            rows.append(
                [
                    gate,
                    what,
                    len(challengers),
                    f"{statistics.median(shares):.1%}",
                    f"{max(shares):.1%}",
                    f"{statistics.mean(shares):.1%}",
                ]
            )
    print(
        tabulate(
            rows,
            ["gate", "challengers", "number", "promoted, median champion", "worst champion", "all pairs"],
            tablefmt="github",
        )
    )
    for name, tables in (("the same", repeated), ("longer", better)):
        each = pd.DataFrame([table.mean() for table in tables])
        print(
            f"{name}: "
            + ", ".join(f"{metric} {each[metric].mean():.4f} +- {each[metric].std():.4f}" for metric in METRICS)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotion", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for everything that is made; it may be kept")
    parser.add_argument("--source", default=str(in_checkout("data/sample")), help="photographs (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=8, help="seeds that the noise is estimated from")
    parser.add_argument("--repeats", type=int, default=40, help="trainings that differ in the seed alone")
    parser.add_argument("--planted", type=int, default=10, help="trainings that are longer")
    parser.add_argument("--longer", type=int, default=4, help="by this factor")
    add_params_arguments(parser)
    options = parser.parse_args(arguments)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
