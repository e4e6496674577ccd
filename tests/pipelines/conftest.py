"""A registry with versions whose files are tiny, and the commands that move its champion."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch

from bebygan.files import sha256_of
from bebygan.networks.generator import Generator
from bebygan.networks.naming import save_generator
from bebygan.registered_model import MODEL_CODE, WEIGHTS, digests
from bebygan.settings import GeneratorShape
from components.artifacts import Verdict, write_means, write_verdict
from components.config import Metric, load_params, to_yaml
from components.stores.data_version import push
from components.tracking.client import mlflow_client
from components.tracking.provenance import provenance
from components.tracking.runs import close_pipeline_run, open_pipeline_run, step_run
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
    """Register a version with a tiny generator of its own and some code; return its number."""

    def make(*, train: object = None, **tags: str) -> str:
        client = mlflow_client()
        if not client.search_registered_models(f"name='{MODEL}'"):
            client.create_registered_model(MODEL)
        number = len(client.search_model_versions(f"name='{MODEL}'"))
        folder = workspace / "stored" / str(number)
        (folder / "artifacts").mkdir(parents=True)
        torch.manual_seed(number)
        metadata = {"params": hashlib.sha256(to_yaml(train).encode()).hexdigest()} if train else {}
        network = Generator(GeneratorShape(blocks=1, features=4, growth=2))
        save_generator(network, folder / WEIGHTS, metadata=metadata)
        (folder / MODEL_CODE).write_text("import bebygan\n")
        of_weights = {f"train.{name}": text for name, text in metadata.items()}
        tags = digests(folder) | {"data_version": "0123456789abcdef.dir"} | of_weights | tags
        return str(client.create_model_version(MODEL, folder.as_uri(), tags=tags).version)

    return make


@pytest.fixture
def made(version: Callable[..., str], workspace: Path, tmp_path: Path) -> str:
    """Register a version with all that a run leaves: its runs, a verdict, a data version in the remote."""
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    rows = [{"source": f"trip/{n}.png", "sha256": f"{n}" * 64, "split": "test" if n else "train"} for n in range(3)]
    pd.DataFrame(rows).to_parquet(dataset / "manifest.parquet")
    (dataset / "0.png").write_bytes(b"photograph")
    data = push(dataset, str(workspace / "dvc-remote"))
    params = load_params(ROOT / "params.yaml")
    number = version(train=params.train, data_version=data)
    weights = mlflow_client().get_model_version(MODEL, number).tags["weights_sha256"]
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    row: dict[Metric, float] = dict.fromkeys(get_args(Metric), 0.5)
    write_means(evaluation, {"bicubic": row, "challenger": row})
    verdict = Verdict(
        verdict="promote",
        reasons=("passed: lpips 0.5",),
        model=MODEL,
        champion=None,
        challenger_sha256=weights,
        measured_sha256={"metrics.json": sha256_of(evaluation / "metrics.json")},
        protocol={},
        provenance=provenance(params.evaluate, data),
    )
    write_verdict(evaluation, verdict)
    parent = open_pipeline_run(params, {"source": "s3://photographs", "reason": "a test"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEBYGAN_PARENT_RUN", parent)
        with step_run("train", params.train, data):
            pass
        with step_run("evaluate", params.evaluate, data) as run:
            run.artifacts(evaluation, "evaluation")
    close_pipeline_run("FINISHED", {})
    for name, value in {
        "parent_run": parent,
        "params_hash": provenance(params)["params_hash"],
        "verdict": "promote",
        "verdict_sha256": sha256_of(evaluation / "verdict.json"),
        "compared_with_champion": "none",
        "image_digest": "unknown",
    }.items():
        mlflow_client().set_model_version_tag(MODEL, number, name, value)
    return number


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `bebygan` with these words; return its exit code and what it printed last."""

    def run(*words: str) -> tuple[int, str]:
        code = cli.main([*words, "--params", str(ROOT / "params.yaml")])
        out, err = capsys.readouterr()
        return code, (err if code else out).strip()

    return run
