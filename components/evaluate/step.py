"""Compare bicubic, warm-up, challenger and champion on the same bytes in one run, and decide about the challenger."""

import csv
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.files import sha256_of, whole_folder
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.imaging.tiling import upscale_image
from bebygan.metrics.fidelity import lr_psnr, psnr_y, ssim_y
from bebygan.metrics.lpips import Lpips, load_lpips, lpips
from bebygan.metrics.protocol import PROTOCOL
from bebygan.networks.naming import load_generator
from bebygan.precision import full_precision
from bebygan.pretrained import weights_file
from bebygan.training.precision import training_device
from components.config import EvaluateParams, Metric
from components.evaluate.health import examine
from components.evaluate.pictures import SIDE, most_textured, side_by_side
from components.evaluate.report import html_report
from components.evaluate.table import NAMES
from components.evaluate.verdict import METRICS, Candidate, Decision, Verdict, decide
from components.progress import progress
from components.stores.data_version import data_version
from components.stores.dataset import photographs_of, read_photograph
from components.tracking.provenance import provenance
from components.tracking.registry import ModelVersion, champion, download_generator
from components.tracking.runs import StepRun

Upscaler = Callable[[Image], Image]
_PICTURES = 12
"""Photographs that the report shows; all are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on the held-out photographs."""

    rows: list[dict[str, Any]]
    """One for each photograph and candidate: "photograph", "sha256", "candidate" and the metrics."""
    panels: dict[str, dict[str, Image]]
    """By photograph, crops by caption."""

    def means(self) -> dict[Candidate, dict[Metric, float]]:
        """Return the mean over the photographs of each metric by candidate."""
        by_candidate: dict[Candidate, list[dict[str, Any]]] = {}
        for row in self.rows:
            by_candidate.setdefault(row["candidate"], []).append(row)
        return {
            candidate: {metric: float(np.mean([row[metric] for row in rows])) for metric in METRICS}
            for candidate, rows in by_candidate.items()
        }


def held_out(dataset: Path) -> pd.DataFrame:
    """Return the manifest's rows of the photographs that are held out.

    Raises:
        DataError: there is no dataset, or it holds none out.
    """
    rows = photographs_of(dataset, ("test",))
    if rows.empty:
        raise DataError(f"{dataset} holds out no photographs: raise ingest.test_share or add photographs")
    return rows


