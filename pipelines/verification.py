"""`bebygan verify`: is a version what its records say? It asks registry, ledger and DVC remote, and nothing else."""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from bebygan.differences import differences
from bebygan.errors import ConfigError, DataError, WeightsError, error_of
from bebygan.files import sha256_of
from bebygan.networks.weights import metadata_of
from bebygan.registered_model import WEIGHTS
from components.cli import end_quickly
from components.config import digest, flatten
from components.preflight.step import Check, preflight
from components.progress import say
from components.stores.data_version import check_bytes, fetch
from components.tracking.address import database_uri
from components.tracking.client import tracker
from components.tracking.history import EarlierRun, earlier_run
from components.tracking.ledger import entries
from components.tracking.provenance import provenance
from components.tracking.registry import (
    ModelVersion,
    check_ledger,
    fetched,
    find_version,
    metric_tags,
    write_start,
)
from components.tracking.runs import PARAMETERS, UNSENT
from pipelines.lineage import evidence, remote_of
from pipelines.models import ledger_of, model_of

_SECONDS = 3600.0
_OF_A_RUN = ("BEBYGAN_PARENT_RUN", "KFP_RUN_ID", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_EXPERIMENT_NAME")
"""Variables that lead into a run of another tracker."""
_NOT_RECORDED = "the release that made this version did not record them: not verified"


def _weights(version: ModelVersion) -> str:
    """Check weights and code, and that the tags tell what is in the metadata of the weights."""
    with fetched(version) as model:
        metadata = metadata_of(model / WEIGHTS)
    known = {"data_version": version.tags.get("data_version"), "params": version.tags.get("train.params")}
    for name, value in known.items():
        if value and metadata.get(name, value) != value:
            raise WeightsError(
                f"the weights of {version.uri} were made with {name} {metadata[name]}, but {value} is registered"
            )
    missing = [name for name in ("weights_sha256", "code_sha256") if name not in version.tags]
    return f"as registered{f', but {missing[0]} was not recorded' if missing else ''}"


def _photographs(version: ModelVersion, remote: str) -> str:
    """Check the photographs in the remote."""
    data = version.tags.get("data_version")
    if data is None:
        raise DataError(f"{version.uri} has lost its tag data_version: restore MLflow's database from a backup")
    return f"{check_bytes(data, remote)} files of {data}, as registered"


def _ledger(version: ModelVersion, ledger: str) -> str:
    """Check the chain of the ledger, and that its moves are about these weights."""
    check_ledger(ledger, version.model)
    moves = [move for move in entries(ledger, version.model) if move.version == version.version]
    if any(move.weights_sha256 != version.tags.get("weights_sha256") for move in moves):
        raise DataError(f"the ledger {ledger} made other weights champion as version {version.version}")
    return f"unbroken; entries that make version {version.version} champion: {len(moves)}"


def _verdict(version: ModelVersion) -> str:
    """Check that the stored verdict and its figures are those that the version was registered with."""
    if (found := evidence(version)) is None:
        raise DataError(f"the run that judged {version.uri} is not in MLflow: restore it from a backup")
    verdict, means = found
    measured = {name: text for name, text in metric_tags(means["challenger"]).items() if name in version.tags}
    if changed := differences(measured, {name: version.tags[name] for name in measured}, 3):
        raise DataError(f"the metrics of {version.uri} were changed in MLflow: {', '.join(changed)}")
    if verdict.challenger_sha256 != version.tags.get("weights_sha256"):
        raise DataError(f"the verdict of {version.uri} is about other weights")
    if verdict.verdict != version.tags.get("verdict"):
        raise DataError(f"{version.uri} is tagged {version.tags.get('verdict')}, but its verdict is {verdict.verdict}")
    return f"as registered: {verdict.verdict}"


def stored_parameters(version: ModelVersion, run: EarlierRun) -> str | None:
    """Return the parameters that the pipeline's run stored, in YAML, or None if the release that ran it did not.

    Raises:
        DataError: they are not those that the version was registered with.
        ServiceError: the server is unreachable or refuses.
    """
    with (
        TemporaryDirectory(prefix="parameters-") as scratch,
        tracker(f"fetching the parameters of run {run.run_id}") as client,
    ):
        if PARAMETERS not in {file.path for file in client.list_artifacts(run.run_id)}:
            return None
        content = Path(client.download_artifacts(run.run_id, PARAMETERS, scratch)).read_bytes()
    if hashlib.sha256(content).hexdigest() != version.tags.get("params_hash"):
        raise DataError(
            f"{PARAMETERS} of run {run.run_id} is not what {version.uri} was registered with: restore it from a backup"
        )
    return content.decode()


def _parameters(version: ModelVersion) -> str:
    """Check the stored parameters, those that MLflow shows, and the hash in the weights."""
    run = earlier_run(version.tags.get("parent_run"))
    if run is None or (stored := stored_parameters(version, run)) is None:
        return _NOT_RECORDED
    # Not read as `Params`: other releases have other parameters.
    params = yaml.safe_load(stored)
    expected = {name: str(value) for name, value in flatten(params)}
    if changed := differences(expected, run.params, 3):
        raise DataError(f"the parameters of run {run.run_id} were changed in MLflow: {', '.join(changed)}")
    if version.tags.get("train.params") not in (None, digest(params["train"])):
        raise DataError(f"the weights of {version.uri} were trained with other parameters than run {run.run_id} names")
    return f"{len(expected)}, as registered"


def _step(folder: Path, step: str, *arguments: str) -> None:
    """Run a step as its own process, with a tracker of its own, and show what it says.

    Raises:
        BebyganError: the one that the step ended with.
    """
    words = [sys.executable, "-m", f"components.{step}", "--params", str(folder / PARAMETERS), *arguments]
    own = {"MLFLOW_TRACKING_URI": database_uri(folder / "mlflow.db"), "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: text for name, text in os.environ.items() if name not in _OF_A_RUN}
    root = str(Path(__file__).resolve().parents[1])
    environment = {**kept, **own, "PYTHONPATH": root, "PYTHONSAFEPATH": "1", UNSENT: str(folder / "untracked")}
    say(f"{step} ...")
    ended = subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, check=False)
    if ended.returncode:
        raise error_of(ended.returncode, f"{step} failed; the lines above say why")


def _fetch_start(start: ModelVersion, version: ModelVersion, folder: Path) -> None:
    """Fetch the version that a version continued; both digests of its weights are in the tags of the latter."""
    folder.mkdir()
    write_start(start, folder)
    for file in folder.iterdir():
        name = {"generator": "train.start", "discriminator": "train.start_discriminator"}[file.stem]
        if version.tags.get(name, found := sha256_of(file)) != found:
            raise WeightsError(f"{version.uri} continued other weights than {start.uri} has in {file.name}")


def retrain(version: ModelVersion, remote: str) -> str:
    """Train a version again from the photographs in the remote and its parameters, on the CPU, and compare the weights.

    Args:
        version: made by the code of this checkout, on a CPU, with the same release of torch.
        remote: DVC remote that has its data version.

    Returns:
        One line about the result.

    Raises:
        ConfigError: the parameters are not known, or code or torch are others than those that made it.
        WeightsError: the weights differ.
        BebyganError: a step failed, or the remote lacks the data version.
    """
    run = earlier_run(version.tags.get("parent_run"))
    stored = stored_parameters(version, run) if run else None
    if stored is None:
        raise ConfigError(f"{version.uri} cannot be trained again: the release that made it stored no {PARAMETERS}")
    here = provenance(yaml.safe_load(stored))
    for name in ("code_hash", "torch_version"):
        if here[name] != version.tags.get(name):
            raise ConfigError(
                f"{version.uri} was made with {name} {version.tags.get(name)}, here it is {here[name]}: check out git "
                f"commit {version.tags.get('git_sha', 'unknown')} and install its requirements.lock"
            )
    with TemporaryDirectory(prefix="retrain-") as scratch:
        folder = Path(scratch)
        (folder / PARAMETERS).write_text(stored, encoding="utf-8")
        fetch(version.tags["data_version"], remote, folder / "dataset")
        places = {name: str(folder / name) for name in ("dataset", "patches", "warmup", "challenger", "checkpoints")}
        _step(folder, "patches", "--dataset", places["dataset"], "--output", places["patches"])
        common = ("--patches", places["patches"], "--checkpoints", places["checkpoints"])
        if continued := version.tags.get("continued_from"):
            _fetch_start(find_version(continued, version.model), version, folder / "warmup")
        else:
            _step(folder, "warmup", *common, "--output", places["warmup"])
        _step(folder, "train", *common, "--warmup", places["warmup"], "--output", places["challenger"])
        found = sha256_of(folder / "challenger" / "generator.safetensors")
    if found != version.tags["weights_sha256"]:
        raise WeightsError(
            f"{version.uri} trained again gives weights with SHA-256 {found[:12]}..., registered is "
            f"{version.tags['weights_sha256'][:12]}...: it was made on another processor, on a GPU, with another "
            "number of threads (OMP_NUM_THREADS), or not like this"
        )
    return "trained again: the weights are equal, bit for bit"


def verify(options: argparse.Namespace) -> None:
    """Compare weights, code, parameters, verdict, photographs and ledger of a version with their recorded digests.

    Raises:
        BebyganError: a check failed; see `components.preflight.step.preflight`.
    """
    ledger, remote = ledger_of(options), remote_of(options)
    version = find_version(options.version, model_of(options))
    needed: dict[str, Callable[[], str]] = {
        "weights and code": partial(_weights, version),
        "parameters": partial(_parameters, version),
        "verdict": partial(_verdict, version),
        "photographs": partial(_photographs, version, remote),
        "ledger": partial(_ledger, version, ledger),
    }
    preflight([Check(name, attempt, _SECONDS) for name, attempt in needed.items()], report=print)
    if options.retrain:
        print(f"  {retrain(version, remote)}")
    print(f"{version.model} version {version.version} is what its records say")
    end_quickly()
