"""Make a dataset of photographs: measure each and assign it to a split, or quarantine it with a reason.

A dataset is `photographs/<sha256>.<suffix>`, `manifest.parquet` (one row per photograph, sorted by sha256, with the
fields of `Photograph`), `quarantine.json`, thumbnails of the first quarantined files, and `checksums.json` about all of
these. Its bytes depend on the names and the content of the photographs alone.
"""

import dataclasses
import hashlib
import logging
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_type_hints

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from bebygan.errors import ConfigError, DataError
from bebygan.files import whole_folder
from components.artifacts import Quarantined, Reason, seal, write_quarantine
from components.config import IngestParams
from components.ingest.photograph import Photograph, Refusal, examine, thumbnail
from components.ingest.splits import (
    SPLITS,
    Hashes,
    Split,
    near_duplicates,
    nearest,
    photographs_needed,
    shares_of,
)
from components.progress import announce, progress, say
from components.stores import Store, StoredFile, open_store
from components.stores.data_version import data_version, push
from components.stores.dataset import NAMED, headline, quarantine_lines, summarise, summary_lines, thumbnail_path
from components.stores.source import list_source, version_of

if TYPE_CHECKING:
    import pandas as pd

_LARGEST_FILE = 2**31
_TYPES = {str: pa.string(), Split: pa.string(), int: pa.int64(), float: pa.float64()}
_SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in get_type_hints(Photograph).items()])


@dataclass(frozen=True)
class IngestReport:
    """Counts of the files of a source."""

    splits: Mapping[Split, int]
    """Accepted photographs by split."""
    quarantined: Mapping[Reason, int]
    skipped: int
    """Files that are clearly not pictures."""
    data_version: str


def _accept(file: StoredFile, folder: Path, params: IngestParams, digests: dict[str, str]) -> Photograph | Quarantined:
    """Examine one file and, if it is accepted, store it below `folder`; add the SHA-256 of its bytes to `digests`."""
    if file.size > _LARGEST_FILE:
        return Quarantined(file.name, "huge", f"{file.size} bytes are more than 2 GiB: cut it into smaller photographs")
    try:
        content = file.read()
    except OSError as error:
        problem = f"it cannot be read ({error.strerror or error})"
        return Quarantined(file.name, "unreadable", f"{problem}: correct the link or its permissions, or leave it out")
    digests[file.name] = hashlib.sha256(content).hexdigest()
    try:
        photograph, stored = examine(file.name, content, params)
    except Refusal as refusal:
        return Quarantined(file.name, refusal.reason, refusal.detail)
    (folder / photograph.file).write_bytes(stored)
    return photograph


def _accept_all(
    files: Sequence[StoredFile], folder: Path, params: IngestParams, threads: int, digests: dict[str, str]
) -> tuple[list[Photograph], list[Quarantined]]:
    """Examine all files; of files with the same bytes the first by name is accepted."""
    photographs: dict[str, Photograph] = {}
    quarantined: list[Quarantined] = []
    (folder / "photographs").mkdir()
    with warnings.catch_warnings(), ThreadPoolExecutor(threads) as pool:
        # Pillow warns of unusual metadata, and of pictures half as large as those that it refuses.
        warnings.simplefilter("ignore")
        outcomes = pool.map(lambda file: _accept(file, folder, params, digests), files)
        for outcome in progress(outcomes, "ingest", "files", len(files)):
            if isinstance(outcome, Quarantined):
                quarantined.append(outcome)
            elif outcome.sha256 in photographs:
                first = photographs[outcome.sha256].source
                quarantined.append(
                    Quarantined(outcome.source, "duplicate", f"it has the same bytes as {first}: leave it out")
                )
            else:
                photographs[outcome.sha256] = outcome
    return [photographs[sha256] for sha256 in sorted(photographs)], quarantined


