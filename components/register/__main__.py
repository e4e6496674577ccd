"""`python -m components.register`: register a challenger with its verdict."""

import argparse
import sys
from pathlib import Path

from components.artifacts import read_verdict
from components.cli import run_step, step_parser
from components.config import Params
from components.register.step import register
from components.tracking.runs import step_run


def _run(options: argparse.Namespace, params: Params) -> None:
    with step_run("register", params.register, read_verdict(options.evaluation).data_version) as run:
        folders = options.challenger, options.evaluation, options.output
        done = register(*folders, params=params.register, run=run, ledger=options.ledger)
    print(f"{done.model} version {done.version} ({done.verdict}); champion: {done.champion or 'none'}")


if __name__ == "__main__":
    parser = step_parser("register", "Register a challenger, and make it champion if the verdict is to promote it.")
    parser.add_argument("--challenger", type=Path, required=True, help="folder that the train step wrote")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder that the evaluate step wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for registration.json")
    parser.add_argument(
        "--ledger",
        default="workspace/ledger",
        help="record of each change of the champion, folder or s3://bucket/prefix; '' for none (default: %(default)s)",
    )
    sys.exit(run_step(parser, _run))
