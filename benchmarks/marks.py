"""`python -m benchmarks.marks`: measure generators on benchmark folders, as docs/marks.md compares them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from bebygan.precision import training_device
from bebygan.pretrained import KNOWN, weights_file
from components.cli import report_errors
from pipelines.ablation.measures import METRICS, bicubic, generator_of, load_networks, measured_rows, photographs_of
from pipelines.cli import benchmark


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table of means, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.marks", description=__doc__)
    parser.add_argument("weights", nargs="+", help=f"bicubic, files of weights, or names, such as {list(KNOWN)[-1]}")
    parser.add_argument("--benchmark", type=benchmark, action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--tile", type=int, help="largest side of what is computed at once, LR pixels")
    options = parser.parse_args(arguments)

    def run() -> None:
        photographs, lines = photographs_of(dict(options.benchmark)), []
        networks = load_networks(training_device())
        for name in options.weights:
            path = weights_file(name) if name in KNOWN else Path(name)
            upscale = bicubic if name == "bicubic" else generator_of(path, options.tile)
            rows = measured_rows(name, upscale, photographs, networks)
            for each in dict(options.benchmark):
                values = np.array([[row[metric] for metric in METRICS] for row in rows if row["benchmark"] == each])
                lines.append([Path(name).name, each, len(values), *np.nanmean(values, 0)])
        print(tabulate(lines, ["weights", "benchmark", "photographs", *METRICS], "github", floatfmt=".4f"))

    return report_errors(run)


if __name__ == "__main__":
    sys.exit(main())
