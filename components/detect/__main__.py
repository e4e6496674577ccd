"""`python -m components.detect`: print whether there is anything to train, and why."""

import argparse
import sys

from components.cli import run_step, step_parser
from components.config import Params
from components.detect.step import decide
from components.identify import job_here
from components.progress import printable


def _run(options: argparse.Namespace, params: Params) -> None:
    decision = decide(job_here(params, options.source), force=options.force)
    print(f"{decision.action}: {printable(decision.reason)}")


def main() -> int:
    """Run the step and return its exit code."""
    parser = step_parser("detect", "Print whether photographs, code or parameters changed since the champion was made.")
    parser.add_argument("--source", required=True, help="a folder, or s3://bucket/prefix (AWS_* variables)")
    parser.add_argument("--force", action="store_true", help="train even if nothing changed")
    return run_step(parser, _run)


if __name__ == "__main__":
    sys.exit(main())
