"""`python -m components.warmup`: train or import the PSNR-oriented generator."""

import argparse
import sys

from components.artifacts import photographs_version
from components.cli import add_training_arguments, run_step, step_parser
from components.config import Params
from components.identify import start_of
from components.job import with_start
from components.training import tracked_training
from components.warmup.step import warm_up


def _run(options: argparse.Namespace, params: Params) -> None:
    group = with_start(params, start_of(params)).warmup
    patches = options.patches
    with tracked_training("warmup", group, photographs_version(patches), patches) as track:
        warm_up(patches, options.output, options.checkpoints, params=group, track=track)
    print(f"{options.output}: warm-up generator")


if __name__ == "__main__":
    parser = step_parser("warmup", "Train or import the PSNR-oriented generator that Beby-GAN starts from.")
    add_training_arguments(parser, "generator")
    sys.exit(run_step(parser, _run))
