"""A workspace keeps working wherever it is, whatever its name, and whatever the shell still has in its environment."""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.system.conftest import Finished, run

pytestmark = pytest.mark.slow
ODD = "feature%2Fx ?$HOME#'@2"


@pytest.fixture(scope="module")
def elsewhere(new_project: Callable[[str], Path]) -> Path:
    """A working folder other than the project's."""
    folder = new_project("places") / "elsewhere"
    folder.mkdir()
    return folder


def retrain(elsewhere: Path, workspace: str, *arguments: str) -> Finished:
    """Run the pipeline from another folder, with variables of another run."""
    left = dict.fromkeys(("MLFLOW_RUN_ID", "MLFLOW_ACTIVE_MODEL_ID", "BEBYGAN_PARENT_RUN"), "0" * 32)
    environment = {"PYTHONPATH": str(elsewhere.parent), **left}
    return run(elsewhere, "pipelines.cli", "run", "--workspace", workspace, *arguments, environment=environment)


def places(workspace: Path) -> set[str]:
    with closing(sqlite3.connect(workspace / "mlflow.db")) as connection:
        return {uri for (uri,) in connection.execute("SELECT artifact_uri FROM runs")}


def contents(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_workspace_can_be_oddly_named_copied_and_moved(elsewhere: Path) -> None:
    first = retrain(elsewhere, ODD)
    assert first.code == 0, first.err
    assert "champion: bebygan version 1\n" in first.out
    original = elsewhere / ODD
    assert {path.name for path in elsewhere.iterdir()} == {ODD}
    assert list(original.glob("pipeline/*/ingest/docs/index.html"))

    shutil.copytree(original, elsewhere / "copy")
    before = contents(original)
    copied = retrain(elsewhere, "copy", "--set", "train.iterations=3")
    assert copied.code == 0, copied.err
    assert "champion: bebygan version 2\n" in copied.out
    assert contents(original) == before
    assert all(uri.startswith((elsewhere / "copy").as_uri()) for uri in places(elsewhere / "copy"))

    shutil.move(elsewhere / "copy", elsewhere / "moved")
    moved = retrain(elsewhere, "moved", "--set", "train.iterations=4")
    assert moved.code == 0, moved.err
    assert "champion: bebygan version 3\n" in moved.out
    assert not (elsewhere / "copy").exists()
