"""Compare bicubic, warm-up, challenger and champion on the same photographs, and decide about the challenger."""

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pandas as pd

from bebygan import SCALE
from bebygan.errors import DataError, WeightsError
from bebygan.files import sha256_of, whole_folder
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8, upscale_uint8
from bebygan.imaging.tiling import TILE, upscale_fast
from bebygan.metrics.protocol import PROTOCOL
from bebygan.networks.naming import load_generator
from bebygan.networks.weights import metadata_of, read_state
from bebygan.precision import resolve, training_device
from bebygan.settings import Objective
from bebygan.training.state import place
from components.artifacts import (
    PSNR_CAP,
    Anchor,
    Candidate,
    Means,
    Recommendation,
    Verdict,
    check_data_version,
    check_sealed,
    read_history,
    seal,
    write_anchor,
    write_means,
    write_summary,
    write_verdict,
)
from components.comparison import METRICS, change, main_gains, main_opponent
from components.config import EvaluateParams, Metric
from components.evaluate.anchor import anchor_history, measured_on_anchor
from components.evaluate.background import background
from components.evaluate.evidence import EXACT_BELOW, RESAMPLES, Table, gains_of
from components.evaluate.gallery import LR, Gallery, Photograph, Sight
from components.evaluate.health import examine
from components.evaluate.measuring import DISTS_SIDE, LEAST_REGION, Original, load_networks
from components.evaluate.pictures import most_textured, side_by_side
from components.evaluate.report import html_report
from components.evaluate.verdict import Measured, beyond_noise, judge, summary_of
from components.progress import progress, say
from components.stores.data_version import data_version
from components.stores.dataset import (
    check_dataset,
    headline,
    photographs_of,
    read_photograph,
    read_thumbnails,
    summarise,
)
from components.tracking.provenance import provenance
from components.tracking.registry import ModelVersion, all_versions, champion, download_generator, lost_champion
from components.tracking.runs import StepRun

if TYPE_CHECKING:
    from pandas.core.groupby.generic import DataFrameGroupBy

SECONDS = "seconds_per_megapixel"
CHECKS = "checks.html"
"""Page with the results of ingest's checks, beside the report."""
_FLAT_FROM = 60.0
"""dB. A photograph that bicubic restores with this PSNR-Y differs by less than the rounding to 8 bits (58.9 dB). Its
values say nothing about the models, and would outweigh those of the others."""


def held_out(dataset: Path) -> pd.DataFrame:
    """Return the manifest's rows of the held-out photographs.

    Raises:
        DataError: there is no dataset, or it has no held-out photographs.
    """
    rows = photographs_of(dataset, ("test",))
    if rows.empty:
        raise DataError(f"{dataset} holds out no photographs: raise ingest.test_share or add photographs")
    return rows


