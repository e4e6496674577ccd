"""What makes and what uses each thing that one part hands to another.

All functions work in the folder that `world` made, which is the working folder, and in a process of their own. What
`use` returns is the same whenever the thing is: it covers all that the thing decides.
"""

import contextlib
import io
import json
import os
import re
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from dvc.repo import Repo
from mlflow import MlflowClient
from mlflow.entities import Metric

from bebygan.files import checksums, files_in, json_digest, sha256_of
from bebygan.imaging.shards import PATCH_SPLITS, read_patches
from bebygan.networks.weights import digest, read_state
from bebygan.pretrained import weights_file
from components.artifacts import Registration
from components.config import Params, load_params, to_yaml
from components.detect.step import decide
from components.evaluate.step import evaluate
from components.identify import job_here
from components.ingest.step import ingest
from components.job import Job
from components.outputs import record_digest
from components.patches.step import make_patches
from components.register.step import register
from components.stores.data_version import data_version, fetch, push
from components.stores.dataset import photographs_of
from components.tracking.client import mlflow_client
from components.tracking.delivery import Delivery
from components.tracking.ledger import entries
from components.tracking.registry import fetched, find_version
from components.tracking.runs import step_run
from components.train.step import prepared, train
from components.training import job_of
from components.warmup.step import warm_up
from pipelines import cli
from pipelines.local.run import Outcome, _check_cache, publish

WORKSPACE, OLDER = Path("workspace"), Path("older")
REMOTE, LEDGER = WORKSPACE / "dvc-remote", WORKSPACE / "ledger"
SOURCE = Path("photographs")
MODEL = "bebygan"


def scratch(name: str) -> Path:
    """A place outside of the folder."""
    return Path(tempfile.gettempdir()) / "scratch" / name


def params() -> Params:
    return load_params(Path("params.yaml"))


def output(step: str, name: str) -> Path:
    """The folder that a step of the finished run wrote."""
    [found] = (WORKSPACE / "pipeline").glob(f"*/{step}/{name}")
    return found


def of_folder(folder: Path) -> str:
    return json_digest(checksums(folder, files_in(folder)))


