"""The wheel in an environment that holds the library's four dependencies and nothing else."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEPENDENCIES = {"numpy", "pillow", "safetensors", "torch"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: setuptools writes into them."""
    sources = tmp_path_factory.mktemp("sources")
    for part in ("bebygan", "components", "pipelines"):
        shutil.copytree(ROOT / part, sources / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / part, sources)
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(target), str(sources)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    [path] = target.iterdir()
    return path


def required(name: str) -> set[str]:
    """Return a distribution's name and those of all that it requires here, without extras."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        if (name := re.sub(r"[-_.]+", "-", waiting.pop()).lower()) in found:
            continue
        found.add(name)
        requirements = [Requirement(line) for line in importlib.metadata.requires(name) or ()]
        waiting += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel, and links to the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    [packages] = folder.glob("lib/*/site-packages")
    for name in set().union(*map(required, DEPENDENCIES)):
        distribution = importlib.metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or () if path.parts[0] not in {"..", "__pycache__"}}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return python


def run(python: Path, code: str, folder: Path) -> str:
    """Return what a program prints. -I: it sees its environment alone."""
    done = subprocess.run([str(python), "-I", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_library_alone_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"bebygan"}
    assert "bebygan/py.typed" in names
    shipped = {name for name in names if name.startswith("bebygan/")}
    assert shipped == {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "bebygan").rglob("*")
        # Only a training, which runs from a checkout, needs the discriminator.
        if path.is_file() and "__pycache__" not in path.parts and path.name != "discriminator.safetensors"
    }


def test_the_base_requires_four_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        [metadata] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(metadata).decode().splitlines()
    requirements = [Requirement(line.partition(": ")[2]) for line in lines if line.startswith("Requires-Dist: ")]
    assert {each.name for each in requirements if each.marker is None} == DEPENDENCIES
    assert {"data", "train", "pipeline", "tracker", "serve", "export", "signing", "dev"} == {
        line.partition(": ")[2] for line in lines if line.startswith("Provides-Extra: ")
    }


def test_every_module_imports_with_the_four_dependencies(python: Path, tmp_path: Path) -> None:
    code = """
import importlib, pkgutil, bebygan
for module in pkgutil.walk_packages(bebygan.__path__, "bebygan."):
    importlib.import_module(module.name)
    print(module.name)
for absent in ("components", "pipelines", "mlflow", "pydantic", "yaml", "tqdm"):
    assert importlib.util.find_spec(absent) is None, absent
"""
    imported = run(python, code, tmp_path).split()
    assert {"bebygan.losses.best_buddy", "bebygan.pretrained.download", "bebygan.training.loop"} <= set(imported)


def test_every_module_imports_where_fcntl_is_missing(python: Path, tmp_path: Path) -> None:
    """As on Windows. What torch imports itself is imported before the platform changes."""
    code = """
import importlib, pkgutil, sys
import safetensors.torch, torch._dynamo, torch.distributed, torch.hub, PIL.Image
import multiprocessing, shutil, subprocess, tempfile
sys.platform, sys.modules["fcntl"] = "win32", None
import bebygan
for module in pkgutil.walk_packages(bebygan.__path__, "bebygan."):
    importlib.import_module(module.name)
print("done")
"""
    assert run(python, code, tmp_path) == "done\n"


def test_a_loss_is_computed_and_the_command_says_that_it_needs_a_checkout(python: Path, tmp_path: Path) -> None:
    code = """
import torch
from bebygan.losses import best_buddy_loss
sr, hr = torch.rand(2, 1, 3, 48, 48)
print(best_buddy_loss(sr, hr).item())
"""
    assert float(run(python, code, tmp_path)) > 0
    command = [str(python.with_name("bebygan")), "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the installed package bebygan is the library alone")


def test_the_download_command_needs_no_more(python: Path, tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv[1:] = ['--help']; runpy.run_module('bebygan.pretrained', run_name='__main__')"
    assert "realsr-df2k-x4" in run(python, code, tmp_path)
