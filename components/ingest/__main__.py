"""`python -m components.ingest`: make a dataset of photographs."""

import argparse
import sys
from pathlib import Path

from components.cli import run_step, step_parser
from components.config import Params
from components.ingest.step import ingest, tell


def _run(options: argparse.Namespace, params: Params) -> None:
    report = ingest(options.source, options.dataset, options.docs, params.ingest, options.remote)
    tell(report, options.dataset, options.docs)


if __name__ == "__main__":
    parser = step_parser("ingest", "Make a dataset of the photographs in a folder or a bucket, and validate it.")
    parser.add_argument("--source", required=True, help="a folder, or s3://bucket/prefix (AWS_* variables)")
    parser.add_argument("--dataset", type=Path, required=True, help="folder for the dataset")
    parser.add_argument("--docs", type=Path, required=True, help="folder for the validation pages")
    parser.add_argument("--remote", help="DVC remote to push the dataset to: a folder, or s3://bucket/prefix")
    sys.exit(run_step(parser, _run))
