import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bebygan.errors import DataError
from components.stores.dataset import photographs_of, read_photograph


def test_the_rows_of_the_named_splits_are_returned(tmp_path: Path) -> None:
    pd.DataFrame({"sha256": ["a", "b", "c"], "split": ["train", "test", "validation"]}).to_parquet(
        tmp_path / "manifest.parquet"
    )
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
