"""The whole pipeline, run once by its real command on tiny settings, for all tests that look at what it left."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from components.config import load_params, plain

ROOT = Path(__file__).parents[2]
TREE = ("bebygan", "components", "pipelines", "data/pretrained", ".dvc/config", ".dvc/.gitignore", "dvc.yaml")
SIDE = 160
TINY: dict[str, Any] = {
    "ingest": {"minimum_side": 128, "validation_share": 0.2, "test_share": 0.3},
    "patches": {"size": 64, "step": 48},
    "train": {
        "discriminator_width": 8, "iterations": 2, "batch": 2, "crop": 48, "checkpoint_every": 1, "log_every": 1,
        "discriminator_first": 0,
    },
    "evaluate": {
        "crop": 64,
        # Two iterations improve nothing; these settings promote whatever is no disaster and is not the champion itself.
        "thresholds": {"absolute": {"lr_psnr": 0.0}, "bicubic": {}, "warmup": {}, "champion": {"psnr_y": -20.0}},
    },
}  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


def start(
    project: Path, *command: str, environment: Mapping[str, str] | None = None, new_session: bool = False
) -> subprocess.Popen[str]:
    """Start a Python module's command in a project's folder, as a person without a terminal would.

    Variables that would change what it does are taken away, those of `environment` are added.
    """
    foreign = ("MLFLOW_", "BEBYGAN_PARENT", "BEBYGAN_FAILURE", "BEBYGAN_WATCHER", "KFP_", "AWS_", "PYTHONPATH")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    variables |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}",
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(project / "workspace" / "dvc-site"),
    }
    variables |= environment or {}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=project, env=variables, stdout=pipe, stderr=pipe, text=True,
        start_new_session=new_session,
    )  # fmt: skip


def run(project: Path, *command: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command to its end; see `start`."""
    started = time.monotonic()
    process = start(project, *command, environment=environment)
    out, err = process.communicate()
    return Finished(process.returncode, out, err, time.monotonic() - started)


def output_of(project: Path, step: str, artifact: str) -> Path:
    """Return a copy of the folder that a step wrote in `first_run`: later runs remove what they do not use."""
    [found] = (project / "first").glob(f"*/{step}/{artifact}")
    return found


def _with_tiny_values(values: dict[str, Any]) -> dict[str, Any]:
    for group, changes in TINY.items():
        for name, value in changes.items():
            values[group][name] = value
    return values


def _cut_photographs(folder: Path) -> None:
    """Cut the middle out of each sample photograph. Stored without compression, so that bytes and splits stay."""
    folder.mkdir(parents=True)
    for path in sorted((ROOT / "data" / "sample").iterdir()):
        if path.suffix == ".md":
            continue
        with Image.open(path) as photograph:
            pixels = np.asarray(photograph)
        top, left = ((length - SIDE) // 2 for length in pixels.shape[:2])
        middle = Image.fromarray(pixels[top : top + SIDE, left : left + SIDE])
        middle.save(folder / f"{path.stem}.png", compress_level=0)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder of the project's sources with tiny settings and photographs; what runs there stays there."""

    def make(name: str) -> Path:
        project = tmp_path_factory.mktemp(name)
        for part in TREE:
            target = project / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / part).is_dir():
                shutil.copytree(ROOT / part, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / part, target)
        values = _with_tiny_values(plain(load_params(ROOT / "params/compact.yaml")))
        (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        _cut_photographs(project / "data" / "sample")
        return project

    return make


@pytest.fixture(scope="session")
def project(new_project: Callable[[str], Path]) -> Path:
    """A project in which `first_run` runs."""
    return new_project("project")


@pytest.fixture(scope="session")
def first_run(project: Path) -> Finished:
    """The whole pipeline's first run in `project`."""
    done = run(project, "pipelines.cli", "run")
    assert done.code == 0, done.err
    shutil.copytree(project / "workspace" / "pipeline", project / "first")
    return done