def command(*words: str) -> str:
    """Run `bebygan` and return what it prints; its exit code and its line about an error are those of this process."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = cli.main([*words, "--params", "params.yaml"])
    if code:
        raise SystemExit(code)
    return out.getvalue()


def run_again() -> str:
    """`bebygan run` when nothing changed: all that it prints, and the page that it names."""
    told = command("run", "--source", str(SOURCE))
    if not told.startswith("nothing to do"):
        raise AssertionError(told)
    return told.replace(" (restored from MLflow)", "") + sha256_of(WORKSPACE / "report" / "report.html")


def logged(step: str, group: object, version: str | None = None) -> Any:
    return step_run(step, group, version)


def copy_slowly(source: Path, target: Path) -> None:
    """Copy as `cp` does over a slow line, and end as it does on a full or read-only disk."""
    try:
        with source.open("rb") as original, target.open("wb", buffering=0) as copy:
            while block := original.read(1024):
                copy.write(block)
                time.sleep(0.002)
    except OSError:
        sys.exit(1)


def _print_decision() -> Job:
    """Print what `bebygan run` prints first."""
    job = job_here(params(), str(SOURCE))
    decision = decide(job)
    print(f"{decision.action}: {decision.reason}")
    return job


def read_source() -> Any:
    job = _print_decision()
    report = ingest(str(SOURCE), scratch("dataset"), scratch("docs"), params().ingest)
    return job.source_version, report.data_version


def make_dataset() -> None:
    ingest(str(SOURCE), output("ingest", "dataset"), output("ingest", "docs"), params().ingest)


def read_dataset() -> Any:
    dataset = output("ingest", "dataset")
    make_patches(dataset, scratch("patches"), params().patches)
    return data_version(dataset), of_folder(scratch("patches"))


def _dvc(*words: str) -> int:
    from dvc.cli import main

    with contextlib.chdir("dvc"):
        return int(main([*words, "--quiet"]))


def add_to_dvc() -> None:
    if not Path("dvc/dataset").exists():
        shutil.copytree(output("ingest", "dataset"), "dvc/dataset")
    if code := _dvc("add", "dataset"):
        raise SystemExit(code)


def read_from_dvc() -> Any:
    shutil.rmtree("dvc/dataset", ignore_errors=True)
    _dvc("checkout")
    make_patches(Path("dvc/dataset"), scratch("patches"), params().patches)
    return of_folder(scratch("patches"))


def send_dataset() -> None:
    push(output("ingest", "dataset"), str(REMOTE))


def fetch_dataset() -> Any:
    version = data_version(output("ingest", "dataset"))
    fetch(version, str(REMOTE), scratch("dataset"))
    return data_version(scratch("dataset"))


def make_shards() -> None:
    make_patches(output("ingest", "dataset"), output("patches", "shards"), params().patches)


def read_shards() -> Any:
    patches = output("patches", "shards")
    job = job_of("train", params().train, patches, {})
    opened = [read_patches(patches, split) for split in PATCH_SPLITS]
    pixels = [np.concatenate([image.reshape(-1) for image in each.hr + each.lr]).tobytes() for each in opened]
    found = [(sha256(content).hexdigest(), len(each)) for content, each in zip(pixels, opened, strict=True)]
    return job["data_version"], job["patches"], found


def make_start() -> None:
    warm_up(
        output("patches", "shards"), output("warmup", "generator"), scratch("checkpoints"),
        params=params().warmup, track=lambda *_: None,
    )  # fmt: skip


def read_start() -> Any:
    state, _ = prepared(output("warmup", "generator") / "generator.safetensors", params().train)
    return digest(state.generator.state_dict())


def make_cached() -> None:
    make_shards()
    record_digest(output("patches", "shards"))


def _make_if_missing(made: Path, make: Callable[[], None]) -> None:
    _check_cache(WORKSPACE / "cache", WORKSPACE / "pipeline", bypass=False)
    if not made.exists():
        made.mkdir()
        make()


def read_cached() -> Any:
    """What the next `bebygan run` does with the outputs of earlier ones: it checks them, and makes what is missing."""
    _make_if_missing(output("patches", "shards"), make_cached)
    return read_shards()


def read_start_of_run() -> Any:
    """What the next `bebygan run` does with the start of an earlier one."""
    _make_if_missing(output("warmup", "generator"), make_start)
    return read_start()


def train_to(target: Path, checkpoints: Path) -> str:
    train(
        output("patches", "shards"), output("warmup", "generator"), target, checkpoints,
        params=params().train, track=lambda *_: None,
    )  # fmt: skip
    return sha256_of(target / "generator.safetensors")


def resume() -> str:
    return train_to(scratch("challenger"), WORKSPACE / "checkpoints")


def make_challenger() -> None:
    train_to(output("train", "challenger"), scratch("checkpoints"))


def evaluate_to(target: Path, challenger: Path) -> None:
    dataset = output("ingest", "dataset")
    with logged("evaluate", params().evaluate, data_version(dataset)) as run:
        evaluate(
            dataset, output("warmup", "generator"), challenger, target,
            params=params().evaluate, run=run, docs=output("ingest", "docs"),
        )  # fmt: skip


def judge() -> Any:
    evaluate_to(scratch("evaluation"), output("train", "challenger"))
    found = json.loads((scratch("evaluation") / "verdict.json").read_text())
    return {name: found[name] for name in ("verdict", "reasons", "challenger_sha256", "measured_sha256", "health")}


def make_evaluation() -> None:
    evaluate_to(output("evaluate", "evaluation"), output("train", "challenger"))


def evaluation() -> list[str]:
    """What is decided; the pictures are made from it."""
    names = ("metrics.json", "per_photograph.csv", "verdict.json")
    return [sha256_of(output("evaluate", "evaluation") / name) for name in names]


def _register(challenger: Path, evaluation: Path) -> Registration:
    manual = load_params(Path("params.yaml"), ["register.promotion=manual"]).register
    with logged("register", manual) as run:
        return register(challenger, evaluation, scratch("registration"), params=manual, run=run, ledger=str(LEDGER))


def register_again() -> Registration:
    return _register(output("train", "challenger"), output("evaluate", "evaluation"))


def make_report() -> None:
    publish(Outcome(OLDER / "finished", output("register", "registration")), WORKSPACE)


def prepare() -> None:
    """Make what other runs would have left: other photographs, other weights, another verdict, a second version."""
    OLDER.mkdir()
    for path in (WORKSPACE / "mlflow.db", LEDGER, Path("params.yaml"), SOURCE):
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, OLDER / path.name)
    shutil.copytree(output("evaluate", "evaluation"), OLDER / "finished")
    fewer = scratch("photographs")
    shutil.copytree(SOURCE, fewer)
    (fewer / photographs_of(output("ingest", "dataset"), ("train",))["source"].iloc[0]).unlink()
    ingest(str(fewer), OLDER / "dataset", scratch("docs"), params().ingest)
    make_patches(OLDER / "dataset", OLDER / "shards", params().patches)
    record_digest(OLDER / "shards")
    shards, ignore = output("patches", "shards"), lambda *_: None
    other = load_params(Path("params.yaml"), ["warmup.seed=2", "train.seed=2"])
    warm_up(shards, OLDER / "generator", scratch("checkpoints"), params=other.warmup, track=ignore)
    train(shards, OLDER / "generator", OLDER / "challenger", scratch("checkpoints"), params=other.train, track=ignore)
    evaluate_to(OLDER / "evaluation", OLDER / "challenger")
    register_older()
    promote_second()
    make_evaluation()
    register_again()
    _prepare_dvc()
    (OLDER / "unfinished").write_text(mlflow_client().create_run("0").info.run_id)
    keep_values()
    _prepare_weights()


def _prepare_dvc() -> None:
    Path("dvc").mkdir()
    with contextlib.chdir("dvc"):
        Repo.init(no_scm=True).close()
    add_to_dvc()


def _prepare_weights() -> None:
    kept, other = weights_file("lpips-alex"), weights_file("alexnet")
    Path("given").mkdir()
    shutil.copy(kept, "given")
    read_weights()
    shutil.copy(other, fetched_file().with_name("older.safetensors"))


def register_older() -> None:
    """Register a second version."""
    _register(OLDER / "challenger", OLDER / "evaluation")


def promote_second() -> None:
    command("promote", "2", "--reason", "a test")


def forget_second() -> None:
    """Go back to the time before the second version."""
    shutil.copy(OLDER / "mlflow.db", WORKSPACE)


def forget_promotion() -> None:
    shutil.rmtree(LEDGER)
    shutil.copytree(OLDER / "ledger", LEDGER)
    with contextlib.closing(sqlite3.connect(WORKSPACE / "mlflow.db")) as database, database:
        database.execute("DELETE FROM registered_model_tags")
        database.execute("UPDATE registered_model_aliases SET version = 1 WHERE alias = 'champion'")
        database.execute("DELETE FROM registered_model_aliases WHERE alias = 'previous'")
        database.execute("DELETE FROM model_version_tags WHERE version = 2 AND key IN ('promoted', 'ledger_entry')")


def read_model() -> Any:
    with fetched(find_version("2", MODEL)) as folder:
        return of_folder(folder / "artifacts"), digest(read_state(folder / "artifacts" / "generator.safetensors"))


def weights_of_second() -> list[Path]:
    wanted = sha256_of(OLDER / "challenger" / "generator.safetensors")
    stored = (WORKSPACE / "mlartifacts").glob("models/*/artifacts/artifacts/generator.safetensors")
    [weights] = [path for path in stored if sha256_of(path) == wanted]
    return [weights, weights.parents[1] / "model_code.py"]


def champion_state() -> Any:
    """What a move of the champion leaves."""
    found = mlflow_client().get_registered_model(MODEL)
    tags = mlflow_client().get_model_version(MODEL, "2").tags
    moves = [(move.number, move.version, move.previous) for move in entries(str(LEDGER), MODEL)]
    head = found.tags["ledger_head"].partition(" ")[0]
    # The tag ledger_entry repeats what `promoted` says, and may be missing after a stop between the two.
    return dict(found.aliases), moves, tags["promoted"], head


def verify_first() -> list[str]:
    told = re.sub(r" \([\d.]+ s\)", "", command("verify", "1"))
    print(told)
    return sorted(told.splitlines())


def read_database() -> str:
    """What `bebygan run` would do, and if that is nothing, what it prints then."""
    told = command("run", "--dry-run", "--source", str(SOURCE)).splitlines()[0]
    print(told)
    return run_again() if told.startswith("nothing to do") else told


def read_params() -> str:
    _print_decision()
    return to_yaml(params())


def fetched_file() -> Path:
    return Path("fetched/weights/lpips-alex.safetensors")


def read_weights() -> str:
    os.environ |= {"BEBYGAN_CACHE": "fetched", "BEBYGAN_WEIGHTS": "given", "BEBYGAN_WEIGHTS_SOURCES": "folder"}
    return digest(read_state(weights_file("lpips-alex")))


def _unfinished() -> str:
    return (OLDER / "unfinished").read_text()


def keep_values() -> None:
    """Log values of a run while the server is unreachable."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    delivery = Delivery(MlflowClient("http://127.0.0.1:9"), _unfinished(), WORKSPACE / "untracked")
    for step in range(5):
        delivery.put([Metric(name, step + 0.25, 1000 + step, step) for name in ("loss", "psnr_y")])
        time.sleep(0.02)
    delivery.close("FINISHED", 0.1)


def forget_values() -> None:
    for path in (WORKSPACE / "untracked").iterdir():
        path.unlink()


def kept_values() -> list[Any]:
    found = [json.loads(line) for path in (WORKSPACE / "untracked").iterdir() for line in path.read_text().splitlines()]
    return sorted({(each.get("name", ""), each.get("value", 0), each.get("step", 0)) for each in found})


def send_values() -> Any:
    """What the next run does with values that an earlier one left."""
    with logged("evaluate", params().evaluate):
        pass
    run = mlflow_client().get_run(_unfinished())
    if run.info.status == "RUNNING":
        print("in MLflow the run has not ended")
    history = [mlflow_client().get_metric_history(_unfinished(), name) for name in ("loss", "psnr_y")]
    return run.info.status, [sorted((each.step, each.value) for each in values) for values in history]
