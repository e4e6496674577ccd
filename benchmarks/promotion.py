"""Count how often the gate promotes a repeated training, and how often one that is really better.

`python -m benchmarks.promotion --folder promotion --params params/compact.yaml --set train.iterations=100` calibrates
with some seeds, trains with many others, and asks of each ordered pair whether one would replace the other as champion.
Then it asks whether they would replace champions that a worse start gave (the same start with noise in its weights),
and whether trainings of four times as many iterations would replace them. A second call goes on where one ended.
"""

import argparse
import os
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from tabulate import tabulate

from bebygan.networks.naming import load_generator, save_generator
from components.artifacts import Candidate, Means
from components.checkout import in_checkout
from components.cli import add_params_arguments, read_params, report_errors
from components.comparison import METRICS
from components.config import EvaluateParams, Metric, Params
from components.evaluate.evidence import Table, gains_of
from components.evaluate.step import objective_of
from components.evaluate.verdict import Measured, judge
from components.progress import WATCHER, say
from pipelines.calibration import WEIGHTS, measured, measured_start, prepare, seeded, trained, training_noise

Rows = Mapping[Candidate, pd.DataFrame]
"""Metrics by photograph."""
WEAKER = "weaker"
"""Folder of the worse start."""
LONGER = 4
"""Times as many iterations."""


def failed(
    floors: Rows,
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    noise: Mapping[Metric, float],
    *,
    params: EvaluateParams,
    warmup: Path,
) -> list[str]:
    """Return the metrics for which a challenger would not replace a champion; [] if it would.

    Args:
        floors: bicubic and the start.
        champion: measured on the same photographs.
        challenger: measured on the same photographs.
        noise: see `judge`.
        params: of evaluate.
        warmup: weights of the start.
    """
    rows = {**floors, "champion": champion, "challenger": challenger}
    values: dict[Candidate, Table] = {name: each[list(METRICS)].to_numpy() for name, each in rows.items()}
    means: Means = {name: {metric: float(each[metric].mean()) for metric in METRICS} for name, each in rows.items()}
    opponents = [name for name in rows if name != "challenger"]
    known = Measured(
        means=means,
        gains=gains_of(values, opponents, params.confidence),
        photographs=len(challenger),
        objective=objective_of(warmup, means)[0],
    )
    recommendation, reasons = judge(known, params.thresholds, params.confidence, noise)
    # A metric may fail beside several candidates.
    found = {reason.removeprefix("failed: ").split()[0] for reason in reasons if reason.startswith("failed: ")}
    return [] if recommendation == "promote" else sorted(found)


def _start_worker(threads: int, benchmark: int) -> None:
    def watch() -> None:
        while os.getppid() == benchmark:
            time.sleep(1)
        os._exit(1)

    # Workers end at once on Ctrl-C and with the benchmark; finished trainings and checkpoints are on the disk.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
    os.environ[WATCHER] = os.devnull
    torch.set_num_threads(threads)


Training = tuple[Params, str]
"""Parameters, and the folder with the generator to start from."""


def _trained_and_measured(folder: Path, training: Training) -> pd.DataFrame:
    params, start = training
    return measured(folder, trained(folder, params.train, start), params.evaluate)


def weaken(start: Path, weaker: Path, noise: float) -> None:
    """Write a generator with noise in its weights: each is multiplied by a normal value around 1."""
    generator, random = load_generator(start), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in generator.parameters():
            weights.mul_(1 + noise * torch.randn(weights.shape, generator=random))
    weaker.parent.mkdir(exist_ok=True)
    save_generator(generator, weaker)


