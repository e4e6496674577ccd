"""Register a challenger with its verdict, and make it champion when the verdict says so."""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import safe_open

import bebygan
from bebygan.errors import DataError, WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.imaging.tiling import upscale_image
from bebygan.networks.naming import load_generator
from components.config import RegisterParams
from components.register.promotion import PROMOTED, may_promote, promote, settle
from components.tracking.client import mlflow, service_errors, uploading
from components.tracking.registry import ModelVersion, as_version, champion, version_with_alias
from components.tracking.runs import StepRun

_TILE = 512
_FOLDER = Path(__file__).parent
_REQUIREMENTS = ("mlflow", "numpy", "safetensors", "torch")
_SIGNATURE = mlflow.models.ModelSignature(
    inputs=mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
    outputs=mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
    params=mlflow.types.ParamSchema([mlflow.types.ParamSpec("tile", "long", _TILE)]),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What became of a challenger."""

    model: str
    version: str
    """Of the challenger."""
    verdict: Literal["promote", "keep"]
    champion: str | None
    """Version that now holds the alias champion."""
    previous: str | None
    """Version that held it before, to go back to."""
    weights_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Evaluated:
    """A challenger and what was said of it."""

    weights: Path
    weights_sha256: str
    verdict: Mapping[str, Any]
    verdict_sha256: str
    means: Mapping[str, Mapping[str, float]]

    @property
    def model(self) -> str:
        return str(self.verdict["model"])


def _read(challenger: Path, evaluation: Path) -> _Evaluated:
    """Read verdict and metrics, and see that they are about this challenger.

    Raises:
        DataError: there is no verdict, it is damaged, or it is about other weights.
    """
    weights, said, measured = (
        challenger / "generator.safetensors",
        evaluation / "verdict.json",
        evaluation / "metrics.json",
    )
    try:
        verdict, means = json.loads(said.read_text()), json.loads(measured.read_text())
        about = verdict["challenger_sha256"]
        if verdict["verdict"] not in ("promote", "keep"):
            raise ValueError(verdict["verdict"])  # noqa: TRY301
    except OSError as error:
        raise DataError(
            f"{evaluation} holds no verdict: nothing is registered without one, run evaluate first"
        ) from error
    except (ValueError, KeyError) as error:
        raise DataError(f"the verdict in {evaluation} is damaged ({error}): run evaluate again") from error
    if not weights.is_file():
        raise DataError(f"{challenger} holds no generator.safetensors: run train first")
    digest = sha256_of(weights)
    if digest != about:
        raise DataError(f"the verdict in {evaluation} is about other weights than {weights}: run evaluate again")
    return _Evaluated(
        weights=weights, weights_sha256=digest, verdict=verdict, verdict_sha256=sha256_of(said), means=means
    )


def _lineage(evaluated: _Evaluated, run: StepRun) -> dict[str, str]:
    """Return the tags of a version: provenance, verdict, metrics, and what the weights' file says of itself."""
    with safe_open(evaluated.weights, "numpy") as file:
        training = file.metadata() or {}
    return {
        **evaluated.verdict["provenance"],
        **{f"train.{name}": text for name, text in training.items()},
        **{f"metric.{name}": f"{value:.6g}" for name, value in evaluated.means["challenger"].items()},
        "verdict": evaluated.verdict["verdict"],
        "reasons": "; ".join(evaluated.verdict["reasons"]),
        "verdict_sha256": evaluated.verdict_sha256,
        "compared_with_champion": evaluated.verdict["champion"] or "none",
        "weights_sha256": evaluated.weights_sha256,
        "parent_run": run.pipeline_run or "none",
        "register_run": run.run_id,
    }


def _registered_before(evaluated: _Evaluated, current: ModelVersion | None, run: StepRun) -> ModelVersion | None:
    """Return the version that these weights have by this verdict, or as the champion that they already are."""
    if current and current.tags.get("weights_sha256") == evaluated.weights_sha256:
        return current
    for found in run.client.search_model_versions(f"name='{evaluated.model}'"):
        tags = found.tags or {}
        if (tags.get("weights_sha256"), tags.get("verdict_sha256")) == (
            evaluated.weights_sha256,
            evaluated.verdict_sha256,
        ):
            return as_version(found)
    return None


def _pinned(package: str) -> str:
    # A local label such as +cpu names a build that no package index serves.
    return f"{package}=={importlib.metadata.version(package).partition('+')[0]}"


def _new_version(evaluated: _Evaluated, run: StepRun) -> ModelVersion:
    """Log the model and make it a version."""
    with mlflow.start_run(run_id=run.run_id), uploading():
        logged = mlflow.pyfunc.log_model(
            name="generator",
            python_model=str(_FOLDER / "model_code.py"),
            artifacts={"generator": str(evaluated.weights)},
            signature=_SIGNATURE,
            input_example=np.zeros((1, 8, 8, 3), np.uint8),
            pip_requirements=[_pinned(package) for package in _REQUIREMENTS],
            code_paths=[str(Path(bebygan.__file__).parent)],
        )
        return as_version(mlflow.register_model(logged.model_uri, evaluated.model, tags=_lineage(evaluated, run)))


def check_loads(version: ModelVersion, weights: Path) -> None:
    """Load a registered version in a process of its own, with MLflow alone, and compare its pixels with ours.

    Raises:
        WeightsError: it does not load, runs our copy of the code instead of its own, or gives other pixels.
    """
    images = np.random.default_rng(0).integers(0, 256, (2, 18, 21, 3), np.uint8)
    generator = load_generator(weights).eval()
    expected = np.stack([upscale_image(generator, image, tile=_TILE) for image in images])
    with tempfile.TemporaryDirectory(prefix="load-check-") as scratch:
        asked, answered = Path(scratch) / "images.npy", Path(scratch) / "result.npz"
        np.save(asked, images)
        # -I: neither the working folder nor PYTHONPATH may lend it our packages. No GPU, so that both count alike.
        command = [sys.executable, "-I", str(_FOLDER / "load_check.py"), version.uri, str(asked), str(answered)]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch, env=environment)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or ["no message"])[-1]
            raise WeightsError(f"{version.uri} does not load in a clean process ({last}): the champion stays as it was")
        with np.load(answered) as arrays:
            pixels, origin = arrays["pixels"], Path(str(arrays["origin"]))
    if origin.resolve() == Path(bebygan.__file__).resolve():
        raise WeightsError(f"{version.uri} runs {origin} instead of the code in it: the champion stays as it was")
    if not np.array_equal(pixels, expected):
        raise WeightsError(f"{version.uri} gives other pixels than {weights}: the champion stays as it was")


