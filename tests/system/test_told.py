"""What `bebygan run` tells of the data: 24 fit photographs and 9 unfit files, by every way that shows a result."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from components.artifacts import read_summary
from tests.system.conftest import Finished, run

pytestmark = pytest.mark.slow
FORGED = "a\ndata version: forged\x1b[2K.png"
SETTINGS = ("--set", "train.iterations=1", "--set", "ingest.quarantine_tolerance=0.5")
Picture = Callable[..., Image.Image]


def add_unfit_files(folder: Path, picture: Picture) -> None:
    for number in range(3):
        (folder / f"page{number}.jpg").write_text("<!doctype html>Sign in")
    picture(900, 160, 160).convert("L").save(folder / "grey.png")
    picture(901, 160, 160).convert("L").save(folder / FORGED)
    picture(902, 160, 160).convert("RGBA").save(folder / "<b>.png")
    picture(903, 60, 60).save(folder / "tiny.png")
    Image.new("RGB", (160, 160), "white").save(folder / "blank.png")
    (folder / "empty.png").touch()


@pytest.fixture(scope="module")
def source(new_project: Callable[[str], Path]) -> Path:
    """A project whose photographs are 24 fit ones and 9 unfit files."""
    project = new_project("told")
    photographs = project / "data" / "sample"
    for path in sorted(photographs.iterdir())[24:]:
        path.unlink()
    return project


@pytest.fixture(scope="module")
def first(source: Path) -> Finished:
    def picture(seed: int, width: int, height: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))

    add_unfit_files(source / "data" / "sample", picture)
    done = run(source, "pipelines.cli", "run", *SETTINGS)
    assert done.code == 0, done.err
    return done


def told(out: str) -> list[str]:
    """Return the lines about the data."""
    lines = out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("data:     "))
    end = next(number for number, line in enumerate(lines) if line.strip().startswith("data version: "))
    return [line.removeprefix(f"{'':10}") for line in lines[start : end + 1]]


def test_the_terminal_tells_what_was_taken_and_each_refused_file(first: Finished, source: Path) -> None:
    lines = told(first.out)
    assert re.fullmatch(r"data:     \d+ photographs \(\d+ train, \d+ validation, \d+ test\)", lines[0])
    assert lines[1] == "quarantined: 1 flat, 2 grey, 4 not-an-image, 1 tiny, 1 transparent"
    assert [line.split(": ")[:2] for line in lines[2:11]] == [
        ["  <b>.png", "transparent"], [r"  a\ndata version", "forged\\x1b[2K.png"], ["  blank.png", "flat"],
        ["  empty.png", "not-an-image"], ["  grey.png", "grey"], ["  page0.jpg", "not-an-image"],
        ["  page1.jpg", "not-an-image"], ["  page2.jpg", "not-an-image"], ["  tiny.png", "tiny"],
    ]  # fmt: skip
    assert "Succeeded" in (source / lines[-2].removeprefix("checks: ")).read_text()
    assert lines[-1] == f"data version: {read_summary(source / 'workspace' / 'report').data_version}"
    assert "\x1b" not in first.out + first.err


def test_refused_files_are_announced_before_the_training(first: Finished) -> None:
    lines = first.err.splitlines()
    [announced] = [line for line in lines if "quarantined" in line]
    assert re.search(r"\d photographs \(.*\); 9 files quarantined \(1 flat, 2 grey, ", announced)
    assert lines.index(announced) < lines.index("patches ...")


def test_the_log_of_the_run_has_the_same_list_from_ingest_and_from_evaluate(first: Finished, source: Path) -> None:
    log = (source / "workspace" / "run.log").read_text()
    for line in told(first.out)[1:11]:
        assert log.count(line) == 2
    assert "\x1b[2K" not in log


def test_the_report_shows_refused_files_with_their_thumbnails(first: Finished, source: Path) -> None:
    assert first.code == 0
    page = (source / "workspace" / "report" / "report.html").read_text()
    [table] = re.findall(r"<table[^>]*>(?:(?!</table>).)*?transparent.*?</table>", page, re.DOTALL)
    rows = re.findall(r"<tr><td>(.+?)</td>\n<td>(.+?)</td><td>(.+?)</td>", table)
    assert [(name, reason) for _, name, reason in rows][:3] == [
        ("&lt;b&gt;.png", "transparent"), (r"a\ndata version: forged\x1b[2K.png", "grey"), ("blank.png", "flat"),
    ]  # fmt: skip
    shown = {name for picture, name, _ in rows if "data:image/webp;base64," in picture}
    assert {"blank.png", "grey.png", "tiny.png"} <= shown
    assert "page0.jpg" not in shown


def test_mlflow_has_a_line_about_the_data_and_the_whole_list(first: Finished, source: Path, tmp_path: Path) -> None:
    assert first.code == 0
    client = MlflowClient(f"sqlite:///{source / 'workspace' / 'mlflow.db'}")
    experiments = [each.experiment_id for each in client.search_experiments()]
    runs = {each.data.tags["step"]: each for each in client.search_runs(experiments)}
    for step in ("retrain", "evaluate"):
        assert "; 9 files quarantined (1 flat, 2 grey, 4 not-an-image, " in runs[step].data.tags["data"]
    stored = client.download_artifacts(runs["evaluate"].info.run_id, "evaluation/data.json", str(tmp_path))
    assert len(read_summary(Path(stored).parent).quarantined) == 9


def test_a_run_with_nothing_to_do_and_one_that_takes_ingest_from_the_cache_tell_the_same(
    first: Finished, source: Path
) -> None:
    second = run(source, "pipelines.cli", "run", *SETTINGS)
    assert second.code == 0, second.err
    assert second.out.startswith("nothing to do: ")
    assert told(second.out) == told(first.out)
    cached = run(source, "pipelines.cli", "run", *SETTINGS, "--set", "train.seed=2")
    assert cached.code == 0, cached.err
    assert "ingest ..." not in cached.err
    assert told(cached.out) == told(first.out)
    page = source / told(cached.out)[-2].removeprefix("checks: ")
    assert page.exists()


def test_too_many_unfit_files_are_named_before_the_error(first: Finished, source: Path) -> None:
    assert first.code == 0
    done = run(source, "pipelines.cli", "run", "--set", "ingest.quarantine_tolerance=0.1")
    assert done.code == 3
    *_, last = done.err.splitlines()
    assert last.startswith("error: ingest: 9 of ")
    assert r"  a\ndata version: forged\x1b[2K.png: grey: it is grey: " in done.err
    listed = last.partition(": see ")[2].partition(" for what")[0]
    assert Path(listed).exists()
