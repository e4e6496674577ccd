import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bebygan.errors import ConfigError, DataError, ServiceError, StorageError
from components.artifacts import read_quarantine
from components.config import IngestParams
from components.ingest.splits import split_of
from components.ingest.step import checks_page, ingest
from components.stores.data_version import data_version, fetch
from components.stores.dataset import read_thumbnails
from components.stores.source import list_source, source_version

Picture = Callable[..., Image.Image]
SAMPLE = Path(__file__).parents[3] / "data" / "sample"
PARAMS = IngestParams(
    minimum_side=64,
    convert=(),
    near_duplicate_bits=4,
    validation_share=0.3,
    test_share=0.3,
    quarantine_tolerance=0.4,
)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(dataset: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(dataset / "manifest.parquet").to_pylist()
    return found


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    return {entry.file: (entry.reason, entry.detail) for entry in read_quarantine(folder)}


def side(path: Path) -> str:
    return split_of(hashlib.sha256(path.read_bytes()).hexdigest(), PARAMS.validation_share, PARAMS.test_share)


def near_duplicate(original: Path, wanted: str, target: Path) -> Path:
    """Save the same scene with other bytes, such that it falls into the given split."""
    pixels = np.asarray(Image.open(original)).copy()
    for value in range(256):
        pixels[0, 0, 0] = value
        Image.fromarray(pixels).save(target)
        if side(target) == wanted and target.read_bytes() != original.read_bytes():
            return target
    raise AssertionError("256 tries and none on the wanted side")


def first_on(wanted: str, folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if side(path) == wanted)


def test_the_sample_photographs_are_stored_unchanged(tmp_path: Path) -> None:
    params = replace(PARAMS, minimum_side=256, validation_share=0.08, test_share=0.25)
    report = ingest(str(SAMPLE), tmp_path / "dataset", tmp_path / "docs", params)
    assert (sum(report.splits.values()), report.skipped, report.quarantined) == (34, 1, {})
    assert report.splits == {"train": 21, "validation": 2, "test": 11}
    assert report.data_version == data_version(tmp_path / "dataset")
    stored = {
        hashlib.sha256(content).hexdigest() for content in contents(tmp_path / "dataset" / "photographs").values()
    }
    assert stored == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in SAMPLE.iterdir() if path.suffix != ".md"
    }


