"""Fixtures for tests of several steps: MLflow's embedded store, new for each test; a dataset and generators."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bebygan import SCALE
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import PhotographPair, write_shards
from bebygan.networks.generator import Generator
from bebygan.networks.naming import save_generator
from bebygan.settings import GeneratorShape
from components.artifacts import write_quarantine


@pytest.fixture
def mlflow_store(tmp_path: Path, empty_mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty store, set in the environment; each test has its own working folder."""
    foreign = ("MLFLOW_RUN", "MLFLOW_EXPERIMENT", "BEBYGAN_PARENT", "KFP_")
    for name in [name for name in os.environ if name.startswith(foreign)]:
        monkeypatch.delenv(name)
    shutil.copy(empty_mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.chdir(tmp_path)
    return uri


@pytest.fixture
def dataset(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    """A dataset like that of ingest: two photographs to train on, three held out."""
    folder = tmp_path / "dataset"
    (folder / "photographs").mkdir(parents=True)
    rows = []
    for seed, split in enumerate(("train", "test", "train", "test", "test")):
        buffer = io.BytesIO()
        picture(seed, 110 + seed, 90).save(buffer, "PNG")
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        file = f"photographs/{digest}.png"
        (folder / file).write_bytes(buffer.getvalue())
        rows.append({"sha256": digest, "source": f"trip/{seed}.png", "file": file, "split": split})
    pd.DataFrame(rows).sort_values("sha256").to_parquet(folder / "manifest.parquet")
    write_quarantine(folder, [])
    return folder


@pytest.fixture(scope="session")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like that of the patches step: two smooth, noisy photographs, one of them to validate on."""
    folder = tmp_path_factory.mktemp("patches")
    random = np.random.default_rng(1)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    hr = (np.asarray(coarse) + random.normal(0, 12, (96, 96, 1))).clip(0, 255).astype(np.uint8)
    windows = np.array([(top, left) for top in (0, 24, 48) for left in (0, 24, 48)])
    mirrored = np.ascontiguousarray(hr[:, ::-1])
    photographs = [
        PhotographPair(hr, downscale_uint8(hr, SCALE), "train", windows),
        PhotographPair(mirrored, downscale_uint8(mirrored, SCALE), "validation", windows[::4]),
    ]
    write_shards(folder, photographs, 48, 10**9, {"data_version": f"{'0' * 32}.dir"})
    return folder


@pytest.fixture
def generator_folder(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a folder like that of a training step, with an untrained generator."""

    def make(name: str, seed: int) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        torch.manual_seed(seed)
        generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
        with torch.no_grad():
            generator.conv_last.bias.fill_(0.5)
        save_generator(generator, folder / "generator.safetensors", metadata={"seed": str(seed)})
        return folder

    return make
