"""Take photographs in: each is decoded, measured, put on its side of the split, or quarantined with a reason.

A dataset is `photographs/<sha256>.<suffix>`, `manifest.parquet` (a row each, sorted by sha256: the fields of
`Photograph` and `split`) and `quarantine.json`. The same photographs under the same names give the same bytes,
whether they come from a folder or a bucket.
"""

import dataclasses
import logging
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bebygan.errors import ConfigError, DataError
from bebygan.files import whole_folder
from components.artifacts import Quarantined, Reason, write_quarantine
from components.config import IngestParams
from components.ingest.photograph import Photograph, Refusal, examine
from components.ingest.splits import SPLITS, Hashes, Split, near_duplicates, nearest, split_of
from components.progress import progress
from components.stores import Store, StoredFile, open_store
from components.stores.data_version import data_version, push
from components.stores.source import list_source

if TYPE_CHECKING:
    import pandas as pd

_LARGEST_FILE = 2**31
_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema(
    [(name, _TYPES[kind]) for name, kind in get_type_hints(Photograph).items()] + [("split", pa.string())]
)


@dataclass(frozen=True)
class IngestReport:
    """What became of the files of a source."""

    accepted: int
    skipped: int
    """Files that are clearly not pictures."""
    quarantined: Mapping[Reason, int]
    splits: Mapping[Split, int]
    data_version: str


def _content(file: StoredFile) -> bytes:
    if file.size > _LARGEST_FILE:
        raise Refusal("huge", f"{file.size} bytes are more than 2 GiB: cut it into smaller photographs")
    try:
        return file.read()
    except OSError as error:
        raise Refusal("unreadable", f"it cannot be read: {error.strerror or error}") from error


def _take_in(file: StoredFile, folder: Path, params: IngestParams) -> Photograph | Quarantined:
    """Examine one file and, if it is fit, store it below `folder`."""
    try:
        photograph, stored = examine(file.name, _content(file), params)
    except Refusal as refusal:
        return Quarantined(file.name, refusal.reason, refusal.detail)
    (folder / photograph.file).write_bytes(stored)
    return photograph


def _all_taken_in(
    files: Sequence[StoredFile], folder: Path, params: IngestParams, threads: int
) -> tuple[list[Photograph], list[Quarantined]]:
    """Examine all files; of files with the same bytes the first by name is taken in."""
    photographs: dict[str, Photograph] = {}
    quarantined: list[Quarantined] = []
    (folder / "photographs").mkdir()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow warns of odd metadata and of pictures that are half as large as those that it refuses.
        warnings.simplefilter("ignore")
        outcomes = pool.map(lambda file: _take_in(file, folder, params), files)
        for outcome in progress(outcomes, "ingest", "files", len(files)):
            if isinstance(outcome, Quarantined):
                quarantined.append(outcome)
            elif outcome.sha256 in photographs:
                first = photographs[outcome.sha256].source
                quarantined.append(Quarantined(outcome.source, "duplicate", f"it has the same bytes as {first}"))
            else:
                photographs[outcome.sha256] = outcome
    return [photographs[sha256] for sha256 in sorted(photographs)], quarantined


def _hashes(photographs: Sequence[Photograph]) -> Hashes:
    return np.array([int(photograph.phash, 16) for photograph in photographs], np.uint64)


