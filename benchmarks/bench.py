"""`python -m benchmarks.bench`: measure what the README claims, and write benchmarks/results.json."""

import argparse
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from bebygan.pretrained import weights_file
from benchmarks.cases import Case, cases
from benchmarks.comparing import WrongResultError, write_sample
from benchmarks.figures import Figure, table, write_figures
from benchmarks.measuring import Rounds
from components.cli import report_errors
from components.config import Params, load_params
from components.progress import say

_OBJECTIVE = {"best_buddy": 1.0, "back_projection": 1.0, "perceptual": 1.0, "adversarial": 0.005, "dists": 0.0}
"""The paper's, which the plain iteration computes."""
ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results.json"
CAREFUL = Rounds(least=5, seconds=15)
QUICK = Rounds(least=2, seconds=0)


def laptop_params() -> Params:
    """Return the compact profile with the objective of the plain iteration."""
    losses = [f"train.losses.{name}={weight}" for name, weight in _OBJECTIVE.items()]
    return load_params(ROOT / "params/compact.yaml", ["train.discriminator_first=0", *losses])


def _options(names: Sequence[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description="Measure ours beside plain references, in turn, on crops of data/sample. Keep the machine quiet.",
    )
    parser.add_argument("--only", choices=names, metavar="NAME", action="append", help=f"of {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="few rounds, for a first look; nothing is written")
    return parser.parse_args(arguments)


def measure(chosen: Mapping[str, Case], patches: Path, vgg: Path, rounds: Rounds) -> tuple[list[Figure], list[str]]:
    """Run cases one after the other.

    Args:
        chosen: cases by name.
        patches: folder of patches of real photographs.
        vgg: file of VGG weights.
        rounds: how often ours and the reference take turns.

    Returns:
        The figures, and what is wrong where ours is not what the reference computes; such a case has no figures.
    """
    figures, wrong = [], []
    for number, (name, case) in enumerate(chosen.items(), start=1):
        say(f"{number} of {len(chosen)}: {name}")
        try:
            figures += case(patches, vgg, rounds)
        except WrongResultError as error:
            wrong.append(str(error))
    return figures, wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write; return the exit code, which is 1 when a result is wrong."""
    wrong: list[str] = []

    def run() -> None:
        params = laptop_params()
        known = cases(params)
        options = _options(list(known), arguments)
        chosen = {name: case for name, case in known.items() if not options.only or name in options.only}
        with TemporaryDirectory() as folder:
            patches = Path(folder) / "patches"
            write_sample(ROOT / "data/sample", patches, params.patches)
            vgg = weights_file(params.train.perceptual.network)
            figures, faults = measure(chosen, patches, vgg, QUICK if options.quick else CAREFUL)
        wrong.extend(faults)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
        print(table(figures))
        for fault in faults:
            print(f"error: {fault}", file=sys.stderr)
        if not options.quick:
            write_figures(RESULTS, figures)

    return report_errors(run) or int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
