"""Reading a dataset that ingest wrote, and the text that tells what it holds and what was left out of it."""

import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image as PillowImage

from bebygan.errors import DataError
from bebygan.imaging import Image
from components.artifacts import (
    DataSummary,
    Quarantined,
    check_sealed,
    read_patchless,
    read_quarantine,
)
from components.progress import printable
from components.stores.data_version import read_file

NAMED = 10
"""Number of files that a text or the report names; the rest is counted."""
SPLITS = ("train", "validation", "test")

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
"""Formats of a dataset's photographs, and the endings of their files.

Photographs are opened with these decoders only. Pillow has others, and one of them starts Ghostscript.
"""


def check_dataset(dataset: Path) -> None:
    """Compare all files of a dataset with its checksums.json; see `components.artifacts.check_sealed`."""
    check_sealed(dataset, "ingest")


def photographs_of(dataset: Path, splits: Collection[str]) -> pd.DataFrame:
    """Return the rows of the manifest in the given splits.

    Raises:
        DataError: there is no dataset, or its manifest is damaged or names a file outside it.
    """
    try:
        manifest = pd.read_parquet(dataset / "manifest.parquet")
        # Text is decoded when it is read.
        manifest.to_dict("list")
    except FileNotFoundError as error:
        raise DataError(f"{dataset} holds no manifest.parquet: run ingest first") from error
    except Exception as error:
        # Readers of Parquet raise exceptions of any type for damaged files.
        raise DataError(f"{dataset / 'manifest.parquet'} is damaged: run ingest again") from error
    if missing := {"file", "split"} - set(manifest):
        raise DataError(f"{dataset / 'manifest.parquet'} is damaged (it has no {min(missing)}): run ingest again")
    for name in manifest["file"]:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{dataset}: manifest.parquet names {name}, which is outside the dataset: run ingest again")
    return manifest[manifest["split"].isin(splits)]


def manifest_of(data_version: str, remote: str) -> pd.DataFrame:
    """Return the manifest of a data version in a DVC remote.

    Raises:
        ConfigError, DataError, ServiceError: as `components.stores.data_version.read_file`.
    """
    return pd.read_parquet(io.BytesIO(read_file(data_version, remote, "manifest.parquet")))


def read_photograph(path: Path) -> Image:
    """Return an ingested photograph as (H, W, 3) RGB.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with PillowImage.open(path, formats=list(FORMATS)) as picture:
            return np.asarray(picture)
    except OSError as error:
        raise DataError(f"cannot read the photograph {path} ({error}): run ingest again") from error


def thumbnail_path(dataset: Path, number: int) -> Path:
    """Return the place of the thumbnail of a quarantined file, by its number in quarantine.json; it may be missing."""
    return dataset / "quarantined" / f"{number:02}.png"


def read_thumbnails(dataset: Path) -> dict[int, Image]:
    """Return the thumbnails of quarantined files, (H, W, 3) RGB, by their number in quarantine.json."""
    paths = {number: thumbnail_path(dataset, number) for number in range(NAMED)}
    return {number: read_photograph(path) for number, path in paths.items() if path.exists()}


def summarise(dataset: Path, data_version: str, patchless_in: Path | None = None, skipped: int = 0) -> DataSummary:
    """Summarise a dataset.

    Args:
        dataset: folder that ingest wrote.
        data_version: of the dataset.
        patchless_in: folder that patches or train wrote; None before the patches are made.
        skipped: see `DataSummary`.

    Raises:
        DataError: a file is missing or damaged.
    """
    manifest = photographs_of(dataset, SPLITS)
    names = dict(zip(manifest["file"], manifest["source"], strict=True))
    patchless = read_patchless(patchless_in) if patchless_in else {}
    return DataSummary(
        data_version=data_version,
        photographs={split: int((manifest["split"] == split).sum()) for split in SPLITS},
        quarantined=read_quarantine(dataset),
        patchless={split: tuple(names.get(file, file) for file in files) for split, files in patchless.items()},
        skipped=skipped,
    )


def reasons_of(quarantined: Iterable[Quarantined]) -> str:
    """Return the number of files for each reason, such as "2 grey, 1 tiny"."""
    return ", ".join(
        f"{count} {reason}" for reason, count in sorted(Counter(each.reason for each in quarantined).items())
    )


def counts_of(summary: DataSummary) -> str:
    """Return the number of photographs and how they are split."""
    splits = ", ".join(f"{count} {split}" for split, count in summary.photographs.items())
    return f"{sum(summary.photographs.values())} photographs ({splits})"


def notices_of(summary: DataSummary) -> list[tuple[str, tuple[str, ...]]]:
    """Return what training or comparison lack: sentences, each with the names of the photographs it is about."""
    notices: list[tuple[str, tuple[str, ...]]] = []
    patchless = tuple(name for names in summary.patchless.values() for name in names)
    validation = summary.photographs.get("validation", 0)
    if patchless:
        what = f"no patches: {len(patchless)} photographs are smaller than patches.size or have too little texture"
        notices.append((what, patchless))
    if not validation:
        notices.append(("no validation: ingest.validation_share is 0, so training is not validated", ()))
    elif len(summary.patchless.get("validation", ())) == validation:
        what = (
            f"no validation: none of the {validation} validation photographs gives a patch, so training is not "
            "validated; add photographs, or lower patches.size or patches.minimum_texture"
        )
        notices.append((what, ()))
    if summary.flat:
        what = (
            f"flat: bicubic restores the measured part of {len(summary.flat)} test photographs, so no model can be "
            "better there; they are not compared; leave them out, or measure more of them (evaluate.crop)"
        )
        notices.append((what, summary.flat))
    return notices


def headline(summary: DataSummary) -> str:
    """Return the summary in one line without names."""
    parts = [counts_of(summary)]
    if summary.quarantined:
        parts.append(f"{len(summary.quarantined)} files quarantined ({reasons_of(summary.quarantined)})")
    return "; ".join([*parts, *(what.partition(";")[0] for what, _ in notices_of(summary))])


def shortened(items: Sequence[str], more: Path) -> list[str]:
    """Return the first items as indented lines, and a line with the number of the others and the file that has all."""
    lines = [f"  {item}" for item in items[:NAMED]]
    return [*lines, f"  and {len(items) - NAMED} more in {more}"] if len(items) > NAMED else lines


def quarantine_lines(quarantined: Sequence[Quarantined], more: Path) -> list[str]:
    """Return the quarantined files as lines, shortened: name, reason, what to do."""
    return [
        printable(line)
        for line in shortened([f"{each.file}: {each.reason}: {each.detail}" for each in quarantined], more)
    ]


def notice_lines(summary: DataSummary, more: Path) -> list[str]:
    """Return `notices_of` as lines, shortened."""
    return [printable(line) for what, names in notices_of(summary) for line in (what, *shortened(names, more))]


def summary_lines(summary: DataSummary, more: Path, checks: Path | None = None) -> list[str]:
    """Return the summary as lines of text, the first one about the accepted photographs.

    Args:
        summary: to tell.
        more: file with the lists of which the text shows the beginning.
        checks: page with the results of the validation, named if it exists.
    """
    lines = [counts_of(summary)]
    if summary.quarantined:
        lines += [f"quarantined: {reasons_of(summary.quarantined)}", *quarantine_lines(summary.quarantined, more)]
    lines += notice_lines(summary, more)
    if summary.skipped:
        lines.append(f"skipped, not pictures: {summary.skipped}")
    if checks and checks.exists():
        lines.append(f"checks: {checks}")
    return [*lines, f"data version: {summary.data_version}"]