def central_square(image: Image, crop: int | None) -> Image:
    """Return the middle of an image, at most `crop` pixels on each side, both sides multiples of the scale."""
    height, width = (min(length - length % SCALE, crop or length) for length in image.shape[:2])
    top, left = ((length - kept) // 2 for length, kept in zip(image.shape[:2], (height, width), strict=True))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _upscalers(generators: Mapping[Candidate, Path], tile: int | None) -> dict[Candidate, Upscaler]:
    device = training_device()
    upscalers: dict[Candidate, Upscaler] = {
        "bicubic": lambda lr: resize_uint8(lr, lr.shape[0] * SCALE, lr.shape[1] * SCALE)
    }
    for candidate, path in generators.items():
        generator = load_generator(path).to(device).eval()
        upscalers[candidate] = lambda lr, generator=generator: upscale_image(generator, lr, tile=tile)  # type: ignore[misc]
    return upscalers


def _metrics(network: Lpips, sr: Image, hr: Image, lr: Image) -> dict[Metric, float]:
    return {
        "psnr_y": psnr_y(sr, hr),
        "ssim_y": ssim_y(sr, hr),
        "lpips": lpips(network, sr, hr),
        "lr_psnr": lr_psnr(sr, lr),
    }


def measure(dataset: Path, generators: Mapping[Candidate, Path], params: EvaluateParams) -> Measured:
    """Measure bicubic and generators on the held-out photographs.

    Args:
        dataset: folder that ingest wrote.
        generators: weights by candidate, in the order in which they are shown.
        params: of the step.

    Raises:
        DataError: a photograph is missing, or nothing is held out.
        WeightsError: a generator or LPIPS cannot be loaded.
    """
    photographs = held_out(dataset)
    upscalers = _upscalers(generators, params.tile)
    network = load_lpips(weights_file("alexnet"), weights_file("lpips-alex")).to(training_device())
    measured = Measured(rows=[], panels={})
    for photograph in progress(photographs.to_dict("records"), "evaluate", "photographs", len(photographs)):
        hr = central_square(read_photograph(dataset / photograph["file"]), params.crop)
        lr = downscale_uint8(hr, SCALE)
        rows, columns = most_textured(hr, SIDE)
        panels = {}
        for candidate, upscale in upscalers.items():
            with full_precision(training_device()):
                sr = upscale(lr)
            row = {"photograph": photograph["source"], "sha256": photograph["sha256"], "candidate": candidate}
            measured.rows.append(row | _metrics(network, sr, hr, lr))
            panels[NAMES[candidate]] = sr[rows, columns]
        if len(measured.panels) < _PICTURES:
            measured.panels[photograph["source"]] = panels | {"original": hr[rows, columns]}
    return measured


def _logged(history: Path) -> list[dict[str, float]]:
    """Return what training logged, oldest first; nothing when there is no such file."""
    return [json.loads(line) for line in history.read_text().splitlines()] if history.is_file() else []


def _write(
    folder: Path, measured: Measured, verdict: Mapping[str, Any], history: Sequence[Mapping[str, float]]
) -> None:
    (folder / "metrics.json").write_text(json.dumps(measured.means(), indent=2) + "\n")
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=2) + "\n")
    with (folder / "per_photograph.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, measured.rows[0].keys(), lineterminator="\n")
        table.writeheader()
        table.writerows(measured.rows)
    (folder / "pictures").mkdir()
    for number, panels in enumerate(measured.panels.values(), start=1):
        side_by_side(panels).save(folder / "pictures" / f"{number:02}.png", optimize=True)
    page = html_report(verdict, measured.means(), measured.rows, measured.panels, history)
    (folder / "report.html").write_text(page, encoding="utf-8")


def _protocol(params: EvaluateParams) -> dict[str, str]:
    square = f"the central {params.crop} pixels of each" if params.crop else "whole"
    tiles = f"in tiles of {params.tile} pixels" if params.tile else "whole"
    return {
        **PROTOCOL,
        "photographs": f"those that ingest held out, {square}; sides cut to multiples of {SCALE}",
        "lr": f"8-bit, MATLAB's antialiased bicubic by {SCALE}; generators see it {tiles}, in float32",
    }


def evaluate(
    dataset: Path, warmup: Path, challenger: Path, output: Path, *, params: EvaluateParams, run: StepRun
) -> Verdict:
    """Compare the candidates and decide.

    Args:
        dataset: folder that ingest wrote.
        warmup: folder with the warm-up's generator.safetensors.
        challenger: folder with the challenger's generator.safetensors, and its history.jsonl if there is one.
        output: folder, written whole: metrics.json ({candidate: {metric: mean}}), verdict.json (verdict, reasons, what
            was compared, health of the training, protocol, provenance), per_photograph.csv, pictures/, report.html.
        params: of the step.
        run: is given the means and the output.

    Returns:
        "promote" when the challenger is to replace the champion, else "keep".

    Raises:
        DataError: nothing is held out, or a photograph is missing.
        WeightsError: a generator or LPIPS cannot be loaded.
        ServiceError: the model registry is away or refuses.
        StorageError: the output cannot be written.
    """
    current = champion(params.model_name)
    generators: dict[Candidate, Path] = {
        "warmup": warmup / "generator.safetensors",
        "challenger": challenger / "generator.safetensors",
    }
    with tempfile.TemporaryDirectory(prefix="champion-") as scratch:
        if current:
            generators["champion"] = download_generator(current, Path(scratch))
        measured = measure(dataset, generators, params)
    decision = decide(measured.means(), params.thresholds)
    verdict = _verdict(decision, current, generators["challenger"], params)
    history = _logged(challenger / "history.jsonl")
    verdict["health"] = [asdict(finding) for finding in examine(history, params.health)]
    verdict["provenance"] = provenance(params, data_version(dataset))
    with whole_folder(output) as folder:
        _write(folder, measured, verdict, history)
    run(0, {f"{candidate}/{name}": value for candidate, row in measured.means().items() for name, value in row.items()})
    run.artifacts(output, "evaluation")
    return decision.verdict


def _verdict(
    decision: Decision, current: ModelVersion | None, challenger: Path, params: EvaluateParams
) -> dict[str, Any]:
    return {
        **asdict(decision),
        "model": params.model_name,
        "champion": current.version if current else None,
        "challenger_sha256": sha256_of(challenger),
        "protocol": _protocol(params),
    }