def _hashes_and_splits(photographs: Sequence[Photograph]) -> tuple[Hashes, npt.NDArray[np.str_]]:
    hashes = np.array([int(photograph.phash, 16) for photograph in photographs], np.uint64)
    return hashes, np.array([photograph.split for photograph in photographs], np.str_)


def _across_splits(photographs: Sequence[Photograph], bits: int) -> npt.NDArray[np.int64]:
    """Return 1 for each photograph that has a near duplicate in another split, else 0."""
    hashes, splits = _hashes_and_splits(photographs)
    near = np.zeros(len(photographs), np.int64)
    for split in SPLITS:
        inside = splits == split
        if inside.any() and not inside.all():
            near[inside] = nearest(hashes[inside], hashes[~inside])[1] <= bits
    return near


def _fault(
    counts: Mapping[Split, int], quarantined: Sequence[Quarantined], files: int, docs: Path, params: IngestParams
) -> str | None:
    """Return why the photographs as a whole are not a dataset, or None if they are."""
    if len(quarantined) / files > params.quarantine_tolerance:
        first = "; ".join(f"{entry.file}: {entry.reason}" for entry in quarantined[:3])
        return (
            f"{len(quarantined)} of {files} files are quarantined, more than ingest.quarantine_tolerance "
            f"{params.quarantine_tolerance:g} allows ({first}{'; ...' if len(quarantined) > 3 else ''}): "
            f"see {docs / 'quarantine.json'} for what to do with each"
        )
    shares = shares_of(params.validation_share, params.test_share)
    if empty := [split for split in SPLITS if shares[split] and not counts[split]]:
        return (
            f"{sum(counts.values())} photographs leave none for {' and '.join(empty)}: add photographs, or change "
            f"ingest.test_share {params.test_share:g} and ingest.validation_share {params.validation_share:g}; with "
            f"these shares about {photographs_needed(shares.values())} are needed, because the bytes of each "
            "photograph decide its split"
        )
    return None


def _validate(manifest: "pd.DataFrame", pages: Path, params: IngestParams) -> list[str]:
    """Return which expectations do not hold, without messages of Great Expectations."""
    # Before 1.24 it sends usage statistics unless this is set when it is imported.
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    disabled = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        # The import takes 3 s, which --help and a refused source need not wait for.
        from components.ingest.expectations import validate  # noqa: PLC0415

        return validate(manifest, pages, params)
    finally:
        logging.disable(disabled)


def checks_page(docs: Path) -> Path:
    """Return the page with the results of the validation, in a docs folder that `ingest` wrote."""
    return next(docs.glob("validations/**/*.html"))


def _refuse_dataset_in_source(store: Store, dataset: Path) -> None:
    if store.folder and dataset.resolve().is_relative_to(store.folder.resolve()):
        raise ConfigError(f"the dataset {dataset} would lie in its own source {store.folder}: choose a folder outside")


def _without_near_duplicates(
    photographs: Sequence[Photograph], folder: Path, bits: int
) -> tuple[list[Photograph], list[Quarantined]]:
    """Remove the photographs that show the same scene as one in an earlier split."""
    near = near_duplicates(*_hashes_and_splits(photographs), bits)
    quarantined = []
    for index, other in near.items():
        kept, removed = photographs[other], photographs[index]
        detail = f"near duplicate of {kept.source}, which is held out ({kept.split}): leave one of them out"
        quarantined.append(Quarantined(removed.source, "near-duplicate", detail))
        (folder / removed.file).unlink()
    return [each for index, each in enumerate(photographs) if index not in near], quarantined


def _write_thumbnails(folder: Path, files: Sequence[StoredFile], quarantined: Sequence[Quarantined]) -> None:
    """Write a thumbnail of each of the first quarantined files that can be decoded, for the report."""
    by_name = {file.name: file for file in files if file.size <= _LARGEST_FILE}
    for number, entry in enumerate(quarantined[:NAMED]):
        content = b""
        # A file that cannot be read has no thumbnail.
        with suppress(KeyError, OSError):
            content = by_name[entry.file].read()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = thumbnail(content)
        if picture:
            path = thumbnail_path(folder, number)
            path.parent.mkdir(exist_ok=True)
            # Without compression the bytes do not depend on a compressor's version.
            picture.save(path, compress_level=0)


