import os
from collections.abc import Callable
from pathlib import Path

import pytest

from components.outputs import damaged_outputs, record_digest


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "ingest" / "dataset"
    (folder / "photographs").mkdir(parents=True)
    (folder / "photographs" / "a.png").write_bytes(b"pixels")
    (folder / "manifest.parquet").write_bytes(b"rows")
    record_digest(folder)
    return folder


def test_an_output_as_it_was_recorded_is_not_damaged(output: Path) -> None:
    (output.with_name("executor_output.json")).write_text("{}")
    assert list(damaged_outputs(output.parents[2])) == []


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
    assert list(damaged_outputs(output.parents[2])) == [output]


def test_an_output_that_was_removed_as_a_whole_is_not_reported(output: Path) -> None:
    output.rename(output.parents[2] / "elsewhere")
    assert list(damaged_outputs(output.parents[2])) == []