def _manifest(photographs: Sequence[Photograph], splits: Sequence[Split]) -> pa.Table:
    rows = [
        dataclasses.asdict(photograph) | {"split": split} for photograph, split in zip(photographs, splits, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _across_sides(photographs: Sequence[Photograph], splits: Sequence[Split], bits: int) -> list[int]:
    """Return 1 for each photograph that has a near duplicate on another side."""
    hashes, sides = _hashes(photographs), np.array(splits, np.str_)
    near = np.zeros(len(photographs), np.int64)
    for side in SPLITS:
        here, elsewhere = np.flatnonzero(sides == side), np.flatnonzero(sides != side)
        if len(here) and len(elsewhere):
            near[here] = nearest(hashes[here], hashes[elsewhere])[1] <= bits
    flags: list[int] = near.tolist()
    return flags


def _fault(
    counts: Mapping[Split, int], quarantined: Sequence[Quarantined], files: int, docs: Path, params: IngestParams
) -> str | None:
    """Say why the photographs as a whole are no dataset, if they are none."""
    if len(quarantined) / files > params.quarantine_tolerance:
        first = "; ".join(f"{entry.file}: {entry.reason}" for entry in quarantined[:3])
        return (
            f"{len(quarantined)} of {files} files are quarantined, more than ingest.quarantine_tolerance "
            f"{params.quarantine_tolerance:g} allows ({first}{'; ...' if len(quarantined) > 3 else ''}): "
            f"see {docs / 'quarantine.json'} for what to do with each"
        )
    empty = [side for side in SPLITS if not counts[side]]
    if empty:
        return (
            f"{sum(counts.values())} photographs leave none for {' and '.join(empty)}: add photographs, or change "
            f"ingest.test_share {params.test_share:g} and ingest.validation_share {params.validation_share:g}"
        )
    return None


def _gate(manifest: "pd.DataFrame", pages: Path, params: IngestParams) -> list[str]:
    """Return what does not hold of a manifest; Great Expectations is imported here and kept quiet."""
    # Before 1.24 it reports its use to its makers unless it is told not to when it is imported.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        # 3 s that --help, and what is refused before, need not wait for.
        from components.ingest.expectations import validate  # noqa: PLC0415

        return validate(manifest, pages, params)
    finally:
        logging.disable(disabled)


def checks_page(docs: Path) -> Path:
    """Return the page that shows what the gate found, of a folder that `ingest` wrote."""
    return next(docs.glob("validations/**/*.html"))


def _refuse_impossible(store: Store, dataset: Path, params: IngestParams) -> None:
    if params.test_share + params.validation_share >= 1:
        raise ConfigError(
            f"ingest.test_share {params.test_share:g} and ingest.validation_share {params.validation_share:g} leave "
            "nothing to train on: their sum must be below 1"
        )
    if store.folder and dataset.resolve().is_relative_to(store.folder.resolve()):
        raise ConfigError(f"the dataset {dataset} would lie in its own source {store.folder}: choose a folder outside")


def _without_near_duplicates(
    photographs: Sequence[Photograph], folder: Path, params: IngestParams
) -> tuple[list[Photograph], list[Split], list[Quarantined]]:
    """Put the photographs on their sides, and take away those that show what a held-out one shows."""
    splits = [split_of(each.sha256, params.validation_share, params.test_share) for each in photographs]
    giving_way = near_duplicates(_hashes(photographs), np.array(splits, np.str_), params.near_duplicate_bits)
    quarantined = []
    for index, other in giving_way.items():
        detail = (
            f"near duplicate of {photographs[other].source}, which is held out ({splits[other]}): leave one of them out"
        )
        quarantined.append(Quarantined(photographs[index].source, "near-duplicate", detail))
        (folder / photographs[index].file).unlink()
    kept = [index for index in range(len(photographs)) if index not in giving_way]
    return [photographs[index] for index in kept], [splits[index] for index in kept], quarantined


def ingest(source: str, dataset: Path, docs: Path, params: IngestParams, remote: str | None = None) -> IngestReport:
    """Make a dataset of the photographs in a folder or a bucket, behind a gate.

    Args:
        source: a folder with all below it, or s3://bucket/prefix; endpoint and credentials from AWS_* variables.
        dataset: folder of the dataset, written whole; what stood there is replaced, and kept when the step fails.
        docs: folder for the gate's Data Docs pages (see `checks_page`) and a copy of the quarantine; written also
            where the photographs are refused, as far as the step came.
        params: of the step.
        remote: DVC remote that the dataset is brought into, a folder or s3://bucket/prefix.

    Raises:
        ConfigError: the parameters contradict each other, or the dataset would lie in its own source.
        DataError: the source is missing or empty, too many files are quarantined, a side of the split would be empty,
            or an expectation does not hold.
        ServiceError: a bucket is unreachable, unknown, or refuses access.
        StorageError: dataset, docs or remote cannot be written.
    """
    store = open_store(source)
    _refuse_impossible(store, dataset, params)
    files, skipped = list_source(source)
    with whole_folder(dataset) as folder:
        fit, unfit = _all_taken_in(files, folder, params, store.parallel_reads)
        photographs, splits, near = _without_near_duplicates(fit, folder, params)
        quarantined = sorted([*unfit, *near], key=lambda entry: entry.file)
        counts = {side: splits.count(side) for side in reversed(SPLITS)}
        write_quarantine(folder, quarantined)
        manifest = _manifest(photographs, splits)
        # Without compression the bytes do not depend on a compressor's version.
        pq.write_table(manifest, folder / "manifest.parquet", compression="NONE")

        fault = _fault(counts, quarantined, len(files), docs, params)
        with whole_folder(docs) as pages:
            write_quarantine(pages, quarantined)
            if not fault:
                across = _across_sides(photographs, splits, params.near_duplicate_bits)
                failed = _gate(manifest.to_pandas().assign(near_duplicates=across), pages, params)
                fault = "; ".join([*failed, f"see {docs / checks_page(pages).relative_to(pages)}"]) if failed else None
        if fault:
            raise DataError(fault)
    reasons = Counter(entry.reason for entry in quarantined)
    version = push(dataset, remote) if remote else data_version(dataset)
    return IngestReport(len(photographs), skipped, dict(sorted(reasons.items())), counts, version)
