"""What version 0.1.0 of this project left behind is used by this one: database, ledger, champion and checkpoint.

`previous_version/workspace.tar.xz` is what its `bebygan run` left of a tiny run (params.yaml in it), without pictures;
`/previous` stands in it for the folder of the project.
"""

import json
import sqlite3
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml

from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape, Retention
from bebygan.training.checkpoint import Checkpoints, identity_in
from tests.system.conftest import ROOT, run

ARCHIVE = Path(__file__).parent / "previous_version" / "workspace.tar.xz"
pytestmark = pytest.mark.slow


def _move_to(database: Path, project: Path) -> None:
    """Let the places of artifacts in a database begin with the project's folder."""
    with sqlite3.connect(database) as connection:
        for table, column in (
            ("runs", "artifact_uri"),
            ("experiments", "artifact_location"),
            ("logged_models", "artifact_location"),
            ("model_versions", "storage_location"),
        ):
            statement = f"UPDATE {table} SET {column} = replace({column}, '/previous', ?)"  # noqa: S608 - names above
            connection.execute(statement, (str(project),))


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Path]) -> Path:
    """A project whose workspace the version before has written."""
    project = new_project("previous")
    today = yaml.safe_load((project / "params.yaml").read_text())
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(project, filter="data")
    # A person adds the parameters that are new.
    before = yaml.safe_load((project / "params.yaml").read_text())
    # The archive has no DVC remote, and so no photographs of its first promotion to measure on.
    today["evaluate"]["anchor"] = "none"
    (project / "params.yaml").write_text(yaml.safe_dump(_merged(today, before)))
    _move_to(project / "workspace" / "mlflow.db", project)
    for described in project.rglob("MLmodel"):
        described.write_text(described.read_text().replace("/previous", str(project)))
    return project


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {
        name: _merged(base[name], value) if isinstance(value, dict) and isinstance(base.get(name), dict) else value
        for name, value in over.items()
    }


def _entries(project: Path) -> list[Mapping[str, object]]:
    return [json.loads(path.read_text()) for path in sorted((project / "workspace/ledger/bebygan").iterdir())]


def test_a_run_meets_the_old_champion_and_continues_its_ledger(project: Path) -> None:
    before = _entries(project)
    done = run(project, "pipelines.cli", "run")
    assert done.code == 0, done.err
    told = " ".join(done.err.split())
    assert "photographs changed, code changed, parameters changed (" in told
    assert " since the champion, version 1" in told
    first, second = _entries(project)
    assert [first] == before
    assert (second["number"], second["version"], second["previous"]) == (2, "2", "1")
    again = run(project, "pipelines.cli", "run")
    assert again.code == 0, again.err
    assert "nothing to do" in again.out
    assert "version 2" in again.out


def test_the_old_champion_loads_with_the_code_that_it_carries(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project / 'workspace' / 'mlflow.db'}")
    mlflow.set_tracking_uri(f"sqlite:///{project / 'workspace' / 'mlflow.db'}")
    # MLflow leaves the folder of the model's code there, and processes that later tests start would import it.
    monkeypatch.setattr(sys, "path", [*sys.path])
    model = mlflow.pyfunc.load_model("models:/bebygan/1")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 18, 21, 3), np.uint8)
    assert model.predict(pixels).shape == (1, 72, 84, 3)


def test_the_old_champion_is_explained_and_verified(project: Path) -> None:
    now = ("--params", str(ROOT / "params.yaml"))
    for command in ("why", "lineage"):
        done = run(project, "pipelines.cli", command, "1", *now)
        assert done.code == 0, done.err
        assert done.out.startswith("bebygan version 1")
    assert "seed            1\n" in done.out
    assert "unknown" not in done.out
    verified = run(project, "pipelines.cli", "verify", "1", *now)
    # Its data version was left out of the archive.
    assert verified.code == 3
    assert verified.err.startswith("error: 1 of 5 checks failed: photographs: ")


def test_an_old_checkpoint_is_resumed_by_the_same_training(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    [path] = tmp_path.glob("workspace/checkpoints/train-*/iteration-00000002.checkpoint")
    with path.open("rb") as file:
        made_of = identity_in(file)
    assert made_of is not None
    with Checkpoints(path.parent, made_of, Retention(newest=2, every=0, best=None)) as checkpoints:
        state = checkpoints.load()
    assert state is not None
    assert state["iteration"] == 2
    Generator(GeneratorShape(blocks=1, features=4, growth=2)).load_state_dict(state["generator"])
    Discriminator(48, 2).load_state_dict(state["discriminator"])
    assert all(torch.isfinite(value).all() for value in state["generator"].values())
