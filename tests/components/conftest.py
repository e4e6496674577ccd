"""What tests of several steps need: MLflow's embedded store, fresh for each test."""

import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs. Making its tables takes seconds, so that tests copy this one."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlartifacts").as_uri())
    return folder / "mlflow.db"


@pytest.fixture
def mlflow_store(tmp_path: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store, named in the environment; the working folder is the test's own."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "BEBYGAN_PARENT", "KFP_"))]:
        monkeypatch.delenv(name)
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri
