"""Exports of a version, which are stored only if another program computes with them what torch computes."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from bebygan.errors import WeightsError
from bebygan.exporting import export
from bebygan.files import sha256_of
from bebygan.imaging.convert import to_image
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.precision import full_precision
from bebygan.settings import ExportKind
from components.progress import say
from components.register.clean_process import fault_of
from components.tracking.client import service_errors, uploading
from components.tracking.registry import ModelVersion
from components.tracking.runs import StepRun

TAG = "export."
"""Start of the tags that say what became of each export."""
FAILED = "failed: "
"""Start of the text of an export that is not stored."""
_FILES: Mapping[ExportKind, str] = {
    "onnx": "generator.onnx",
    "ncnn": "generator.param",
    "safetensors": "basicsr.safetensors",
}
_PHOTOGRAPHS = 20
_TOLERANCE = 1
"""Of 255. Rounding to 8 bits makes one of values that differ by far less."""
_log = logging.getLogger(__name__)
Arrays = dict[str, NDArray[Any]]


def _photographs(evaluation: Path) -> Iterator[NDArray[np.float32]]:
    """Yield windows of odd sides, (3, H, W), from the pictures of an evaluation; noise if it has none."""
    pictures, random = sorted((evaluation / "pictures").glob("*.png")), np.random.default_rng(0)
    for number in range(_PHOTOGRAPHS):
        height, width = (int(side) for side in 2 * random.integers(4, 32, 2) + 1)
        window = random.integers(0, 256, (height, width, 3), np.uint8)
        if pictures:
            with PillowImage.open(pictures[number % len(pictures)]) as picture:
                left, top = (int(random.integers(max(1, side - 64))) for side in picture.size)
                window = np.asarray(picture.convert("RGB").crop((left, top, left + width, top + height)))
        yield np.ascontiguousarray(window.transpose(2, 0, 1), np.float32) / np.float32(255)


def _by_torch(generator: Generator, photographs: Arrays) -> Arrays:
    with torch.inference_mode(), full_precision(torch.device("cpu")):
        return {name: generator(torch.from_numpy(image)[None])[0].numpy() for name, image in photographs.items()}


def _by_export(kind: ExportKind, path: Path, photographs: Arrays) -> Arrays:
    if kind == "safetensors":
        return _by_torch(load_generator(path).eval(), photographs)
    asked, answered = path.with_name("images.npz"), path.with_name("results.npz")
    # numpy declares `allow_pickle` among these names.
    np.savez(asked, **photographs)  # type: ignore[arg-type]
    script = Path(__file__).parent / "export_check.py"
    if fault := fault_of(script, path, asked, answered, folder=path.parent):
        raise WeightsError(f"it does not run ({fault})")
    with np.load(answered) as results:
        found = dict(results)
    asked.unlink()
    answered.unlink()
    return found


def _compared(found: Arrays, expected: Arrays) -> str:
    """Return how close the results are, in words.

    Raises:
        WeightsError: they have other sizes, or differ by more than the tolerance.
    """
    largest, squares, count = 0, 0.0, 0
    for name, wanted in expected.items():
        if found[name].shape != wanted.shape:
            raise WeightsError(f"it gives the shape {found[name].shape}, torch gives {wanted.shape}")
        one, other = (to_image(torch.from_numpy(each)[None]).astype(int) for each in (found[name], wanted))
        difference = np.abs(one - other)
        largest = max(largest, int(difference.max()) if np.isfinite(found[name]).all() else 255)
        squares, count = squares + float(np.square(difference).sum()), count + difference.size
    if largest > _TOLERANCE:
        raise WeightsError(f"it differs from torch by {largest} of 255 on {len(expected)} photographs")
    psnr = f"{10 * np.log10(255**2 * count / squares):.1f} dB" if squares else "no difference"
    return f"{len(expected)} photographs of odd sizes differ from torch by at most {largest} of 255 ({psnr})"


def _checked(kind: ExportKind, generator: Generator, folder: Path, photographs: Arrays, expected: Arrays) -> str:
    """Write an export into a folder; return how close it is to torch, and its digests.

    Raises:
        WeightsError: it cannot be made, does not run, or computes something else.
    """
    files = export(generator, kind, folder / _FILES[kind])
    close = _compared(_by_export(kind, files[0], photographs), expected)
    return f"{close}; {', '.join(f'{path.name} has SHA-256 {sha256_of(path)}' for path in files)}"


def store_exports(
    version: ModelVersion, weights: Path, kinds: tuple[ExportKind, ...], evaluation: Path, run: StepRun
) -> dict[str, str]:
    """Make the exports of a version, run each, and store those that compute what torch computes, with the run.

    An export that fails is told and not stored. Exports that are stored already are not made again.

    Args:
        version: in the registry.
        weights: of the version.
        kinds: of the exports.
        evaluation: folder that evaluate wrote, whose pictures are upscaled.
        run: gets the files, below `exports`.

    Returns:
        The new tags of the version, `export.KIND`: what was compared, or why there is no such file.

    Raises:
        ServiceError: the server fails.
    """
    waiting = [kind for kind in kinds if version.tags.get(f"{TAG}{kind}", FAILED).startswith(FAILED)]
    if not waiting:
        return {}
    generator = load_generator(weights).eval()
    photographs = {str(number): image for number, image in enumerate(_photographs(evaluation))}
    expected, tags = _by_torch(generator, photographs), {}
    for kind in waiting:
        with tempfile.TemporaryDirectory(prefix="export-") as scratch, service_errors(f"storing the export {kind}"):
            try:
                told = _checked(kind, generator, Path(scratch), photographs, expected)
            except WeightsError as error:
                told = f"{FAILED}{error}"
                _log.warning("warning: the export %s of %s is not stored: %s", kind, version.uri, error)
            else:
                with uploading():
                    run.client.log_artifacts(run.run_id, scratch, "exports")
                told = f"runs:/{run.run_id}/exports/{_FILES[kind]}: {told}"
                say(f"export {kind} of {version.uri}: {told}")
            run.client.set_model_version_tag(version.model, version.version, f"{TAG}{kind}", told)
        tags[f"{TAG}{kind}"] = told
    return tags
