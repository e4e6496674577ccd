"""`python -m components.preflight`: test everything that a run needs."""

import argparse
import sys

from components.checkout import in_checkout
from components.cli import run_step, step_parser
from components.config import Params


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the places and the GPUs."""
    parser.add_argument(
        "--source", default=str(in_checkout("data/sample")), help="folder or s3://bucket/prefix (default: %(default)s)"
    )
    parser.add_argument("--remote", default="", help="DVC remote, folder or s3://bucket/prefix")
    parser.add_argument("--ledger", default="", help="record of promotions, folder or s3://bucket/prefix")
    parser.add_argument(
        "--checkpoints", default="workspace/checkpoints", help="folder that survives (default: %(default)s)"
    )
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that this machine must have (default: %(default)s)")


def run(options: argparse.Namespace, params: Params) -> None:
    """Run all checks; see `components.preflight.step.preflight`."""
    # `bebygan --help` needs the arguments above only, and these imports take seconds.
    from components.preflight.step import Places, checks, preflight  # noqa: PLC0415

    places = Places(
        source=options.source, remote=options.remote, checkpoints=options.checkpoints, ledger=options.ledger
    )
    preflight(checks(places, params, options.gpus))


def check(options: argparse.Namespace) -> None:
    """Run `bebygan preflight`, whose options hold the parameters."""
    run(options, options.params)


def main() -> int:
    """Run the step and return its exit code."""
    parser = step_parser(
        "preflight", "Test everything that a run needs: bucket, remote, tracker, registry, weights, GPUs."
    )
    add_arguments(parser)
    return run_step(parser, run)


if __name__ == "__main__":
    sys.exit(main())
