"""The files that one step writes for the next: a type, a reader and a writer for each.

Each file is valid JSON with the number of its schema under `schema` and a digest of itself under `digest`, which the
readers verify. Files of earlier versions, without either, are read too. Readers raise a DataError, which names the
file and the step to run, if the file is missing, damaged, incomplete, or has a newer schema. Writers raise a DataError,
which names the value, if a number is not finite.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, TypeAdapter, ValidationError

from bebygan.errors import DataError
from bebygan.files import checksums, files_in, json_digest
from components.config import Interval, Metric, flatten, plain
from components.progress import printable

SCHEMA = 2
_DIGEST = "digest"
"""Key of a file's digest of itself. Files with a schema below 2 have none. metrics.json has none either, because
`dvc metrics` would show it; the verdict names its digest."""
PSNR_CAP = 100.0
"""dB. Upper limit of a measured PSNR, because that of two equal images is infinite."""

Candidate = Literal["bicubic", "warmup", "challenger", "champion"]
Means = Mapping[Candidate, Mapping[Metric, float]]
"""Mean of each metric over the held-out photographs, by candidate."""
Recommendation = Literal["promote", "keep"]
Reason = Literal[
    "unreadable", "not-an-image", "truncated", "huge", "tiny", "16-bit", "grey", "transparent", "rotated", "cmyk",
    "animated", "palette", "unsupported", "flat", "duplicate", "near-duplicate",
]  # fmt: skip
"""Why a file is quarantined."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A file that is not part of the dataset."""

    file: str
    """Name relative to the source."""
    reason: Reason
    detail: str
    """One line on what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What a dataset holds, and what was left out of it or of the training."""

    data_version: str
    photographs: Mapping[str, int]
    """Number by split: train, validation, test."""
    quarantined: tuple[Quarantined, ...]
    patchless: Mapping[str, tuple[str, ...]]
    """Photographs that give no patch, by split: names relative to the source."""
    flat: tuple[str, ...] = ()
    """Held-out photographs whose measured part bicubic restores up to rounding, and which are therefore left out of
    the comparison: names relative to the source."""
    skipped: int = 0
    """Files of the source that are clearly not pictures, if they were counted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of the health check of a training."""

    healthy: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """By how much the challenger is better than another candidate in one metric, over the held-out photographs."""

    opponent: Candidate
    metric: Metric
    mean: float
    """Mean difference in units of the metric; positive if the challenger is better, also where lower is better."""
    interval: Interval | None
    """Confidence interval of the mean, with the confidence of the verdict; None if there are too few photographs."""
    better: int
    """Number of photographs on which the challenger is better; the same for the next two."""
    ties: int
    worse: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a challenger should become champion, and why."""

    verdict: Recommendation
    reasons: tuple[str, ...]
    """One sentence per threshold, with the prefix "passed: " or "failed: "."""
    summary: str = ""
    """One sentence for a person; empty in verdicts of earlier versions."""
    gains: tuple[Gain, ...] = ()
    """Over bicubic, the warm-up and the champion; empty in verdicts of earlier versions."""
    confidence: float = 0.0
    """Of the intervals of the gains; 0 in verdicts of earlier versions."""
    model: str
    """Registered model of the champion."""
    champion: str | None
    """Version that the challenger was compared with; None if there was no champion."""
    challenger_sha256: str
    """Of the challenger's generator.safetensors."""
    measured_sha256: Mapping[str, str] = field(default_factory=dict)
    """Of metrics.json and per_photograph.csv, by name; empty in verdicts of version 0.1.0."""
    protocol: Mapping[str, str]
    """How each metric was measured."""
    health: tuple[Finding, ...] = ()
    provenance: Mapping[str, str]
    """See `components.tracking.provenance`."""

    @property
    def data_version(self) -> str:
        """Data version of the photographs."""
        return self.provenance.get("data_version", "unknown")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Means over the photographs that stay the same from run to run."""

    data_version: str
    """Whose held-out photographs they are."""
    photographs: int
    means: Means


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """The version of a registered challenger, and the aliases after its registration."""

    model: str
    version: str
    """Of the challenger."""
    verdict: Recommendation
    champion: str | None
    """Version with the alias champion."""
    previous: str | None
    """Version with the alias previous, the champion before."""
    weights_sha256: str


def capped(metric: Metric, value: float) -> float:
    """Limit a PSNR to PSNR_CAP; return values of other metrics unchanged."""
    return min(value, PSNR_CAP) if "psnr" in metric else value


_ALWAYS: tuple[Metric, ...] = ("psnr_y", "ssim_y", "lpips", "lr_psnr")
"""Metrics that earlier versions measured, too."""


def _row(row: dict[Metric, float]) -> dict[Metric, float]:
    if missing := [metric for metric in _ALWAYS if metric not in row]:
        raise ValueError(f"has no {' and no '.join(missing)}")
    # Earlier versions wrote the PSNR of equal images as Infinity.
    row = {metric: capped(metric, value) for metric, value in row.items()}
    if wrong := [f"{metric} = {value}" for metric, value in row.items() if not math.isfinite(value)]:
        raise ValueError(f"has {' and '.join(wrong)}")
    return row


def _compared(means: dict[Candidate, Any]) -> dict[Candidate, Any]:
    if "challenger" not in means:
        raise ValueError("has no challenger")
    return means


def _logged(entry: dict[str, float]) -> dict[str, float]:
    if "iteration" not in entry:
        raise ValueError("has no iteration")
    return {name: value for name, value in entry.items() if math.isfinite(value)}


_Table = Annotated[dict[Candidate, Annotated[dict[Metric, float], AfterValidator(_row)]], AfterValidator(_compared)]
_Entry = Annotated[dict[str, int | float], AfterValidator(_logged)]


@dataclass(frozen=True)
class _MadeFrom:
    data_version: str
    params: str = "{}"


@dataclass(frozen=True)
class _Patches:
    made_from: _MadeFrom


@dataclass(frozen=True)
class _Checksums:
    sha256: Mapping[str, str]


@dataclass(frozen=True)
class _Quarantine:
    files: tuple[Quarantined, ...]


@dataclass(frozen=True)
class _Patchless:
    photographs: dict[str, tuple[str, ...]]


def _write(path: Path, values: Mapping[Any, Any], *, digest: bool = True) -> None:
    for name, value in flatten(values):
        if isinstance(value, float) and not math.isfinite(value):
            raise DataError(f"{path.name} cannot hold {name} = {value}: every number in it must be finite")
    values = {"schema": SCHEMA, **values}
    if digest:
        values[_DIGEST] = json_digest(values)
    path.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _bytes(path: Path, step: str) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{path.parent} holds no {path.name}: run {step} first") from error
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror}): run {step} again") from error


def _text(path: Path, step: str) -> str:
    try:
        return _bytes(path, step).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path} (it is not UTF-8): run {step} again") from error


def _parsed(text: str, path: Path, step: str, line: int = 0) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = line or getattr(error, "lineno", 1)
        raise DataError(f"{path} is damaged (line {line} is not JSON): run {step} again") from error


def _validated(kind: type[T], values: Any, path: Path, step: str) -> T:
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(str(part) for part in fault["loc"] if part != "[key]")
        problem = "is missing" if fault["type"] == "missing" else f"is {str(fault['input'])[:80]!r}"
        if fault["type"] == "value_error":
            problem = str(fault["ctx"]["error"])
        raise DataError(f"{path} is damaged ({f'{name} {problem}'.strip()}): run {step} again") from error


def _read(kind: type[T], path: Path, step: str) -> T:
    values = _parsed(_text(path, step), path, step)
    if isinstance(values, list) and kind is _Quarantine:
        # Earlier versions wrote the list alone.
        values = {"files": values}
    if not isinstance(values, dict):
        raise DataError(f"{path} is damaged (it is not a JSON object): run {step} again")
    expected, actual = values.pop(_DIGEST, None), json_digest(values)
    schema = values.pop("schema", 0)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise DataError(
            f"{path} has schema {str(schema)[:80]}, this version of bebygan reads up to {SCHEMA}: install the version "
            f"that wrote it, or run {step} again"
        )
    if expected != actual and (expected is not None or (schema > 1 and kind is not _Table)):
        raise DataError(f"{path} is damaged (its content differs from the digest in it): run {step} again")
    return _validated(kind, values, path, step)


def write_verdict(folder: Path, verdict: Verdict) -> None:
    """Write verdict.json."""
    _write(folder / "verdict.json", plain(verdict))


def read_verdict(folder: Path) -> Verdict:
    """Read verdict.json from the folder that evaluate wrote, and compare the files that it names with their digests."""
    path = folder / "verdict.json"
    verdict = _read(Verdict, path, "evaluate")
    if verdict.verdict == "promote" and any(reason.startswith("failed: ") for reason in verdict.reasons):
        raise DataError(f"{path} is damaged (it says promote although a threshold failed): run evaluate again")
    for name, expected in verdict.measured_sha256.items():
        if hashlib.sha256(_bytes(folder / name, "evaluate")).hexdigest() != expected:
            raise DataError(f"{folder / name} is not the file that the verdict beside it is about: run evaluate again")
    return verdict


def write_means(folder: Path, means: Means) -> None:
    """Write metrics.json, {candidate: {metric: mean}}, which `dvc metrics` can read."""
    _write(folder / "metrics.json", means, digest=False)


def read_means(folder: Path) -> Means:
    """Read metrics.json from the folder that evaluate wrote; an infinite PSNR is read as PSNR_CAP."""
    return _read(_Table, folder / "metrics.json", "evaluate")


def write_anchor(folder: Path, anchor: Anchor) -> None:
    """Write anchor.json."""
    _write(folder / "anchor.json", plain(anchor))


def read_anchor(folder: Path) -> Anchor | None:
    """Read anchor.json from the folder that evaluate wrote; None if no anchor was measured."""
    path = folder / "anchor.json"
    return _read(Anchor, path, "evaluate") if path.exists() else None


def write_registration(folder: Path, registration: Registration) -> None:
    """Write registration.json."""
    _write(folder / "registration.json", plain(registration))


def read_registration(folder: Path) -> Registration:
    """Read registration.json from the folder that register wrote."""
    return _read(Registration, folder / "registration.json", "register")


def write_quarantine(folder: Path, files: Sequence[Quarantined]) -> None:
    """Write quarantine.json."""
    _write(folder / "quarantine.json", plain(_Quarantine(tuple(files))))


def read_quarantine(folder: Path) -> tuple[Quarantined, ...]:
    """Read quarantine.json from a folder that ingest wrote."""
    return _read(_Quarantine, folder / "quarantine.json", "ingest").files


def write_patchless(folder: Path, photographs: Mapping[str, Sequence[str]]) -> None:
    """Write patchless.json: by split, the photographs that give no patch, named relative to the dataset."""
    _write(folder / "patchless.json", {"photographs": photographs})


def read_patchless(folder: Path) -> dict[str, tuple[str, ...]]:
    """Read patchless.json from a folder that patches or train wrote; {} if an earlier version wrote it."""
    path = folder / "patchless.json"
    return _read(_Patchless, path, "patches").photographs if path.exists() else {}


def write_summary(folder: Path, summary: DataSummary) -> None:
    """Write data.json."""
    _write(folder / "data.json", plain(summary))


def read_summary(folder: Path) -> DataSummary:
    """Read data.json from a folder that evaluate wrote."""
    return _read(DataSummary, folder / "data.json", "evaluate")


def seal(folder: Path) -> None:
    """Write checksums.json about all files of a folder."""
    _write(folder / "checksums.json", plain(_Checksums(checksums(folder, files_in(folder)))))


def check_sealed(folder: Path, step: str) -> None:
    """Compare all files of a folder that a step wrote with its checksums.json. Folders of earlier versions have none.

    Raises:
        DataError: a file is damaged, missing, or was added.
    """
    path = folder / "checksums.json"
    if not path.exists():
        return
    expected = _read(_Checksums, path, step).sha256
    found = checksums(folder, files_in(folder))
    del found[path.name]
    if differing := sorted(name for name, _ in expected.items() ^ found.items()):
        raise DataError(
            f"{printable(str(folder / differing[0]))} is not the file that {step} wrote (damaged, missing or added): "
            f"run {step} again"
        )


def photographs_version(patches: Path) -> str:
    """Return the data version of the photographs that a folder of patches was made from."""
    return _read(_Patches, patches / "patches.json", "patches").made_from.data_version


def parameters_of_patches(patches: Path) -> dict[str, str]:
    """Return the parameters that a folder of patches was made with, as a run of the pipeline logs them."""
    path = patches / "patches.json"
    try:
        params = yaml.safe_load(_read(_Patches, path, "patches").made_from.params)
    except yaml.YAMLError as error:
        raise DataError(f"{path} is damaged (its parameters are not YAML): run patches again") from error
    return {name: str(value) for name, value in flatten({"patches": params})}


def check_data_version(what: Path, found: str, expected: str | None, step: str) -> None:
    """Compare the data version of a folder with that of the photographs that the run ingested.

    Args:
        what: the folder.
        found: its data version.
        expected: that of the run; None if the step was not told it.
        step: the one that wrote the folder.

    Raises:
        DataError: they differ.
    """
    if expected and found != expected:
        raise DataError(f"{what} is of data version {found}, but this run ingested {expected}: run {step} again")


def write_history(folder: Path, entries: Iterable[dict[str, float]]) -> None:
    """Write history.jsonl, one line per logged iteration, without values that are not finite."""
    lines = (json.dumps(_logged(entry), allow_nan=False) + "\n" for entry in entries)
    (folder / "history.jsonl").write_text("".join(lines), encoding="utf-8")


def read_history(folder: Path) -> list[dict[str, float]]:
    """Read the values that a training step logged, oldest first; [] if there is no history.jsonl."""
    path = folder / "history.jsonl"
    if not path.exists():
        return []
    lines = enumerate(_text(path, "train").splitlines(), start=1)
    entries = [_parsed(line, path, "train", number) for number, line in lines]
    return _validated(list[_Entry], entries, path, "train")
