import os
from pathlib import Path

import pytest
from sqlalchemy import make_url

from bebygan.errors import ConfigError, StorageError, without_password
from components.tracking.address import VARIABLE, database_file, database_uri, tracking_uri


@pytest.mark.parametrize("value", [None, "", "  "])
def test_the_default_database_is_in_the_workspace(
    value: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if value is None:
        monkeypatch.delenv(VARIABLE, raising=False)
    else:
        monkeypatch.setenv(VARIABLE, value)
    assert tracking_uri() == f"sqlite:///{tmp_path / 'workspace' / 'mlflow.db'}"
    assert tracking_uri(Path("other")) == f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"
    assert (tmp_path / "other").is_dir()


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:5000", "https://user:secret@mlflow.example/prefix", "sqlite:////data/mlflow.db",
        "postgresql://user:secret@host/mlflow", "postgresql+psycopg2://host/mlflow", "mysql+pymysql://host/mlflow",
        "databricks", "databricks://profile",
    ],
)  # fmt: skip
def test_an_address_that_mlflow_knows_is_returned_unchanged(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, uri)
    assert tracking_uri() == os.environ[VARIABLE] == uri


@pytest.mark.parametrize(
    "uri",
    [
        "./mlruns", "mlruns", "file:///data/mlruns", "127.0.0.1:5000", "localhost:5000", "htp://host", "http://",
        "http://host:port", "http://host:0", "sqlite://mlflow.db", "sqlite:///", "postgresql://",
        "postgresql://host:port/mlflow",
    ],
)  # fmt: skip
def test_an_address_that_mlflow_does_not_know_raises_a_config_error(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, uri)
    with pytest.raises(ConfigError) as caught:
        tracking_uri()
    assert str(caught.value).startswith(
        f"MLFLOW_TRACKING_URI {uri} is not an address of MLflow: name a server (http://"
    )
    assert "\n" not in str(caught.value)


def test_processes_with_other_working_folders_use_the_same_relative_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "sqlite:///x.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/x.db"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert tracking_uri() == os.environ[VARIABLE] == f"sqlite:///{tmp_path}/x.db"


def test_a_relative_database_of_the_registry_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, "sqlite:///x.db?timeout=5")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sqlite:///registry.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/x.db?timeout=5"
    assert os.environ["MLFLOW_REGISTRY_URI"] == f"sqlite:///{tmp_path}/registry.db"


@pytest.mark.parametrize("name", ["feature%2Fx", "a?b", "$HOME", "a b#c", "it's", 'a"b', "job@2", "ü", "100%"])
def test_the_database_of_a_workspace_with_an_unusual_name_is_in_it(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "mlflow.db"
    uri = database_uri(file)
    assert database_file(uri) == file
    assert without_password(uri) == uri
    # This is the path that SQLAlchemy opens.
    assert make_url(uri).database == str(file)


def test_a_workspace_that_cannot_be_created_raises_a_storage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(StorageError, match="a file is where a folder should be"):
        tracking_uri(tmp_path / "file" / "workspace")


@pytest.mark.parametrize(
    ("uri", "file"),
    [
        ("sqlite:////data/mlflow.db", Path("/data/mlflow.db")),
        ("sqlite:////data/mlflow.db?timeout=5", Path("/data/mlflow.db")),
        ("sqlite+pysqlite:////data/a%2Fb/mlflow.db", Path("/data/a/b/mlflow.db")),
        ("postgresql://host/mlflow", None),
        ("https://host", None),
    ],
)
def test_the_file_of_an_embedded_database(uri: str, file: Path | None) -> None:
    assert database_file(uri) == file
