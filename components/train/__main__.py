"""`python -m components.train`: train Beby-GAN from the warm-up generator."""

import argparse
import sys
from pathlib import Path

from components.artifacts import photographs_version
from components.cli import add_training_arguments, run_step, step_parser
from components.config import Params
from components.train.step import train
from components.training import tracked_training


def _run(options: argparse.Namespace, params: Params) -> None:
    patches = options.patches
    with tracked_training("train", params.train, photographs_version(patches), patches) as track:
        train(patches, options.warmup, options.output, options.checkpoints, params=params.train, track=track)
    print(f"{options.output}: challenger")


def main() -> int:
    """Run the step and return its exit code."""
    parser = step_parser("train", "Train Beby-GAN from the warm-up generator.")
    parser.add_argument("--warmup", type=Path, required=True, help="folder that the warm-up step wrote")
    add_training_arguments(parser, "challenger")
    return run_step(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
