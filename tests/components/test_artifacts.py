import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bebygan.errors import DataError
from bebygan.files import sha256_of
from components import artifacts
from components.artifacts import (
    PSNR_CAP,
    SCHEMA,
    DataSummary,
    Finding,
    Quarantined,
    Reason,
    Registration,
    Verdict,
    photographs_version,
    read_history,
    read_means,
    read_patchless,
    read_quarantine,
    read_registration,
    read_summary,
    read_verdict,
    write_history,
    write_means,
    write_patchless,
    write_quarantine,
    write_registration,
    write_summary,
    write_verdict,
)
from components.config import Metric

BEFORE = Path(__file__).parent / "previous_version"
"""Files of the previous version, without the number of a schema."""
READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "verdict.json": (read_verdict, "evaluate"),
    "metrics.json": (read_means, "evaluate"),
    "registration.json": (read_registration, "register"),
    "quarantine.json": (read_quarantine, "ingest"),
    "patches.json": (photographs_version, "patches"),
}
KEYS = [
    (name, key)
    for name, keys in {
        "verdict.json": ("verdict", "reasons", "model", "champion", "challenger_sha256", "protocol", "provenance"),
        "metrics.json": ("challenger",),
        "registration.json": ("model", "version", "verdict", "champion", "previous", "weights_sha256"),
        "patches.json": ("made_from",),
    }.items()
    for key in keys
]

texts = st.text(max_size=20)
optional = st.none() | texts
recommendations: Any = st.sampled_from(["promote", "keep"])
verdicts = st.builds(
    Verdict,
    verdict=recommendations,
    reasons=st.lists(texts, max_size=3).map(tuple),
    model=texts,
    champion=optional,
    challenger_sha256=texts,
    protocol=st.dictionaries(texts, texts, max_size=3),
    health=st.lists(st.builds(Finding, st.booleans(), texts), max_size=3).map(tuple),
    provenance=st.dictionaries(texts, texts, max_size=3),
)
registrations = st.builds(
    Registration,
    model=texts,
    version=texts,
    verdict=recommendations,
    champion=optional,
    previous=optional,
    weights_sha256=texts,
)
quarantines = st.lists(st.builds(Quarantined, texts, st.sampled_from(get_args(Reason)), texts), max_size=4).map(tuple)
patchless: Any = st.dictionaries(st.sampled_from(["train", "validation"]), st.lists(texts, max_size=3).map(tuple))
summaries = st.builds(
    DataSummary,
    data_version=texts,
    photographs=st.dictionaries(texts, st.integers(0, 10**9), max_size=3),
    quarantined=quarantines,
    patchless=patchless,
    flat=st.lists(texts, max_size=3).map(tuple),
)
rows: Any = st.fixed_dictionaries({metric: st.floats(-1e6, PSNR_CAP) for metric in get_args(Metric)})
means: Any = st.fixed_dictionaries({"bicubic": rows, "challenger": rows}, optional={"warmup": rows, "champion": rows})
histories: Any = st.lists(
    st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3).map(
        lambda entry: entry | {"iteration": 1}
    ),
    max_size=4,
)


