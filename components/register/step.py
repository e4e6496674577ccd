"""Register a challenger with its verdict, and make it champion if the verdict is to promote it."""

import importlib.metadata
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

import bebygan
from bebygan.errors import DataError, WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import metadata_of
from bebygan.registered_model import DISCRIMINATOR, MODEL_CODE, START, digests
from bebygan.registered_model import WEIGHTS as WEIGHTS_IN_MODEL
from components.artifacts import (
    Registration,
    Verdict,
    check_data_version,
    read_anchor,
    read_means,
    read_verdict,
    write_registration,
)
from components.comparison import MAIN, change, main_gains
from components.config import Metric, RegisterParams
from components.progress import say
from components.register.card import model_card
from components.register.clean_process import fault_of
from components.register.exports import store_exports
from components.register.promotion import may_promote, promote, settle
from components.tracking.client import mlflow, service_errors, uploading
from components.tracking.history import earlier_run
from components.tracking.provenance import UNKNOWN
from components.tracking.registry import (
    ANCHOR,
    ANCHOR_VALUE,
    PROMOTED,
    ROLLED_BACK,
    ModelVersion,
    all_versions,
    as_version,
    champion,
    metric_tags,
    verify,
    version_with_alias,
)
from components.tracking.runs import StepRun
from components.tracking.signatures import SIGNING_KEY, configured, sign

_log = logging.getLogger(__name__)
WEIGHTS = "generator.safetensors"
_TILE = 512
_FOLDER = Path(__file__).parent
_REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "torch")
_OPTIONS = mlflow.types.ParamSchema([mlflow.types.ParamSpec("tile", "long", _TILE)])


_OF_EVALUATE = ("params_hash", "seed")
"""Facts of evaluate's own run, which are not those of the model."""
_TWICE = ("code", "data_version", "seed", "step")
"""Metadata of the weights that other tags hold already."""


def _on_anchor(evaluation: Path) -> dict[str, str]:
    """Return the tags of the anchor, by which reports of later runs show this version."""
    anchor = read_anchor(evaluation)
    if anchor is None:
        return {}
    main = {name: value for name, value in anchor.means["challenger"].items() if name in MAIN}
    return {ANCHOR: anchor.data_version, **{f"{ANCHOR_VALUE}{name}": f"{value:.6g}" for name, value in main.items()}}


def _lineage(challenger: Path, evaluation: Path, verdict: Verdict, run: StepRun) -> dict[str, str]:
    """Return the tags of a version: provenance, verdict, metrics, and the metadata of the weights' file."""
    weights = challenger / WEIGHTS
    if not weights.is_file():
        raise DataError(f"{challenger} holds no {WEIGHTS}: run train first")
    if (digest := sha256_of(weights)) != verdict.challenger_sha256:
        raise DataError(f"the verdict in {evaluation} is about other weights than {weights}: run evaluate again")
    metadata = metadata_of(weights)
    pipeline = earlier_run(run.pipeline_run)
    params_hash = pipeline.tags.get("params_hash") if pipeline else None
    of_the_run = {"parent_run": run.pipeline_run, "params_hash": params_hash, "seed": metadata.get("seed")}
    facts = verdict.provenance.items()
    continued = all_versions(verdict.model, weights_sha256=metadata["start"]) if "start" in metadata else []
    return {
        **{name: fact for name, fact in facts if fact != UNKNOWN and name not in _OF_EVALUATE},
        **{name: fact for name, fact in of_the_run.items() if fact},
        **{f"train.{name}": text for name, text in metadata.items() if name not in _TWICE},
        **metric_tags(read_means(evaluation)["challenger"]),
        **({"continued_from": continued[0].version} if continued else {}),
        **_on_anchor(evaluation),
        "verdict": verdict.verdict,
        "reasons": "; ".join(verdict.reasons),
        "summary": verdict.summary,
        **{f"gain.{gain.opponent}.{gain.metric}": change(gain) for gain in main_gains(verdict.gains)},
        "verdict_sha256": sha256_of(evaluation / "verdict.json"),
        "compared_with_champion": verdict.champion or "none",
        "weights_sha256": digest,
        "register_run": run.run_id,
    }


