import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bebygan.errors import DataError
from components.artifacts import DataSummary, Quarantined, seal, write_patchless, write_quarantine
from components.stores.dataset import (
    check_dataset,
    headline,
    notices_of,
    photographs_of,
    read_photograph,
    read_thumbnails,
    summarise,
    summary_lines,
    thumbnail_path,
)


def test_the_rows_of_the_named_splits_are_returned(tmp_path: Path) -> None:
    names = {"sha256": ["a", "b", "c"], "file": ["a.png", "b.png", "c.png"], "source": ["1", "2", "3"]}
    pd.DataFrame(names | {"split": ["train", "test", "validation"]}).to_parquet(tmp_path / "manifest.parquet")
    assert list(photographs_of(tmp_path, ("train", "test"))["sha256"]) == ["a", "b"]


def test_a_folder_without_a_manifest_is_not_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no manifest\.parquet: run ingest first"):
        photographs_of(tmp_path, ("train",))


def test_a_photograph_is_read_as_rgb_and_the_error_names_a_damaged_one(tmp_path: Path) -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_photograph(tmp_path / "a.png"), pixels)
    (tmp_path / "b.png").write_bytes(b"damaged")
    for name in ("b.png", "missing.png"):
        with pytest.raises(DataError, match=f"cannot read the photograph .*{name}"):
            read_photograph(tmp_path / name)


@pytest.mark.parametrize("name", ["../../x.png", "/etc/hostname", "photographs/../../x.png"])
def test_a_manifest_that_names_a_file_outside_the_dataset_is_refused(name: str, tmp_path: Path) -> None:
    pd.DataFrame({"file": ["photographs/a.png", name], "split": ["train", "test"]}).to_parquet(
        tmp_path / "manifest.parquet"
    )
    with pytest.raises(DataError, match=rf"manifest\.parquet names {re.escape(name)}, which is outside the dataset"):
        photographs_of(tmp_path, ("train",))


def test_no_photograph_reaches_a_decoder_that_starts_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="cannot read the photograph"):
        read_photograph(tmp_path / "a.png")
    assert not (tmp_path / "started").exists()


def summary(**changed: Any) -> DataSummary:
    usual: dict[str, Any] = {
        "data_version": "0123.dir",
        "photographs": {"train": 4, "validation": 1, "test": 2},
        "quarantined": (),
        "patchless": {},
    }
    return DataSummary(**usual | changed)