def central_square(image: Image, crop: int | None) -> Image:
    """Return the centre of an image, at most `crop` pixels on each side, with sides that are multiples of the scale."""
    height, width = (min(length - length % SCALE, crop or length) for length in image.shape[:2])
    top, left = ((length - kept) // 2 for length, kept in zip(image.shape[:2], (height, width), strict=True))
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _as_cell(name: str) -> str:
    """Return a name that a spreadsheet does not take for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _check_finite(values: Mapping[Metric, float], candidate: Candidate, photograph: str) -> None:
    for metric, value in values.items():
        # A photograph may lack a region.
        absent = metric.endswith(("_textured", "_flat")) and math.isnan(value)
        if not (math.isfinite(value) or absent):
            raise DataError(
                f"{metric} of {candidate} is {value} for {photograph}: leave the photograph out, or train again"
            )


def measure(
    dataset: Path,
    generators: Mapping[Candidate, Path],
    params: EvaluateParams,
    only: Collection[Candidate] | None = None,
) -> tuple[pd.DataFrame, list[Sight]]:
    """Measure generators and bicubic on the held-out photographs.

    Args:
        dataset: folder that ingest wrote.
        generators: files of weights. `artefacts` are those that the warm-up lacks, or bicubic without a warm-up.
        params: of the step.
        only: candidates to measure; None measures bicubic and all generators.

    Returns:
        A row per photograph and candidate with all metrics, NaN for those of a region that a photograph lacks, and
        the seconds per megapixel of the result; squares of the photographs that the report shows, none without a
        challenger.

    Raises:
        DataError: no photograph is held out, one is damaged, or a value is not finite.
        WeightsError: a generator or LPIPS cannot be loaded.
    """
    photographs, device = held_out(dataset), training_device()
    upscalers: dict[Candidate, Callable[[Image], Image]] = {"bicubic": partial(upscale_uint8, factor=SCALE)}
    same: dict[str, Candidate] = {}
    # A training that continues the champion starts from its weights: they are measured once.
    twins = {candidate: same.setdefault(sha256_of(path), candidate) for candidate, path in generators.items()}
    for candidate in same.values():
        generator = place(load_generator(generators[candidate]), device, channels_last=True).eval()
        upscalers[candidate] = partial(upscale_fast, generator, precision=params.precision, tile=params.tile)
    networks = load_networks(device)
    candidates: tuple[Candidate, ...] = ("bicubic", *generators)
    wanted = {name: twins.get(name, name) for name in candidates if only is None or name in only}
    shown = only is None and "challenger" in generators
    measured: list[dict[str, Any]] = []
    gallery = Gallery()
    for photograph in progress(photographs.to_dict("records"), "evaluate", "photographs", len(photographs)):
        name = photograph["source"]
        hr = central_square(read_photograph(dataset / photograph["file"]), params.crop)
        lr = downscale_uint8(hr, SCALE)
        upscaled: dict[Candidate, Image] = {}
        seconds: dict[Candidate, float] = {}
        for candidate, upscale in upscalers.items():
            started = time.perf_counter()
            upscaled[candidate] = upscale(lr)
            seconds[candidate] = (time.perf_counter() - started) / hr.shape[0] / hr.shape[1] * 1e6
        original = Original(hr, lr, most_textured(hr, DISTS_SIDE), networks)
        start = upscaled[twins.get("warmup", "bicubic")]
        distinct = {twin: original.metrics(upscaled[twin], start) for twin in dict.fromkeys(wanted.values())}
        found = {candidate: distinct[twin] for candidate, twin in wanted.items()}
        for candidate, values in found.items():
            _check_finite(values, candidate, name)
            row = {"photograph": name, "sha256": photograph["sha256"], "candidate": candidate}
            measured.append(row | values | {SECONDS: seconds[wanted[candidate]]})
        if shown:
            gallery.add(
                Photograph(
                    name=name,
                    hr=hr,
                    lr=lr,
                    textured=original.textured,
                    upscaled={candidate: upscaled[twin] for candidate, twin in wanted.items()},
                    metrics=found,
                    opponent=main_opponent(generators),
                    start=start,
                )
            )
    return pd.DataFrame(measured), gallery.sights()


def flat_photographs(measured: pd.DataFrame) -> list[str]:
    """Return the photographs of `measure` that are in no mean, because bicubic restores them almost perfectly."""
    rows = (measured["candidate"] == "bicubic") & (measured["psnr_y"] >= _FLAT_FROM)
    return list(measured.loc[rows, "photograph"])


def _by_candidate(measured: pd.DataFrame) -> "DataFrameGroupBy[Any, Any]":
    """Group rows without flat photographs; all rows if there are no others."""
    textured = measured[~measured["photograph"].isin(flat_photographs(measured))]
    return (measured if textured.empty else textured).groupby("candidate", sort=False)[list(METRICS)]


def _means(measured: pd.DataFrame) -> Means:
    # pandas declares keys as hashable.
    found: Means = _by_candidate(measured).mean().dropna(axis=1).to_dict("index")  # type: ignore[assignment]
    return found


def _anchor(data_version: str, rows: pd.DataFrame) -> Anchor:
    return Anchor(data_version=data_version, photographs=rows["photograph"].nunique(), means=_means(rows))


def _check_trained_on(version: str, weights: Path, dataset: Path) -> None:
    """Refuse a dataset of another version than the challenger's: it may hold out what the challenger was trained on."""
    # Verifies the metadata, too.
    read_state(weights)
    trained_on = metadata_of(weights).get("data_version", version)
    if trained_on != version:
        raise DataError(
            f"{weights} was trained on data version {trained_on}, but {dataset} is {version}: run patches and train "
            "again"
        )


def _fetched_champion(version: ModelVersion, folder: Path) -> Path:
    """Fetch the champion's weights; refuse those that cannot be compared with a challenger's."""
    weights = download_generator(version, folder)
    try:
        load_generator(weights)
    except WeightsError as error:
        problem = str(error).removeprefix(str(weights)).lstrip(": ")
        raise WeightsError(
            f"the champion {version.uri} is no generator that enlarges {SCALE} times ({problem}): make another version "
            "champion by `bebygan rollback` or `bebygan promote`"
        ) from error
    return weights


def objective_of(warmup: Path, means: Means) -> tuple[Objective, str]:
    """Return what the warm-up was trained for, and how that is known."""
    metadata = metadata_of(warmup)
    said = metadata.get("objective", "perceptual" if metadata.get("step") == "train" else None)
    for objective in get_args(Objective):
        if objective == said:
            return objective, "its file says so"
    # PSNR does not tell them apart: the known perceptual start is above bicubic on Set14 and below it on BSDS100. Its
    # LPIPS is a third of bicubic's; those of networks trained with L1, small and large, are above 0.6 of it.
    if means["warmup"]["lpips"] < means["bicubic"]["lpips"] / 2:
        return "perceptual", "its file does not say, and its LPIPS is below half of that of bicubic"
    return "psnr", "its file does not say, and its LPIPS is not below half of that of bicubic"


def _protocol(params: EvaluateParams) -> dict[str, str]:
    square = f"the central {params.crop} pixels of each" if params.crop else "whole"
    tiles = f"in tiles of {params.tile or TILE} pixels"
    textured = f"the {DISTS_SIDE} by {DISTS_SIDE} pixels with the most texture"
    return {
        **{name: PROTOCOL[name] for name in METRICS},
        "dists": PROTOCOL["dists"].replace("whole image", textured),
        "regions": f"those of less than {LEAST_REGION:.0%} of a photograph's pixels are not measured",
        SECONDS: "in MLflow, because it differs from run to run: median over the photographs, of the upscaling alone",
        "photographs": f"those that ingest held out, {square}; sides cut to multiples of {SCALE}",
        "lr": f"8-bit, MATLAB's antialiased bicubic by {SCALE}; generators process it {tiles}, in "
        f"{resolve(params.precision, training_device())}",
        "flat": f"photographs that bicubic restores with {_FLAT_FROM:g} dB PSNR-Y or more are in no mean and no gain",
        "interval": f"{params.confidence:.0%}, two-sided, of the mean of paired differences: exact sign-flip test for "
        f"fewer than {EXACT_BELOW} photographs, else percentiles of {RESAMPLES:,} bootstrap resamples",
        "psnr_cap": f"a PSNR above {PSNR_CAP:g} dB, such as that of equal images, counts as {PSNR_CAP:g} dB",
    }


def required_gains(params: EvaluateParams, objective: Objective) -> dict[Candidate, dict[Metric, float]]:
    """Return the bounds of `thresholds` for gains, by opponent; `objective` is that of the warm-up."""
    bounds = params.thresholds
    champion_bounds = beyond_noise(bounds.champion, params.training_noise)
    return {"bicubic": bounds.bicubic, "warmup": bounds.warmup.get(objective, {}), "champion": champion_bounds}


def _write_pictures(folder: Path, sights: Sequence[Sight]) -> None:
    folder.mkdir()
    for number, sight in enumerate(sights, start=1):
        panels = {name: image for name, image in sight.panels.items() if name != LR}
        side_by_side(panels).save(folder / f"{number:02}.png", optimize=True)


def _named(means: Means, prefix: str = "") -> dict[str, float]:
    return {f"{prefix}{candidate}/{name}": value for candidate, row in means.items() for name, value in row.items()}


def _tell(
    run: StepRun, output: Path, verdict: Verdict, *, means: Means, measured: pd.DataFrame, anchor: Anchor | None
) -> None:
    """Log means, verdict and output to MLflow."""
    seconds = measured.groupby("candidate", sort=False)[SECONDS].median().to_dict()
    run(0, _named(means) | {f"{candidate}/{SECONDS}": value for candidate, value in seconds.items()})
    if anchor:
        run(0, _named(anchor.means, "anchor/"))
    run.summarise(_named(means), output / "report.html")
    run.artifacts(output, "evaluation")
    gains = {f"gain.{gain.opponent}.{gain.metric}": change(gain) for gain in main_gains(verdict.gains)}
    run.describe({"verdict": verdict.summary} | gains)


def evaluate(
    dataset: Path,
    warmup: Path,
    challenger: Path,
    output: Path,
    *,
    params: EvaluateParams,
    run: StepRun,
    docs: Path | None = None,
    ledger: str = "",
    remote: str = "",
    expected: str | None = None,
) -> Recommendation:
    """Compare the candidates and recommend whether the challenger should replace the champion.

    Args:
        dataset: folder that ingest wrote.
        warmup: folder with the warm-up's generator.safetensors.
        challenger: folder with the challenger's generator.safetensors and optionally history.jsonl.
        output: folder, replaced as a whole: metrics.json and verdict.json (see `components.artifacts`),
            data.json, per_photograph.csv, pictures/, report.html, and checksums.json about all of these.
        params: of the step.
        run: gets the means, the output, and a line about the data, which the run of the whole pipeline gets too.
        docs: folder with the Data Docs that ingest wrote; the page of the checks is copied from it to checks.html.
        ledger: of promotions, which knows the anchor; "" for none.
        remote: DVC remote that has the anchor; "" for none.
        expected: data version that the run ingested; None if it is not known.

    Raises:
        DataError: no photograph is held out, the dataset or the folder of the challenger is damaged, the challenger was
            trained on another data version, or the run ingested another one, or a value is not finite.
        WeightsError: a generator or LPIPS cannot be loaded.
        ServiceError: the model registry is unreachable or refuses access.
        StorageError: the output cannot be written.
    """
    generators: dict[Candidate, Path] = {
        "warmup": warmup / "generator.safetensors",
        "challenger": challenger / "generator.safetensors",
    }
    check_sealed(challenger, "train")
    history = read_history(challenger)
    version = data_version(dataset)
    check_dataset(dataset)
    check_data_version(dataset, version, expected, "ingest")
    _check_trained_on(version, generators["challenger"], dataset)
    current = champion(params.model_name)
    lost = None if current or not all_versions(params.model_name) else lost_champion(params.model_name)
    if lost:
        say(f"{params.model_name} lost its champion ({lost}): the challenger is judged as the first one")
    with tempfile.TemporaryDirectory(prefix="champion-") as scratch:
        if current:
            generators["champion"] = _fetched_champion(current, Path(scratch))
        measured, sights = measure(dataset, generators, params)
        held = measured_on_anchor(
            dataset,
            version,
            measured,
            lambda folder: measure(folder, generators, params)[0],
            params,
            ledger=ledger,
            remote=remote,
        )
    anchor = _anchor(*held) if held else None
    flat = flat_photographs(measured)
    summary = replace(summarise(dataset, version, challenger), flat=tuple(sorted(flat)))
    means = _means(measured)
    tables: dict[Candidate, Table] = {name: rows.to_numpy() for name, rows in _by_candidate(measured)}
    gains = gains_of(tables, [name for name in tables if name != "challenger"], params.confidence)
    started = all_versions(params.model_name, weights_sha256=sha256_of(generators["warmup"])) if current else []
    start = f"version {started[0].version}, which training continued" if started else "the warm-up generator"
    objective, known_from = objective_of(generators["warmup"], means)
    number = 0 if len(flat) == measured["photograph"].nunique() else len(tables["challenger"])
    known = Measured(means=means, gains=gains, photographs=number, objective=objective)
    recommendation, reasons = judge(known, params.thresholds, params.confidence, params.training_noise)
    reigning = current.version if current else None
    sentence = summary_of(recommendation, reasons, gains, params.thresholds, reigning, lost=lost)
    with whole_folder(output) as folder:
        write_means(folder, means)
        # Times differ from run to run, and the verdict names the digest of this file.
        cells = measured.drop(columns=SECONDS).assign(photograph=measured["photograph"].map(_as_cell))
        cells.to_csv(folder / "per_photograph.csv", index=False, lineterminator="\n")
        verdict = Verdict(
            verdict=recommendation,
            reasons=reasons,
            summary=sentence,
            gains=gains,
            confidence=params.confidence,
            model=params.model_name,
            champion=reigning,
            challenger_sha256=sha256_of(generators["challenger"]),
            measured_sha256={name: sha256_of(folder / name) for name in ("metrics.json", "per_photograph.csv")},
            protocol=_protocol(params) | {"start": start, "warmup": f"{objective}-oriented: {known_from}"},
            health=tuple(examine(history, params.health)),
            provenance=provenance(params, version),
        )
        write_verdict(folder, verdict)
        write_summary(folder, summary)
        if anchor:
            write_anchor(folder, anchor)
        checked = docs is not None and (docs / "index.html").is_file()
        if docs and checked:
            shutil.copyfile(docs / "index.html", folder / CHECKS)
        _write_pictures(folder / "pictures", sights)
        page = html_report(
            verdict,
            means,
            measured.to_dict("records"),
            sights,
            history,
            summary=summary,
            thumbnails=read_thumbnails(dataset),
            anchor=anchor,
            on_anchor=anchor_history(anchor, params.model_name, ledger),
            bounds=required_gains(params, objective),
            background=background(dataset, current, run.pipeline_run, remote),
            checks=CHECKS if checked else None,
        )
        (folder / "report.html").write_text(page, encoding="utf-8")
        seal(folder)
    _tell(run, output, verdict, means=means, measured=measured, anchor=anchor)
    data = headline(summary)
    run.describe({"data": f"{data}; checks: evaluation/{CHECKS} of the run evaluate" if checked else data})
    return recommendation