def _sound(version: ModelVersion) -> bool:
    try:
        verify(version)
    except WeightsError as error:
        _log.warning("warning: %s; its weights are registered again", error)
        return False
    return True


def _registered_before(model: str, lineage: Mapping[str, str]) -> ModelVersion | None:
    """Return the champion if it has these weights, else a version with these weights and this verdict."""
    current = champion(model)
    if current and current.tags.get("weights_sha256") == lineage["weights_sha256"] and _sound(current):
        return current
    same = ("weights_sha256", "verdict_sha256")
    return next(filter(_sound, all_versions(model, **{name: lineage[name] for name in same})), None)


def _rolled_back(version: ModelVersion) -> bool:
    """Return whether a rollback removed these weights; say so."""
    for each in all_versions(version.model, weights_sha256=version.tags["weights_sha256"]):
        if told := each.tags.get(ROLLED_BACK):
            say(
                f"version {version.version} is not promoted: it has the weights of version {each.version}, which was "
                f"rolled back {told}; `bebygan promote {version.version}` promotes it"
            )
            return True
    return False


def _model_folder(folder: Path, weights: Path) -> Path:
    """Lay out the files of a model as MLflow stores them."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(bebygan.__file__).parent, folder / "code" / "bebygan", ignore=ignored)
    shutil.copyfile(_FOLDER / MODEL_CODE, folder / MODEL_CODE)
    (folder / WEIGHTS_IN_MODEL).parent.mkdir()
    shutil.copyfile(weights, folder / WEIGHTS_IN_MODEL)
    for name in (DISCRIMINATOR, START):
        if (beside := weights.with_name(Path(name).name)).is_file():
            shutil.copyfile(beside, folder / name)
    return folder


def _sign(logged: mlflow.models.model.ModelInfo, folder: Path, run: StepRun) -> None:
    """Sign all files of a logged model, if a key is configured."""
    if not configured(SIGNING_KEY):
        return
    model = Path(mlflow.artifacts.download_artifacts(logged.model_uri, dst_path=str(folder)))
    run.client.log_model_artifact(logged.model_id, str(sign(model)))


def _new_version(
    name: str, weights: Path, lineage: Mapping[str, str], run: StepRun, metrics: Mapping[Metric, float]
) -> ModelVersion:
    # Package indexes do not serve local builds such as 2.0+cpu.
    releases = {package: importlib.metadata.version(package).partition("+")[0] for package in _REQUIREMENTS}
    with tempfile.TemporaryDirectory(prefix="model-") as scratch, mlflow.start_run(run_id=run.run_id), uploading():
        model = _model_folder(Path(scratch), weights)
        expected = digests(model)
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(model / MODEL_CODE),
            # MLflow decodes %XX also in a plain path.
            artifacts={path.stem: path.as_uri() for path in (model / WEIGHTS_IN_MODEL).parent.iterdir()},
            model_config=expected,
            # A schema of the input would refuse all but one kind of image.
            signature=mlflow.models.ModelSignature(params=_OPTIONS),
            input_example=np.zeros((1, 8, 8, 3), np.uint8),
            pip_requirements=[f"{package}=={release}" for package, release in releases.items()],
            code_paths=[str(model / "code" / "bebygan")],
        )
        mlflow.log_metrics({str(name): value for name, value in metrics.items()}, model_id=logged.model_id)
        _sign(logged, Path(scratch) / "signed", run)
        return as_version(mlflow.register_model(logged.model_uri, name, tags={**lineage, **expected}))


def check_loads(version: ModelVersion, weights: Path) -> None:
    """Load a registered version in a clean process, with MLflow alone, and compare its output with that of `weights`.

    Raises:
        WeightsError: it does not load, runs this copy of the code instead of its own, or gives other pixels.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, 18, 21, 3), np.uint8)
    generator = load_generator(weights).eval()
    expected = np.stack([upscale_image(generator, image, tile=_TILE) for image in images])
    with tempfile.TemporaryDirectory(prefix="load-check-") as scratch:
        asked, answered = Path(scratch) / "images.npy", Path(scratch) / "result.npz"
        np.save(asked, images)
        if fault := fault_of(_FOLDER / "load_check.py", version.uri, asked, answered, folder=Path(scratch)):
            raise WeightsError(
                f"{version.uri} does not load in a clean process ({fault}): the champion stays as it was"
            )
        with np.load(answered) as arrays:
            pixels, origin = arrays["pixels"], Path(str(arrays["origin"]))
    if origin.resolve() == Path(bebygan.__file__).resolve():
        raise WeightsError(f"{version.uri} runs {origin} instead of the code in it: the champion stays as it was")
    if not np.array_equal(pixels, expected):
        raise WeightsError(f"{version.uri} gives other pixels than {weights}: the champion stays as it was")