def tell(report: IngestReport, dataset: Path, docs: Path) -> None:
    """Print what the step accepted and quarantined."""
    summary = summarise(dataset, report.data_version, skipped=report.skipped)
    first, *others = summary_lines(summary, docs / "quarantine.json", checks_page(docs))
    print(f"{dataset}: {first}", *others, sep="\n", flush=True)
    if summary.quarantined:
        announce(f"ingest: {headline(summary)}")


def ingest(
    source: str,
    dataset: Path,
    docs: Path,
    params: IngestParams,
    remote: str | None = None,
    *,
    expected: str | None = None,
) -> IngestReport:
    """Make a dataset of the photographs in a folder or a bucket, and validate it.

    Args:
        source: a folder with its subfolders, or s3://bucket/prefix; endpoint and credentials from AWS_* variables.
        dataset: folder of the dataset, replaced as a whole, and unchanged if the step fails.
        docs: folder for the Data Docs pages (see `checks_page`) and a copy of the quarantine, also if the step refuses
            the photographs.
        params: of the step.
        remote: DVC remote that the dataset is pushed to, a folder or s3://bucket/prefix.
        expected: version of the source that the run is about, see `components.stores.source.source_version`.

    Raises:
        ConfigError: the dataset would lie in its own source.
        DataError: the source is missing or empty, or is another version than expected, too many files are quarantined,
            a split would be empty, or an expectation does not hold.
        ServiceError: a bucket is unreachable, unknown, or refuses access.
        StorageError: dataset, docs or remote cannot be written.
    """
    store = open_store(source)
    _refuse_dataset_in_source(store, dataset)
    files, skipped = list_source(source)
    if expected:
        files = [dataclasses.replace(file, read=file.read_as_listed) for file in files]
    with whole_folder(dataset) as folder:
        digests: dict[str, str] = {}
        fit, unfit = _accept_all(files, folder, params, store.parallel_reads, digests)
        if expected:
            read = digests if store.folder else {}
            if version_of((file.name, read.get(file.name) or file.identity()) for file in files) != expected:
                raise DataError(f"the photographs in {source} changed after the run had looked at them: run it again")
        photographs, near = _without_near_duplicates(fit, folder, params.near_duplicate_bits)
        quarantined = sorted([*unfit, *near], key=lambda entry: entry.file)
        counts = {split: sum(each.split == split for each in photographs) for split in reversed(SPLITS)}
        write_quarantine(folder, quarantined)
        _write_thumbnails(folder, files, quarantined)
        manifest = pa.Table.from_pylist([dataclasses.asdict(each) for each in photographs], schema=_SCHEMA)
        # Without compression the bytes do not depend on a compressor's version.
        pq.write_table(manifest, folder / "manifest.parquet", compression="NONE")
        seal(folder)

        fault = _fault(counts, quarantined, len(files), docs, params)
        with whole_folder(docs) as pages:
            write_quarantine(pages, quarantined)
            if not fault:
                across = _across_splits(photographs, params.near_duplicate_bits)
                failed = _validate(manifest.to_pandas().assign(near_duplicates=across), pages, params)
                fault = "; ".join([*failed, f"see {docs / checks_page(pages).relative_to(pages)}"]) if failed else None
        if fault:
            for line in quarantine_lines(quarantined, docs / "quarantine.json"):
                say(line)
            raise DataError(fault)
    reasons = dict(sorted(Counter(entry.reason for entry in quarantined).items()))
    return IngestReport(counts, reasons, skipped, push(dataset, remote) if remote else data_version(dataset))