def strict(text: str) -> Any:
    """Parse JSON as RFC 8259 defines it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def round_trip(folder: Path, name: str, write: Callable[[Path, Any], None], value: Any) -> Any:
    write(folder, value)
    content = strict((folder / name).read_text())
    assert content["schema"] == SCHEMA
    return READERS[name][0](folder)


@given(verdicts)
def test_reading_a_verdict_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, verdict: Verdict) -> None:
    assert round_trip(tmp_path_factory.getbasetemp(), "verdict.json", write_verdict, verdict) == verdict


@given(registrations)
def test_reading_a_registration_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, registration: Registration
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert round_trip(folder, "registration.json", write_registration, registration) == registration


@given(quarantines)
def test_reading_a_quarantine_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, files: tuple[Quarantined, ...]
) -> None:
    assert round_trip(tmp_path_factory.getbasetemp(), "quarantine.json", write_quarantine, files) == files


@given(summaries)
def test_reading_a_summary_returns_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, summary: DataSummary
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_summary(folder, summary)
    assert strict((folder / "data.json").read_text())["schema"] == SCHEMA
    assert read_summary(folder) == summary
    write_patchless(folder, summary.patchless)
    assert read_patchless(folder) == summary.patchless


def test_a_damaged_summary_raises_a_one_line_error_and_missing_patchless_photographs_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no data\.json: run evaluate first"):
        read_summary(tmp_path)
    for name, read, step in (("data.json", read_summary, "evaluate"), ("patchless.json", read_patchless, "patches")):
        (tmp_path / name).write_text('{"photographs": 3}')
        with pytest.raises(DataError, match=rf"{name} is damaged .*: run {step} again"):
            read(tmp_path)
    (tmp_path / "patchless.json").unlink()
    assert read_patchless(tmp_path) == {}


@given(means)
def test_reading_means_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, measured: Any) -> None:
    assert round_trip(tmp_path_factory.getbasetemp(), "metrics.json", write_means, measured) == measured


@given(histories)
def test_reading_a_history_returns_what_was_written(tmp_path_factory: pytest.TempPathFactory, entries: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    write_history(folder, entries)
    assert read_history(folder) == entries


def test_files_of_the_previous_version_can_be_read() -> None:
    verdict = read_verdict(BEFORE)
    assert (verdict.verdict, verdict.model, verdict.champion) == ("promote", "bebygan", None)
    assert verdict.reasons[-1] == "passed: there is no champion yet to be better than"
    assert verdict.health[0] == Finding(
        True, "discriminator: its loss was 0.274 (0.693 is chance), between 0.05 and 0.66"
    )
    assert (verdict.summary, verdict.gains) == ("", ())
    assert verdict.data_version == photographs_version(BEFORE) == "8559d58bbff6e5d67913b13ad7648c7b.dir"
    assert read_means(BEFORE)["challenger"]["lpips"] == 0.26781390607357025
    assert list(read_means(BEFORE)) == ["bicubic", "warmup", "challenger"]
    assert read_registration(BEFORE).champion == "1"
    [bad] = read_quarantine(BEFORE)
    assert (bad.file, bad.reason) == ("bad.png", "not-an-image")
    assert [entry["iteration"] for entry in read_history(BEFORE)] == [10, 20, 30]


def test_an_infinite_psnr_of_the_previous_version_is_read_as_the_cap(tmp_path: Path) -> None:
    row = {"psnr_y": math.inf, "ssim_y": 1.0, "lpips": 0.0, "lr_psnr": math.inf}
    (tmp_path / "metrics.json").write_text(json.dumps({"bicubic": row, "challenger": row}))
    assert read_means(tmp_path)["challenger"] == row | {"psnr_y": 100.0, "lr_psnr": 100.0}


def refusal(name: str, folder: Path) -> str:
    read, step = READERS[name]
    with pytest.raises(DataError) as caught:
        read(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert name in message
    assert f"run {step} " in message
    assert len(message) < len(str(folder)) + 250
    return message


WRITTEN: dict[str, tuple[Callable[[Path, Any], None], Any]] = {
    "verdict.json": (
        write_verdict,
        Verdict(
            verdict="keep",
            reasons=("failed: lpips 0.2",),
            model="m",
            champion="1",
            challenger_sha256="0" * 64,
            protocol={},
            provenance={"data_version": "0123.dir"},
        ),
    ),
    "registration.json": (
        write_registration,
        Registration(model="m", version="2", verdict="keep", champion="1", previous=None, weights_sha256="0" * 64),
    ),
    "quarantine.json": (write_quarantine, (Quarantined("a.png", "grey", "convert it"),)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_any_flipped_bit_in_a_written_file_is_found_unless_its_values_are_the_same(name: str, tmp_path: Path) -> None:
    write, value = WRITTEN[name]
    write(tmp_path, value)
    content = (tmp_path / name).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (tmp_path / name).write_bytes(flipped)
        try:
            assert READERS[name][0](tmp_path) == value
        except DataError as error:
            assert "\n" not in str(error)  # noqa: PT017 - most flips raise, a flipped blank does not


def test_a_promotion_with_a_failed_threshold_is_refused(tmp_path: Path) -> None:
    _, kept = WRITTEN["verdict.json"]
    write_verdict(tmp_path, replace(kept, verdict="promote"))
    assert "says promote although a threshold failed" in refusal("verdict.json", tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "per_photograph.csv"])
def test_a_verdict_beside_other_measurements_is_refused(name: str, tmp_path: Path) -> None:
    for measured in ("metrics.json", "per_photograph.csv"):
        (tmp_path / measured).write_text(measured)
    _, verdict = WRITTEN["verdict.json"]
    bound = replace(verdict, measured_sha256={name: sha256_of(tmp_path / name)})
    write_verdict(tmp_path, bound)
    assert read_verdict(tmp_path) == bound
    (tmp_path / name).write_text("others")
    with pytest.raises(DataError, match=rf"{name} is not the file that the verdict beside it is about: run evaluate"):
        read_verdict(tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_a_truncated_file_raises_a_one_line_error(name: str, tmp_path: Path) -> None:
    content = (BEFORE / name).read_bytes().rstrip()
    for length in range(len(content)):
        (tmp_path / name).write_bytes(content[:length])
        assert "is damaged (line " in refusal(name, tmp_path)


def test_the_error_for_a_truncated_history_names_the_line(tmp_path: Path) -> None:
    content = (BEFORE / "history.jsonl").read_bytes()
    for length in range(len(content)):
        (tmp_path / "history.jsonl").write_bytes(content[:length])
        cut = content[:length].rpartition(b"\n")[2]
        whole = not cut or content[length : length + 1] == b"\n"
        if whole:
            assert len(read_history(tmp_path)) == content[: length + 1].count(b"\n")
        else:
            with pytest.raises(DataError, match=r"history\.jsonl is damaged \(line \d is not JSON\): run train again"):
                read_history(tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", [b"3", b'"text"', b"null", b"[3]", b"{}", b"\xff\xfe", b"[" * 100_000, b"1" * 5000])
def test_a_file_with_other_content_raises_a_one_line_error(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    refusal(name, tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_the_error_for_a_missing_file_names_the_step_to_run(name: str, tmp_path: Path) -> None:
    message = f"holds no {name}: run {READERS[name][1]} first"
    assert message in refusal(name, tmp_path)
    assert message in refusal(name, tmp_path / "nowhere")
    (tmp_path / name).mkdir()
    assert "cannot read" in refusal(name, tmp_path)


@pytest.mark.parametrize(("name", "key"), KEYS)
def test_the_error_names_a_missing_or_invalid_key(name: str, key: str, tmp_path: Path) -> None:
    content = json.loads((BEFORE / name).read_text())
    del content[key]
    (tmp_path / name).write_text(json.dumps(content))
    assert key in refusal(name, tmp_path)
    (tmp_path / name).write_text(json.dumps(content | {key: [{"x" * 1000: 3}]}))
    assert key in refusal(name, tmp_path)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("schema", [SCHEMA + 1, "x" * 1000, 1.5, None])
def test_the_error_for_a_newer_schema_names_both_numbers(name: str, schema: Any, tmp_path: Path) -> None:
    content = json.loads((BEFORE / name).read_text())
    content = {"files": content} if isinstance(content, list) else content
    (tmp_path / name).write_text(json.dumps(content | {"schema": schema}))
    assert f"has schema {str(schema)[:80]}, this version of bebygan reads up to {SCHEMA}" in refusal(name, tmp_path)
    (tmp_path / name).write_text(json.dumps(content | {"schema": 1}))
    READERS[name][0](tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"lpips": math.nan}, "challenger has lpips = nan"),
        ({"psnr_y": -math.inf}, "challenger has psnr_y = -inf"),
        ({"psnr_y": "good"}, "challenger.psnr_y is 'good'"),
        ({"speed": 3}, "challenger.speed is 'speed'"),
        ({"lpips": None}, "challenger.lpips is 'None'"),
    ],
)
def test_the_error_names_an_invalid_mean(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    content = json.loads((BEFORE / "metrics.json").read_text())
    content["challenger"] |= change
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    assert f"is damaged ({told})" in refusal("metrics.json", tmp_path)
    del content["challenger"]["lpips"]
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    refusal("metrics.json", tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_means_that_are_not_finite_are_not_written(value: float, tmp_path: Path) -> None:
    row: Any = dict.fromkeys(get_args(Metric), 1.0)
    with pytest.raises(DataError, match=rf"metrics\.json cannot hold challenger\.lpips = {value}"):
        write_means(tmp_path, {"challenger": row | {"lpips": value}})
    assert not (tmp_path / "metrics.json").exists()


def test_a_history_omits_values_that_are_not_finite(tmp_path: Path) -> None:
    write_history(tmp_path, [{"iteration": 1, "psnr": math.inf, "loss": 2.0}])
    assert (tmp_path / "history.jsonl").read_text() == '{"iteration": 1, "loss": 2.0}\n'
    (tmp_path / "history.jsonl").write_text('{"iteration": 1, "psnr": Infinity, "loss": NaN}\n')
    assert read_history(tmp_path) == [{"iteration": 1}]
    (tmp_path / "history.jsonl").write_text('{"loss": 1}\n')
    with pytest.raises(DataError, match=r"history\.jsonl is damaged \(0 has no iteration\): run train again"):
        read_history(tmp_path)


def test_a_missing_history_is_read_as_empty(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []


def test_the_cap_applies_to_psnr_only() -> None:
    assert artifacts.capped("psnr_y", math.inf) == artifacts.capped("lr_psnr", 100.5) == PSNR_CAP == 100.0
    assert artifacts.capped("lpips", 200.0) == 200.0
    assert math.isnan(artifacts.capped("psnr_y", math.nan))
