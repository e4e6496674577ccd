import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.outputs import DIGEST, damaged, record_digest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ingest" / "dataset"
    (folder / "photographs").mkdir(parents=True)
    (folder / "photographs" / "a.png").write_bytes(b"pixels")
    (folder / "manifest.parquet").write_bytes(b"rows")
    record_digest(folder)
    return folder


def found(output: Path) -> list[Path]:
    return list(damaged(output.parent.glob(f"*{DIGEST}")))


def test_an_output_as_it_was_recorded_is_not_damaged(output: Path) -> None:
    assert found(output) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda output: (output / "manifest.parquet").write_bytes(b"rowz"),
        lambda output: (output / "manifest.parquet").write_bytes(b""),
        lambda output: (output / "manifest.parquet").unlink(),
        lambda output: (output / "manifest.parquet").rename(output / "manifest"),
        lambda output: (output / "more").touch(),
        lambda output: output.with_name("dataset.sha256").write_bytes(b"\xff"),
        lambda output: os.truncate(output.with_name("dataset.sha256"), 10),
    ],
)
def test_any_change_of_an_output_or_its_record_is_damage(damage: Callable[[Path], None], output: Path) -> None:
    damage(output)
    assert found(output) == [output]


def test_an_output_that_was_removed_as_a_whole_is_not_reported(output: Path) -> None:
    output.rename(output.parents[2] / "elsewhere")
    assert found(output) == []


def test_a_changed_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "entry.json"
    file.write_text('{"Output": "a.dir"}')
    record_digest(file)
    assert found(file) == []
    file.write_text('{"Output": "b.dir"}')
    assert found(file) == [file]
