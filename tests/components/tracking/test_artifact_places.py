import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from bebygan.errors import ServiceError
from components.tracking.address import VARIABLE, database_uri
from components.tracking.client import mlflow, mlflow_client
from components.tracking.runs import step_run

NAMES = ("first", "100%25 of a?b #1", "me@2")


def put(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Store a file with a new run in the database of a folder, and return the run's id."""
    monkeypatch.setenv(VARIABLE, database_uri(folder / "mlflow.db"))
    (folder.parent / "files").mkdir(exist_ok=True)
    (folder.parent / "files" / "note.txt").write_text(text)
    with step_run("train", {}) as run:
        run.artifacts(folder.parent / "files", "notes")
    return run.run_id


def stored(client: MlflowClient, run_id: str) -> str:
    location = client.get_run(run_id).info.artifact_uri
    return Path(mlflow.artifacts.download_artifacts(f"{location}/notes/note.txt")).read_text()


@pytest.fixture
def workspace(tmp_path: Path, mlflow_store: str, request: pytest.FixtureRequest) -> Path:  # noqa: ARG001
    """A folder with an empty database."""
    folder = tmp_path / getattr(request, "param", "first")
    folder.mkdir()
    shutil.move(tmp_path / "mlflow.db", folder)
    return folder


@pytest.mark.parametrize("workspace", NAMES, indirect=True)
@pytest.mark.parametrize("name", ["second", "50%2F?", "you@3"])
@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_copied_or_moved_database_stores_and_finds_its_artifacts_beside_itself(
    workspace: Path, name: str, move: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put(workspace, monkeypatch, "first")
    before = {path: path.stat().st_mtime_ns for path in workspace.rglob("*")}
    target = tmp_path / name
    assert callable(move)
    move(workspace, target)
    second = put(target, monkeypatch, "second")
    client = mlflow_client()
    assert [stored(client, each) for each in (first, second)] == ["first", "second"]
    for run_id in (first, second):
        assert (target / "mlartifacts" / run_id / "artifacts" / "notes" / "note.txt").is_file()
    if workspace.exists():
        assert {path: path.stat().st_mtime_ns for path in workspace.rglob("*")} == before


def test_a_database_that_was_copied_without_its_artifacts_is_refused(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(workspace, monkeypatch, "first")
    (tmp_path / "second").mkdir()
    shutil.copy(workspace / "mlflow.db", tmp_path / "second")
    monkeypatch.setenv(VARIABLE, database_uri(tmp_path / "second" / "mlflow.db"))
    with pytest.raises(ServiceError) as caught:
        mlflow_client()
    assert str(caught.value) == (
        f"{tmp_path}/second/mlflow.db was copied without its artifacts: copy {workspace}/mlartifacts to "
        f"{tmp_path}/second, too, or name an empty workspace"
    )


def test_a_place_that_a_person_chose_for_the_artifacts_is_kept(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tmp_path / "shared" / "mlartifacts"
    chosen.mkdir(parents=True)
    monkeypatch.setenv(VARIABLE, database_uri(workspace / "mlflow.db"))
    mlflow_client().create_experiment("bebygan", chosen.as_uri())
    first = put(workspace, monkeypatch, "first")
    shutil.move(workspace, tmp_path / "second")
    second = put(tmp_path / "second", monkeypatch, "second")
    assert {path.name for path in chosen.iterdir()} == {first, second}
