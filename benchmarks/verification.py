"""`python -m benchmarks.verification --workspace FOLDER`: what the digests of a finished run cost.

It repeats each check that the run made, and each that a run with nothing to do makes, and times it.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from bebygan.files import sha256_of
from bebygan.imaging.shards import read_patches
from bebygan.networks.weights import read_state
from components.artifacts import check_sealed, read_verdict
from components.cli import report_errors
from components.outputs import DIGEST, damaged, record_digest
from components.stores.data_version import check_complete, data_version
from components.stores.source import source_version
from components.tracking.address import use_registry
from components.tracking.client import mlflow_client
from components.tracking.registry import champion, check_ledger, verify
from components.tracking.runs import ended_runs

_MEGABYTES = 512


Checks = Mapping[str, Sequence[Callable[[], object]]]
"""Checks by name; one that is made several times is there as often."""


def seconds_of(work: Sequence[Callable[[], object]], times: int = 3) -> float:
    """Return the shortest time that functions take together, in seconds of a processor."""
    found = []
    for _ in range(times):
        started = time.process_time()
        for each in work:
            each()
        found.append(time.process_time() - started)
    return min(found)


def hashing_rate() -> float:
    """Return how many GB of a file are hashed in a second of a processor."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(os.urandom(_MEGABYTES << 20))
        return (_MEGABYTES << 20) / seconds_of([partial(sha256_of, path)]) / 1e9


def checks_of_a_run(workspace: Path) -> Checks:
    """Return the checks that a run of all steps makes, each as often as it does."""
    outputs = workspace / "pipeline"
    [dataset], [patches], [start], [challenger], [evaluation] = (
        list(outputs.glob(f"*/{name}"))[-1:]
        for name in ("ingest/dataset", "patches/shards", "warmup/generator", "train/challenger", "evaluate/evaluation")
    )
    weights = [folder / "generator.safetensors" for folder in (start, challenger)]
    recorded = [path.with_suffix("") for path in outputs.glob(f"*/*/*{DIGEST}")]
    return {
        "dataset, in patches and evaluate": [partial(check_sealed, dataset, "ingest")] * 2,
        "data version, in ingest, patches and evaluate": [partial(data_version, dataset)] * 3,
        "patches, in warmup and train": [partial(read_patches, patches, "train")] * 2,
        "weights, in train, evaluate and register": [partial(read_state, path) for path in weights] * 2,
        "history, in evaluate": [partial(check_sealed, challenger, "train")],
        "verdict, in register": [partial(read_verdict, evaluation)],
        "digests of outputs, written": [partial(record_digest, path) for path in recorded],
        "digests of outputs, compared": [lambda: list(damaged(outputs.glob(f"*/*/*{DIGEST}")))],
    }


def checks_with_nothing_to_do(workspace: Path, source: str, model: str) -> Checks:
    """Return the checks of a run with nothing to do."""
    reigning = champion(model)
    [finished, *_] = ended_runs({"step": "retrain"}, "FINISHED")
    version = mlflow_client().get_run(finished).data.tags["data_version"]
    remote, ledger = str(workspace / "dvc-remote"), str(workspace / "ledger")
    return {
        "photographs": [partial(source_version, source)],
        "champion": [partial(verify, reigning)] if reigning else [],
        "ledger": [partial(check_ledger, ledger, model)],
        "data version in the remote": [partial(check_complete, version, remote)],
        "report": [partial(check_sealed, workspace / "report", "evaluate")],
    }


def _print(title: str, checks: Checks) -> float:
    total = 0.0
    print(title)
    for name, work in checks.items():
        seconds = seconds_of(work)
        total += seconds
        print(f"  {name}: {seconds:.3f} s")
    return total


def _measure(options: argparse.Namespace) -> None:
    workspace = options.workspace.resolve()
    use_registry(workspace)
    [finished, *_] = ended_runs({"step": "retrain"}, "FINISHED")
    info = mlflow_client().get_run(finished).info
    seconds = (info.end_time - info.start_time) / 1000
    spent = _print(f"a run that took {seconds:.0f} s:", checks_of_a_run(workspace))
    print(f"  together {spent:.2f} s, {spent / seconds:.2%} of the run")
    spent = _print("nothing to do:", checks_with_nothing_to_do(workspace, options.source, options.model))
    print(f"  together {spent:.2f} s")
    print(f"hashing: {hashing_rate():.2f} GB/s")


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.verification", description=__doc__)
    parser.add_argument("--workspace", type=Path, default=Path("workspace"), help="of a finished run (%(default)s)")
    parser.add_argument("--source", default="data/sample", help="photographs of the run (%(default)s)")
    parser.add_argument("--model", default="bebygan", help="registered model (%(default)s)")
    return report_errors(lambda: _measure(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
