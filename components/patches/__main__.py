"""`python -m components.patches`: make training patches of a dataset."""

import argparse
import sys
from pathlib import Path

from components.cli import run_step, step_parser
from components.config import Params
from components.patches.step import make_patches, tell


def _run(options: argparse.Namespace, params: Params) -> None:
    counts = make_patches(options.dataset, options.output, params.patches)
    tell(counts, options.dataset, options.output)


if __name__ == "__main__":
    parser = step_parser("patches", "Make training patches of the photographs of a dataset.")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that ingest wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the patches")
    sys.exit(run_step(parser, _run))
