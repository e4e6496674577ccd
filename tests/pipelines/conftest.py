"""A registry with versions whose files are tiny, and the commands that move its champion."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bebygan.files import sha256_of
from components.tracking.client import mlflow_client
from pipelines import cli

ROOT = Path(__file__).parents[2]
MODEL = "bebygan"


@pytest.fixture
def workspace(tmp_path: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with an empty registry, below the working folder."""
    for name in ("BEBYGAN_PARENT_RUN", "KFP_RUN_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "workspace"
    folder.mkdir()
    shutil.copy(empty_mlflow_database, folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def version(workspace: Path) -> Callable[..., str]:
    """Register a version with weights of its own; return its number."""

    def make(**tags: str) -> str:
        client = mlflow_client()
        if not client.search_registered_models(f"name='{MODEL}'"):
            client.create_registered_model(MODEL)
        folder = workspace / "stored" / str(len(client.search_model_versions(f"name='{MODEL}'")))
        weights = folder / "artifacts" / "generator.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_text(str(folder))
        tags = {"weights_sha256": sha256_of(weights), "data_version": "0123456789abcdef.dir", **tags}
        return str(client.create_model_version(MODEL, folder.as_uri(), tags=tags).version)

    return make


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `bebygan` with these words; return its exit code and what it printed last."""

    def run(*words: str) -> tuple[int, str]:
        code = cli.main([*words, "--params", str(ROOT / "params.yaml")])
        out, err = capsys.readouterr()
        return code, (err if code else out).strip()

    return run