def register(
    challenger: Path,
    evaluation: Path,
    output: Path,
    *,
    params: RegisterParams,
    run: StepRun,
    ledger: str = "",
    expected: str | None = None,
) -> Registration:
    """Register a challenger, and make it champion if the verdict is "promote" and promotion is automatic.

    A repeated call changes nothing, or completes an interrupted registration.

    Args:
        challenger: folder with generator.safetensors, and optionally discriminator.safetensors.
        evaluation: folder that the evaluate step wrote for this challenger.
        output: folder for registration.json, replaced as a whole.
        params: of the step.
        run: the run that the version belongs to.
        ledger: folder or s3://bucket/prefix that records each move of the alias champion; empty for none.
        expected: data version that the run ingested; None if it is not known.

    Raises:
        DataError: weights or verdict are missing, the verdict is about other weights or another data version, or its
            champion has changed.
        WeightsError: the registered model is damaged, does not load in a clean process, or gives other pixels.
        ServiceError: the registry, or the ledger's bucket, is unreachable or refuses access.
        StorageError: the output, or the ledger's folder, cannot be written.
    """
    verdict = read_verdict(evaluation)
    check_data_version(evaluation, verdict.data_version, expected, "evaluate")
    model = verdict.model
    lineage = _lineage(challenger, evaluation, verdict, run)
    if ledger:
        settle(ledger, model, run.client, run.run_id)
    with service_errors(f"registering a version of {model}"):
        means = read_means(evaluation)
        version = _registered_before(model, lineage)
        version = version or _new_version(model, challenger / WEIGHTS, lineage, run, means["challenger"])
        exported = store_exports(version, challenger / WEIGHTS, params.exports, evaluation, run)
        version = replace(version, tags={**version.tags, **exported})
        if not version.description and version.tags.get("verdict_sha256") == lineage["verdict_sha256"]:
            run.client.update_model_version(model, version.version, model_card(version, evaluation, verdict, means))
        newest = version_with_alias(model, "challenger")
        if newest is None or int(newest.version) < int(version.version):
            run.client.set_registered_model_alias(model, "challenger", version.version)
    # A version that was promoted before is champion again only if no other version took its place.
    new = PROMOTED not in version.tags or champion(model) is None
    if verdict.verdict == "promote" and params.promotion == "automatic" and new and not _rolled_back(version):
        if may_promote(version, verdict.champion):
            verify(version)
            check_loads(version, challenger / WEIGHTS)
        promote(version, verdict, run, ledger)
    now, before = champion(model), version_with_alias(model, "previous")
    registration = Registration(
        model=model,
        version=version.version,
        verdict=verdict.verdict,
        champion=now.version if now else None,
        previous=before.version if before else None,
        weights_sha256=lineage["weights_sha256"],
    )
    with whole_folder(output) as folder:
        write_registration(folder, registration)
    return registration