def register(
    challenger: Path, evaluation: Path, output: Path, *, params: RegisterParams, run: StepRun, ledger: str = ""
) -> Registration:
    """Register a challenger, and make it champion when the verdict is "promote" and promotion is automatic.

    Registering the same weights with the same verdict again changes nothing, and completes what was interrupted.

    Args:
        challenger: folder with generator.safetensors.
        evaluation: folder that the evaluate step wrote for this challenger.
        output: folder, written whole: registration.json, the returned values.
        params: of the step.
        run: the version belongs to it.
        ledger: folder or s3://bucket/prefix where each move of the alias champion is entered; empty for none.

    Raises:
        DataError: there is no verdict, it is about other weights, or it compares with what is no longer the champion.
        WeightsError: what was registered does not load in a clean process or gives other pixels.
        ServiceError: the registry, or the ledger's bucket, is away or refuses.
        StorageError: the output, or the ledger's folder, cannot be written.
    """
    evaluated = _read(challenger, evaluation)
    if ledger:
        settle(ledger, evaluated.model, run)
    current = champion(evaluated.model)
    with service_errors(f"registering a version of {evaluated.model}"):
        version = _registered_before(evaluated, current, run) or _new_version(evaluated, run)
        newest = version_with_alias(version.model, "challenger")
        if newest is None or int(newest.version) < int(version.version):
            run.client.set_registered_model_alias(version.model, "challenger", version.version)
    asked = evaluated.verdict["verdict"] == "promote" and params.promotion == "automatic"
    if asked and PROMOTED not in version.tags:
        if may_promote(version, evaluated.verdict["champion"]):
            check_loads(version, evaluated.weights)
        promote(version, evaluated.verdict, run, ledger)
    now, before = champion(evaluated.model), version_with_alias(evaluated.model, "previous")
    registration = Registration(
        model=evaluated.model,
        version=version.version,
        verdict=evaluated.verdict["verdict"],
        champion=now.version if now else None,
        previous=before.version if before else None,
        weights_sha256=evaluated.weights_sha256,
    )
    with whole_folder(output) as folder:
        (folder / "registration.json").write_text(json.dumps(asdict(registration), indent=2) + "\n")
    return registration
