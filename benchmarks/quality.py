"""Measure generators on folders of photographs, and by how much each is better than the first.

`python -m benchmarks.quality realsr-df2k-x4 generator.safetensors --photographs Set14 --photographs BSDS100`
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tabulate import tabulate

import bebygan
from bebygan.imaging.tiling import upscale_image
from bebygan.precision import full_precision, training_device
from components.cli import report_errors
from components.evaluate.evidence import intervals
from components.evaluate.measuring import load_networks
from components.progress import progress
from pipelines.ablation.measures import METRICS, Photograph, Upscale, bicubic, measure, photographs_of

CONFIDENCE = 0.95
_SHOWN = ("psnr_y", "lpips", "dists", "lr_psnr")


def measured(models: Sequence[str], photographs: Sequence[Photograph]) -> np.ndarray:
    """Return the metrics `_SHOWN` of bicubic and of each model in float32, (1 + models, photographs, metrics).

    Raises:
        WeightsError: a model, or a network of the metrics, cannot be loaded.
        DataError: a photograph cannot be read.
    """
    device = training_device()
    networks = load_networks(device)
    upscalers: list[Upscale] = [bicubic]
    upscalers += [partial(upscale_image, bebygan.load(name).to(device)) for name in models]
    values = np.empty((len(upscalers), len(photographs), len(_SHOWN)))
    for number, photograph in enumerate(progress(photographs, "quality", "photographs", len(photographs))):
        hr, lr = photograph.read()
        for which, upscale in enumerate(upscalers):
            with full_precision(device):
                found = measure(upscale(lr), hr, lr, networks)
            values[which, number] = [found[name] for name in _SHOWN]
    return values


def table(models: Sequence[str], values: np.ndarray) -> str:
    """Return a Markdown table: means, and gains over the first model with their intervals."""
    better = np.array([1 if METRICS[name] else -1 for name in _SHOWN])
    rows = [
        [name, *(f"{mean:.4f}" if mean < 1 else f"{mean:.2f}" for mean in values[which].mean(axis=0))]
        for which, name in enumerate(["bicubic", *models])
    ]
    for which, name in enumerate(models[1:], start=2):
        gains = (values[which] - values[1]) * better
        limits = intervals(gains, CONFIDENCE)
        rows.append(
            [
                f"gain of {name}",
                *(
                    f"{gains[:, column].mean():+.4f} "
                    + ("(too few)" if limits is None else "[{:+.4f}, {:+.4f}]".format(*limits[:, column]))
                    for column in range(len(_SHOWN))
                ),
            ]
        )
    text: str = tabulate(rows, ["", *_SHOWN], tablefmt="github", disable_numparse=True)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print a table for each folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a file of weights, or a known name")
    parser.add_argument("--photographs", type=Path, action="append", required=True, metavar="FOLDER")
    options = parser.parse_args(arguments)

    def run() -> None:
        for folder in options.photographs:
            photographs = photographs_of({folder.name: folder})
            print(f"\n{folder.name}, {len(photographs)} photographs; intervals: {CONFIDENCE:.0%}, paired\n")
            print(table(options.models, measured(options.models, photographs)))

    return report_errors(run)


if __name__ == "__main__":
    sys.exit(main())