def test_the_manifest_has_one_row_per_photograph_in_sorted_order(photographs: Path, tmp_path: Path) -> None:
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    found = rows(tmp_path / "dataset")
    assert [row["sha256"] for row in found] == sorted(row["sha256"] for row in found)
    assert sorted(row["source"] for row in found) == sorted(path.name for path in photographs.iterdir())
    for row in found:
        content = (tmp_path / "dataset" / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        assert len(content) == row["size_bytes"]
        assert row["split"] == split_of(row["sha256"], PARAMS.validation_share, PARAMS.test_share)
        assert (row["width"], row["height"], row["mode"], row["bit_depth"]) == (96, 80, "RGB", 8)
        assert 0 < row["texture_mean"] < row["texture_share"] < 1
    assert report.splits == {
        name: sum(row["split"] == name for row in found) for name in ("train", "validation", "test")
    }


def test_each_bad_file_is_quarantined_with_its_reason(photographs: Path, tmp_path: Path, picture: Picture) -> None:
    good = picture(100)
    (photographs / "letter.png").write_text("This is no picture.")
    (photographs / "cut.png").write_bytes((photographs / "00.png").read_bytes()[:2000])
    good.resize((63, 200)).save(photographs / "tiny.png")
    Image.fromarray(np.asarray(good.convert("L")).astype(np.uint16) * 257).save(photographs / "deep.png")
    good.convert("L").save(photographs / "grey.png")
    good.convert("RGBA").save(photographs / "alpha.png")
    good.convert("CMYK").save(photographs / "print.jpg")
    good.quantize(16).save(photographs / "palette.png")
    good.save(photographs / "moving.gif", save_all=True, append_images=[picture(101)])
    tags = Image.Exif()
    tags[0x0112] = 6
    good.save(photographs / "turned.jpg", exif=tags)
    Image.new("RGB", (96, 80), "white").save(photographs / "blank.png")
    (photographs / "lost.png").symlink_to(tmp_path / "nothing")
    shutil.copy(photographs / "03.png", photographs / "copy of 03.png")
    (photographs / "notes.txt").write_text("no picture, and not meant to be one")
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    found = quarantine(tmp_path / "dataset")
    assert {name: reason for name, (reason, _) in found.items()} == {
        "letter.png": "not-an-image",
        "cut.png": "truncated",
        "tiny.png": "tiny",
        "deep.png": "16-bit",
        "grey.png": "grey",
        "alpha.png": "transparent",
        "print.jpg": "cmyk",
        "palette.png": "palette",
        "moving.gif": "animated",
        "turned.jpg": "rotated",
        "blank.png": "flat",
        "lost.png": "unreadable",
        "copy of 03.png": "duplicate",
    }
    assert found["copy of 03.png"][1] == "it has the same bytes as 03.png: leave it out"
    assert found["lost.png"][1].startswith("it cannot be read (No such file or directory): correct the link or ")
    assert sum(report.splits.values()) == 24
    assert report.skipped == 1
    assert sum(report.quarantined.values()) == 13
    assert quarantine(tmp_path / "docs") == found
    assert list(found) == sorted(found)
    small = read_thumbnails(tmp_path / "dataset")
    assert [list(found)[number] for number in small] == [
        "alpha.png", "blank.png", "copy of 03.png", "deep.png", "grey.png", "moving.gif", "palette.png",
    ]  # fmt: skip
    assert all(max(pixels.shape) <= 96 for pixels in small.values())


def test_photographs_of_converted_kinds_are_accepted(photographs: Path, tmp_path: Path, picture: Picture) -> None:
    picture(100).convert("L").save(photographs / "grey.jpg")
    params = replace(PARAMS, convert=("grey",))
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", params)
    row = next(row for row in rows(tmp_path / "dataset") if row["source"] == "grey.jpg")
    assert row["sha256"] == hashlib.sha256((photographs / "grey.jpg").read_bytes()).hexdigest()
    assert (row["converted"], row["mode"], row["format"]) == ("grey", "RGB", "PNG")
    assert Image.open(tmp_path / "dataset" / row["file"]).mode == "RGB"


@pytest.mark.parametrize(("here", "there"), [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_near_duplicate_of_a_held_out_photograph_is_quarantined(
    here: str, there: str, photographs: Path, tmp_path: Path
) -> None:
    original = first_on(there, photographs)
    near_duplicate(original, here, photographs / "almost.png")
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    reason, detail = quarantine(tmp_path / "dataset")["almost.png"]
    assert reason == "near-duplicate"
    assert f"near duplicate of {original.name}, which is held out ({there})" in detail
    stored = {path.name for path in (tmp_path / "dataset" / "photographs").iterdir()}
    assert stored == {Path(row["file"]).name for row in rows(tmp_path / "dataset")}
    assert len(stored) == 24


def test_near_duplicates_in_one_split_are_kept(photographs: Path, tmp_path: Path) -> None:
    near_duplicate(first_on("train", photographs), "train", photographs / "almost.png")
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert (sum(report.splits.values()), report.quarantined) == (25, {})


def test_the_same_photographs_give_the_same_bytes(photographs: Path, tmp_path: Path) -> None:
    (photographs / "letter.png").write_text("This is no picture.")
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    names = sorted(path.name for path in photographs.iterdir())
    for name in reversed(names):
        shutil.copyfile(photographs / name, shuffled / name)
    first = ingest(str(photographs), tmp_path / "first", tmp_path / "docs", PARAMS)
    second = ingest(str(shuffled), tmp_path / "second", tmp_path / "docs", PARAMS)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert first == second


def test_a_bucket_gives_the_same_dataset_as_a_folder(photographs: Path, tmp_path: Path, s3: Any, bucket: str) -> None:
    (photographs / "letter.png").write_text("This is no picture.")
    for path in photographs.iterdir():
        s3.upload_file(str(path), bucket, f"collected/{path.name}")
    here = ingest(str(photographs), tmp_path / "here", tmp_path / "docs", PARAMS)
    there = ingest(f"s3://{bucket}/collected", tmp_path / "there", tmp_path / "docs", PARAMS)
    assert here == there
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_renamed_photographs_keep_their_splits(photographs: Path, tmp_path: Path) -> None:
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    before = {row["sha256"]: row["split"] for row in rows(tmp_path / "dataset")}
    for index, path in enumerate(sorted(photographs.iterdir(), reverse=True)):
        path.rename(photographs / f"renamed {index}.png")
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert {row["sha256"]: row["split"] for row in rows(tmp_path / "dataset")} == before


def test_a_photograph_keeps_its_split_when_others_are_added(
    photographs: Path, tmp_path: Path, picture: Picture
) -> None:
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    before = {row["sha256"]: row["split"] for row in rows(tmp_path / "dataset")}
    for seed in range(200, 212):
        picture(seed).save(photographs / f"new {seed}.png")
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    after = {row["sha256"]: row["split"] for row in rows(tmp_path / "dataset")}
    assert before.items() <= after.items()
    assert len(after) == 36


def test_the_dataset_is_pushed_to_a_remote(photographs: Path, tmp_path: Path) -> None:
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS, str(tmp_path / "remote"))
    fetch(report.data_version, str(tmp_path / "remote"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(tmp_path / "dataset")


def test_too_many_bad_files_stop_the_step_and_the_reasons_are_written(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(9):
        (photographs / f"bad {index}.png").write_text("This is no picture.")
    params = replace(PARAMS, quarantine_tolerance=0.2)
    with pytest.raises(DataError) as error:
        ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", params)
    assert "9 of 33 files are quarantined, more than ingest.quarantine_tolerance 0.2 allows" in str(error.value)
    assert "bad 0.png: not-an-image" in str(error.value)
    assert str(tmp_path / "docs" / "quarantine.json") in str(error.value)
    assert len(quarantine(tmp_path / "docs")) == 9
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": its content is no ")[0] for line in told] == [
        f"  bad {index}.png: not-an-image" for index in range(9)
    ]
    assert not (tmp_path / "dataset").exists()


def test_a_share_of_bad_files_equal_to_the_tolerance_is_accepted(photographs: Path, tmp_path: Path) -> None:
    for index in range(6):
        (photographs / f"bad {index}.png").write_text("This is no picture.")
    params = replace(PARAMS, quarantine_tolerance=0.2)
    assert ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", params).quarantined == {"not-an-image": 6}


def test_too_few_photographs_for_a_split_are_refused(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "photographs").mkdir()
    picture(0).save(tmp_path / "photographs" / "only.png")
    with pytest.raises(DataError, match=r"1 photographs leave none for .* and .*: add photographs, or change"):
        ingest(str(tmp_path / "photographs"), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert not (tmp_path / "dataset").exists()


@pytest.mark.filterwarnings("error")
def test_bad_files_alone_are_refused_with_any_tolerance(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "bad.png").write_text("This is no picture.")
    params = replace(PARAMS, quarantine_tolerance=1.0)
    with pytest.raises(DataError, match="0 photographs leave none for test and validation and train"):
        ingest(str(tmp_path / "photographs"), tmp_path / "dataset", tmp_path / "docs", params)
    assert list(quarantine(tmp_path / "docs")) == ["bad.png"]


def test_a_failed_run_keeps_the_earlier_dataset(photographs: Path, tmp_path: Path) -> None:
    ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    before = contents(tmp_path / "dataset")
    for path in sorted(photographs.iterdir())[1:]:
        path.write_text("spoilt")
    with pytest.raises(DataError):
        ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert contents(tmp_path / "dataset") == before
    assert not list(tmp_path.glob(".dataset*"))


def test_the_error_names_an_expectation_that_does_not_hold(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("components.ingest.step.near_duplicates", lambda *_: {})
    near_duplicate(first_on("test", photographs), "train", photographs / "almost.png")
    with pytest.raises(DataError, match="expect_column_max_to_be_between of near_duplicates does not hold") as error:
        ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    page = Path(str(error.value).rpartition("see ")[2])
    assert page == checks_page(tmp_path / "docs")
    assert "Failed" in page.read_text()
    assert not (tmp_path / "dataset").exists()


def test_the_error_for_an_empty_split_tells_how_many_photographs_are_needed(tmp_path: Path, picture: Picture) -> None:
    (tmp_path / "photographs").mkdir()
    for seed in range(2):
        picture(seed).save(tmp_path / "photographs" / f"{seed}.png")
    params = replace(PARAMS, validation_share=0.08, test_share=0.25)
    with pytest.raises(DataError) as error:
        ingest(str(tmp_path / "photographs"), tmp_path / "dataset", tmp_path / "docs", params)
    assert str(error.value).startswith("2 photographs leave none for ")
    assert "ingest.validation_share 0.08; with these shares about 36 are needed" in str(error.value)


def test_a_share_of_0_asks_for_no_validation_photographs(photographs: Path, tmp_path: Path) -> None:
    params = replace(PARAMS, validation_share=0.0)
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", params)
    assert report.splits["validation"] == 0
    assert "Succeeded" in checks_page(tmp_path / "docs").read_text()


@pytest.mark.parametrize("name", [".", "dataset", "deep/dataset"])
def test_a_dataset_inside_its_own_source_is_refused(name: str, photographs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="would lie in its own source"):
        ingest(str(photographs), photographs / name, tmp_path / "docs", PARAMS)


@pytest.mark.usefixtures("s3_environment")
def test_a_missing_bucket_raises_an_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="no bucket nowhere"):
        ingest("s3://nowhere/photographs", tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_becomes_unreachable_stops_the_step(
    photographs: Path, tmp_path: Path, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in photographs.iterdir():
        s3.upload_file(str(path), bucket, path.name)

    def away(*_: object) -> bytes:
        raise ServiceError("the server does not answer")

    monkeypatch.setattr("components.stores.s3.S3Store.read", away)
    with pytest.raises(ServiceError, match="does not answer"):
        ingest(f"s3://{bucket}", tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert not (tmp_path / "dataset").exists()


def test_the_error_names_a_full_disk_and_no_partial_output_remains(
    photographs: Path, tmp_path: Path, small_disk: Path
) -> None:
    with pytest.raises(StorageError, match=r"cannot write .*dataset: the disk is full"):
        ingest(str(photographs), small_disk / "dataset", tmp_path / "docs", PARAMS)
    assert not list(small_disk.iterdir())


def test_no_partial_dataset_remains_after_a_failed_write(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = Path.write_bytes, []

    def until_full(path: Path, content: bytes) -> int:
        if len(written) == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    with pytest.raises(StorageError, match="the disk is full"):
        ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert {path.name for path in tmp_path.iterdir()} == {"photographs"}


def test_a_killed_run_leaves_no_dataset_and_the_next_run_succeeds(photographs: Path, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from tests.components.ingest.test_step import PARAMS, ingest; "
        f"ingest({str(photographs)!r}, Path('dataset'), Path('docs'), PARAMS)"
    )
    environment = os.environ | {"PYTHONPATH": str(SAMPLE.parents[1])}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".dataset.*.part/photographs/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "dataset").exists()
    report = ingest(str(photographs), tmp_path / "dataset", tmp_path / "docs", PARAMS)
    assert report.data_version == data_version(tmp_path / "dataset")


def test_the_step_imports_neither_torch_nor_great_expectations() -> None:
    unwanted = {"torch", "great_expectations", "boto3", "dvc"}
    code = f"import sys, components.ingest.step; sys.exit(bool({unwanted} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=SAMPLE.parents[1]).returncode == 0


def test_photographs_that_changed_since_the_run_looked_at_them_are_refused(photographs: Path, tmp_path: Path) -> None:
    expected, places = source_version(str(photographs)), (tmp_path / "dataset", tmp_path / "docs")
    ingest(str(photographs), *places, PARAMS, expected=expected)
    shutil.copy(photographs / "01.png", photographs / "00.png")
    with pytest.raises(DataError, match="changed after the run had looked at them: run it again"):
        ingest(str(photographs), *places, PARAMS, expected=expected)


def test_an_object_that_changes_between_the_listing_and_the_reading_is_refused(
    photographs: Path, tmp_path: Path, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in photographs.iterdir():
        s3.upload_file(str(path), bucket, path.name)
    source, places = f"s3://{bucket}", (tmp_path / "dataset", tmp_path / "docs")
    expected = source_version(source)
    changes: dict[str, Callable[[], None]] = {
        "replaced": lambda: s3.upload_file(str(photographs / "08.png"), bucket, "07.png"),
        "deleted": lambda: s3.delete_object(Bucket=bucket, Key="07.png"),
    }
    for said, change in changes.items():
        s3.upload_file(str(photographs / "07.png"), bucket, "07.png")

        def list_and_change(source: str, change: Callable[[], None] = change) -> Any:
            found = list_source(source)
            change()
            return found

        monkeypatch.setattr("components.ingest.step.list_source", list_and_change)
        with pytest.raises(DataError, match=rf"/07\.png was {said} after it had been listed: run it again$"):
            ingest(source, *places, PARAMS, expected=expected)
        assert not places[0].exists()
    # A step that is not part of a run, such as a stage of DVC, takes what it finds.
    monkeypatch.setattr("components.ingest.step.list_source", list_source)
    assert sum(ingest(source, *places, PARAMS).splits.values()) == 23