def test_a_dataset_is_summarised_with_the_photographs_that_give_no_patch(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    files = [f"photographs/{name}.png" for name in names]
    table = {"source": [f"{name}.jpg" for name in names], "file": files, "split": ["train", "train", "test"]}
    pd.DataFrame(table).to_parquet(tmp_path / "manifest.parquet")
    refused = (Quarantined("x.png", "grey", "it is grey"),)
    write_quarantine(tmp_path, refused)
    made = summarise(tmp_path, "0123.dir", tmp_path)
    assert made == summary(photographs={"train": 2, "validation": 0, "test": 1}, quarantined=refused)
    write_patchless(tmp_path, {"train": [files[1]], "validation": []})
    assert summarise(tmp_path, "0123.dir", tmp_path).patchless == {"train": ("b.jpg",), "validation": ()}
    assert summarise(tmp_path, "0123.dir").patchless == {}


def test_a_sound_dataset_is_told_in_two_lines(tmp_path: Path) -> None:
    assert summary_lines(summary(), tmp_path) == [
        "7 photographs (4 train, 1 validation, 2 test)",
        "data version: 0123.dir",
    ]
    assert headline(summary()) == "7 photographs (4 train, 1 validation, 2 test)"


def test_everything_left_out_is_told_and_long_lists_are_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    Path("docs/index.html").touch()
    refused = tuple(Quarantined(f"{number:02}.png", "tiny", "take a larger one") for number in range(33))
    lines = summary_lines(
        summary(quarantined=refused, patchless={"train": ("t",), "validation": ("v",)}, flat=("f",), skipped=3),
        Path("docs/quarantine.json"),
        Path("docs/index.html"),
    )
    assert lines[1:3] == ["quarantined: 33 tiny", "  00.png: tiny: take a larger one"]
    assert lines[11:13] == ["  09.png: tiny: take a larger one", "  and 23 more in docs/quarantine.json"]
    assert lines[13:16] == [
        "no patches: 2 photographs are smaller than patches.size or have too little texture", "  t", "  v",
    ]  # fmt: skip
    assert lines[16].startswith("no validation: none of the 1 validation photographs gives a patch")
    assert lines[17].startswith("flat: bicubic restores the measured part of 1 test photographs, so")
    assert lines[18:] == [
        "  f", "skipped, not pictures: 3", "checks: docs/index.html", "data version: 0123.dir",
    ]  # fmt: skip


def test_the_headline_counts_and_names_no_file() -> None:
    refused = (Quarantined("a.png", "tiny", "x"), Quarantined("b.png", "grey", "x"), Quarantined("c.png", "tiny", "x"))
    assert headline(summary(quarantined=refused, patchless={"train": ("t",), "validation": ("v",)})) == (
        "7 photographs (4 train, 1 validation, 2 test); 3 files quarantined (1 grey, 2 tiny); "
        "no patches: 2 photographs are smaller than patches.size or have too little texture; "
        "no validation: none of the 1 validation photographs gives a patch, so training is not validated"
    )


def test_a_dataset_without_validation_photographs_says_so() -> None:
    [(notice, names)] = notices_of(summary(photographs={"train": 4, "validation": 0, "test": 2}))
    assert (notice, names) == ("no validation: ingest.validation_share is 0, so training is not validated", ())


def test_names_forge_no_line_of_the_text() -> None:
    refused = (Quarantined("a\ndata version: 9\x1b[2K.png", "grey", "it is grey"),)
    lines = summary_lines(summary(quarantined=refused, patchless={"train": ("b\rc",)}), Path("x"))
    assert r"  a\ndata version: 9\x1b[2K.png: grey: it is grey" in lines
    assert r"  b\rc" in lines
    assert all(line.isprintable() for line in lines)


def test_thumbnails_are_read_by_the_number_of_their_file(tmp_path: Path) -> None:
    assert read_thumbnails(tmp_path) == {}
    path = thumbnail_path(tmp_path, 3)
    path.parent.mkdir()
    Image.new("RGB", (5, 4), "red").save(path)
    [(number, pixels)] = read_thumbnails(tmp_path).items()
    assert (number, pixels.shape, pixels[0, 0].tolist()) == (3, (4, 5, 3), [255, 0, 0])


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A dataset of one photograph with checksums."""
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "a.png").write_bytes(b"pixels")
    rows = {"sha256": ["a"], "file": ["photographs/a.png"], "source": ["a.png"], "split": ["train"]}
    pd.DataFrame(rows).to_parquet(tmp_path / "manifest.parquet")
    seal(tmp_path)
    check_dataset(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["photographs/a.png", "manifest.parquet"])
@pytest.mark.parametrize("position", [0, 3, -1])
def test_a_flipped_bit_in_a_sealed_dataset_is_found(name: str, position: int, sealed: Path) -> None:
    content = bytearray((sealed / name).read_bytes())
    content[position] ^= 1
    (sealed / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is not the file that ingest wrote .*: run ingest again"):
        check_dataset(sealed)


def test_a_file_that_is_missing_or_was_added_is_found(sealed: Path) -> None:
    (sealed / "photographs" / "b.png").touch()
    with pytest.raises(DataError, match=r"photographs/b\.png is not the file"):
        check_dataset(sealed)
    (sealed / "photographs" / "b.png").unlink()
    (sealed / "photographs" / "a.png").unlink()
    with pytest.raises(DataError, match=r"photographs/a\.png is not the file"):
        check_dataset(sealed)


def test_a_dataset_of_the_previous_version_has_no_checksums_and_is_accepted(sealed: Path) -> None:
    (sealed / "checksums.json").unlink()
    (sealed / "photographs" / "a.png").write_bytes(b"others")
    check_dataset(sealed)


def test_a_truncated_or_foreign_manifest_raises_a_one_line_error(sealed: Path) -> None:
    path = sealed / "manifest.parquet"
    content = path.read_bytes()
    for length in (0, 1, 40, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"manifest\.parquet is damaged: run ingest again"):
            photographs_of(sealed, ("train",))
    pd.DataFrame({"x": [1]}).to_parquet(path)
    with pytest.raises(DataError, match=r"manifest\.parquet is damaged \(it has no file\): run ingest again"):
        photographs_of(sealed, ("train",))
