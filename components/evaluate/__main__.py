"""`python -m components.evaluate`: compare the challenger with the other candidates, and decide."""

import argparse
import sys
from pathlib import Path

from components.artifacts import read_means, read_summary, read_verdict
from components.cli import run_step, step_parser
from components.comparison import gain_lines, text_table
from components.config import Params
from components.evaluate.step import CHECKS, evaluate
from components.stores.data_version import data_version
from components.stores.dataset import summary_lines
from components.tracking.runs import step_run


def _run(options: argparse.Namespace, params: Params) -> None:
    with step_run("evaluate", params.evaluate, data_version(options.dataset)) as run:
        evaluate(
            options.dataset,
            options.warmup,
            options.challenger,
            options.output,
            params=params.evaluate,
            run=run,
            docs=options.docs,
            ledger=options.ledger,
            remote=options.remote,
        )
    verdict = read_verdict(options.output)
    print(text_table(read_means(options.output)))
    print("", *gain_lines(verdict.gains, verdict.confidence), sep="\n")
    print(f"\n{verdict.verdict}: {verdict.summary}", *verdict.reasons, sep="\n  ")
    print(f"report: {options.output / 'report.html'}")
    lists, checks = options.output / "data.json", options.output / CHECKS
    print(*summary_lines(read_summary(options.output), lists, checks), sep="\n")


if __name__ == "__main__":
    parser = step_parser("evaluate", "Compare bicubic, warm-up, challenger and champion on held-out photographs.")
    parser.add_argument("--dataset", type=Path, required=True, help="folder that ingest wrote")
    parser.add_argument("--docs", type=Path, help="folder for pages that ingest wrote; the page of the checks is kept")
    parser.add_argument("--warmup", type=Path, required=True, help="folder that the warm-up step wrote")
    parser.add_argument("--challenger", type=Path, required=True, help="folder that the train step wrote")
    parser.add_argument("--ledger", default="workspace/ledger", help="knows the anchor; '' for none (%(default)s)")
    parser.add_argument("--remote", default="", help="DVC remote that has the anchor; none if empty")
    parser.add_argument("--output", type=Path, required=True, help="folder for the comparison")
    sys.exit(run_step(parser, _run))
