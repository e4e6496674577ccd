import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL.Image import Image

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "script": [str(Path(sys.executable).with_name("bebygan"))],
    "module": [sys.executable, "-m", "bebygan"],
    "module with the checkout on the path": [sys.executable, "-P", "-m", "bebygan"],
}


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder of another project whose packages have the names of ours."""
    for package in ("components", "pipelines"):
        (tmp_path / package).mkdir()
        for module in ("__init__", "cli"):
            (tmp_path / package / f"{module}.py").write_text("raise SystemExit('a foreign package was imported')\n")
    return tmp_path


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MLFLOW_"))}
    return subprocess.run(command, cwd=folder, env=inherited | variables, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_command_imports_its_own_packages_in_a_folder_with_others_of_the_same_names(
    command: list[str], foreign: Path
) -> None:
    done = run([*command, "run", "--help"], foreign, PYTHONPATH=str(foreign))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: bebygan run")


def test_the_library_without_the_pipeline_says_what_its_command_needs(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bebygan", tmp_path / "bebygan", ignore=shutil.ignore_patterns("__pycache__"))
    done = run([sys.executable, "-m", "bebygan", "run"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: the installed package bebygan is the library alone")
    assert "`make setup`" in line


@pytest.mark.parametrize(
    "module", ["bebygan", "pipelines.cli", "components.ingest.__main__", "components.patches.__main__"]
)
def test_no_torch_is_imported_before_it_is_needed(module: str) -> None:
    """The data image has no torch, and importing it takes longer than `bebygan --help` may."""
    done = run([sys.executable, "-c", f"import sys, {module}; print('torch' in sys.modules)"], ROOT)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.slow
def test_the_steps_of_a_run_import_the_same_packages_as_the_command(
    foreign: Path, picture: Callable[..., Image]
) -> None:
    (foreign / "photographs").mkdir()
    picture(0).save(foreign / "photographs" / "0.png")
    command = [*COMMANDS["script"], "run", "--source", "photographs", "--params", str(ROOT / "params/compact.yaml")]
    done = run(command, foreign)
    assert done.returncode == 3, done.stderr
    assert re.search(r"^error: ingest: ", done.stderr, re.MULTILINE)