def _in_workers(folder: Path, trainings: Sequence[Training], workers: int) -> Iterator[tuple[int, pd.DataFrame]]:
    """Train and measure in several processes; yield the number of a training and its metrics when it is done."""
    threads = max(1, torch.get_num_threads() // workers)
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (threads, os.getpid())) as pool:
        futures: dict[Future[pd.DataFrame], int] = {
            pool.submit(_trained_and_measured, folder, each): number for number, each in enumerate(trainings)
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def tables_of(folder: Path, trainings: Sequence[Training], workers: int) -> list[pd.DataFrame]:
    """Return the metrics of each training by photograph, and print a line for each that is done."""
    started, tables = time.monotonic(), {}
    for number, table in _in_workers(folder, trainings, workers):
        tables[number] = table
        (params, start), seconds, means = trainings[number], time.monotonic() - started, table.mean()
        say(
            f"{len(tables)} of {len(trainings)} in {seconds:.0f} s, "
            f"{seconds / len(tables) * (len(trainings) - len(tables)):.0f} s to go: "
            f"{start}, {params.train.iterations} iterations, seed {params.train.seed}, "
            f"LPIPS {means['lpips']:.4f}, PSNR-Y {means['psnr_y']:.2f}, LR-PSNR {means['lr_psnr']:.2f}"
        )
    return [tables[number] for number in range(len(trainings))]


def run(options: argparse.Namespace) -> None:
    """Train, measure and print a Markdown table."""
    params: Params = read_params(options)
    folder: Path = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    prepare(options.source, folder, params)
    weaken(folder / "warmup" / WEIGHTS, folder / WEAKER / WEIGHTS, options.noise)
    longer = replace(params, train=replace(params.train, iterations=LONGER * params.train.iterations))
    groups: dict[str, list[Training]] = {
        "calibration": [(each, "warmup") for each in seeded(params, range(1, options.calibration + 1))],
        "repeated": [(each, "warmup") for each in seeded(params, range(101, 101 + options.repeats))],
        "of a worse start": [(each, WEAKER) for each in seeded(params, range(201, 201 + options.planted))],
        "trained longer": [(each, "warmup") for each in seeded(longer, range(301, 301 + options.longer))],
    }
    floors, warmup = measured_start(folder, params.evaluate), folder / "warmup" / WEIGHTS
    found = iter(tables_of(folder, [each for group in groups.values() for each in group], options.workers))
    tables = {name: [next(found) for _ in group] for name, group in groups.items()}

    def noise_without(pair: Sequence[pd.DataFrame]) -> dict[Metric, float]:
        known = tables["calibration"] or [each for each in tables["repeated"] if all(each is not one for one in pair)]
        return training_noise(pd.DataFrame([table.mean() for table in known]), params.evaluate.confidence)

    gains = ", ".join(f"{metric} {gain:.4f}" for metric, gain in noise_without(()).items())
    print(
        f"\n{len(floors['bicubic'])} held-out photographs, {params.train.iterations} iterations; "
        f"noise of {options.calibration or options.repeats} seeds: {gains}\n"
    )
    rows, whys = [], []
    for gate in ("photographs alone", "and training noise"):
        for champions, challengers in (
            ("repeated", "repeated"), ("of a worse start", "repeated"), ("repeated", "trained longer")
        ):  # fmt: skip
            promoted, why = [], Counter[str]()
            for champion in tables[champions]:
                others = [each for each in tables[challengers] if each is not champion]
                failures = [
                    failed(
                        floors, champion, each, {} if gate == "photographs alone" else noise_without((champion, each)),
                        params=params.evaluate, warmup=warmup,
                    )
                    for each in others
                ]  # fmt: skip
                promoted.append(failures.count([]))
                why.update(metric for each in failures for metric in each)
            if not promoted or not others:
                continue
            pairs = len(others) * len(promoted)
            numbers = [f"{each:g}" for each in (statistics.median(promoted), max(promoted), min(promoted))]
            share = f"{sum(promoted) / pairs:.1%}"
            rows.append([gate, champions, len(promoted), challengers, len(others), *numbers, share])
            failures_of = ", ".join(f"{name} {n / pairs:.0%}" for name, n in why.most_common())
            whys.append(f"{gate}, {challengers} over {champions}: {failures_of}")
    headings = ["gate", "champion", "number", "challenger", "number", "promoted, median", "most", "least", "all pairs"]
    print(tabulate(rows, headings, tablefmt="github"))
    print("\nShare of the pairs in which a metric failed:", *whys, sep="\n- ")
    print("\nMeans over the photographs, and their standard deviation between trainings:")
    for name, each in {"start": [floors["warmup"]], **tables}.items():
        if not each:
            continue
        of = pd.DataFrame([table.mean() for table in each])
        print(f"- {name}: " + ", ".join(f"{metric} {of[metric].mean():.4f} ± {of[metric].std():.4f}" for metric in of))


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.promotion", description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for everything that is made; it may be kept")
    parser.add_argument("--source", default=str(in_checkout("data/sample")), help="photographs (default: %(default)s)")
    parser.add_argument(
        "--calibration",
        type=int,
        default=8,
        help="seeds that the noise is estimated from; 0: from the repeats beside each pair (default: %(default)s)",
    )
    parser.add_argument("--repeats", type=int, default=40, help="trainings that differ in the seed alone")
    parser.add_argument("--planted", type=int, default=10, help="champions that a worse start gave")
    parser.add_argument("--longer", type=int, default=0, help="challengers of four times as many iterations")
    parser.add_argument("--noise", type=float, default=0.2, help="of that start's weights (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: %(default)s)")
    add_params_arguments(parser)
    options = parser.parse_args(arguments)
    return report_errors(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
