"""Generators are compared on folders of photographs by `python -m benchmarks.quality`; pages of text are rendered."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pages, quality

START = str(Path(__file__).parents[2] / "data/pretrained/rrdb-4x32.safetensors")


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number in range(6):
        pages.page(number).crop((0, 0, 130, 129)).save(folder / f"{number}.png")
    return folder


def test_a_model_is_compared_with_bicubic_and_the_first_model(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert quality.main([START, START, "--photographs", str(photographs)]) == 0
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["bicubic", START, START, f"gain of {START}"]
    assert rows[3][1:] == rows[4][1:]
    assert float(rows[3][1]) > float(rows[2][1])
    assert rows[5][1].startswith("+0.0000")


def test_gains_are_positive_where_the_second_model_is_better() -> None:
    values = np.random.default_rng(0).normal(1, 0.001, (3, 30, 4))
    values[2] += np.array([0.5, -0.1, -0.1, 0.5])
    row = quality.table(["one", "two"], values).splitlines()[-1].split("|")
    gains = [float(cell.split()[0]) for cell in row[2:-1]]
    assert gains == pytest.approx([0.5, 0.1, 0.1, 0.5], abs=0.002)


def test_an_empty_folder_is_named_with_the_code_of_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quality.main([START, "--photographs", str(tmp_path)]) == 3
    assert str(tmp_path) in capsys.readouterr().err


def test_pages_are_the_same_each_time_and_differ_from_one_another() -> None:
    assert pages.page(1).tobytes() == pages.page(1).tobytes() != pages.page(2).tobytes()
    assert pages.page(1).size == (pages.SIDE, pages.SIDE)
    assert isinstance(pages.page(0), Image.Image)
