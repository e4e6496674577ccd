"""`make setup` with different versions of Python, and with an existing .venv."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def interpreter(folder: Path, version: str, name: str = "python3") -> Path:
    """Write a program that answers as a Python of this version would, and makes virtual environments that do so too."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(
        f"""#!/bin/sh
case "$*" in
    "-m venv"*) mkdir -p .venv/bin && for name in pip python; do cp "$0" .venv/bin/$name; done ;;
    *sys.version_info*) echo {version} ;;
esac
"""
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of programs, the only one on the PATH: what make needs, and no Python."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("make", "sh", "cat", "mkdir", "cp", "echo"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A folder with what `make setup` reads."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, folder)
    return folder


def setup(folder: Path, programs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(programs), "HOME": os.environ["HOME"]}
    command = [str(programs / "make"), "setup", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", ["3.10", "3.13", "2.7"])
def test_an_unsupported_python_is_rejected_before_anything_is_created(
    version: str, checkout: Path, programs: Path
) -> None:
    found = interpreter(programs, version)
    done = setup(checkout, programs)
    assert done.returncode == 2
    assert (
        f"Python 3.11 or 3.12 is needed, but {found} is Python {version}: install one of them, or name it"
        in done.stderr
    )
    assert "make setup PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_a_missing_python_is_reported(checkout: Path, programs: Path) -> None:
    assert "is needed, but python3 is missing" in setup(checkout, programs).stderr
    assert "is needed, but python3.12 is missing" in setup(checkout, programs, "PYTHON=python3.12").stderr


@pytest.mark.parametrize("name", ["python3.11", "python3.12", "python3"])
def test_an_environment_is_created_once(name: str, checkout: Path, programs: Path) -> None:
    interpreter(programs, "3.13" if name != "python3" else "3.12")
    found = interpreter(programs, name.removeprefix("python") if "." in name else "3.12", name)
    done = setup(checkout, programs)
    assert done.returncode == 0, done.stderr
    assert f"{found} -m venv" in done.stdout
    assert "Nothing to be done" in setup(checkout, programs).stdout
    assert "Nothing to be done" in setup(checkout, programs, f"PYTHON={name}").stdout


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_the_environment_of_another_folder_is_created_again(
    how: object, checkout: Path, programs: Path, tmp_path: Path
) -> None:
    interpreter(programs, "3.11")
    setup(checkout, programs)
    assert callable(how)
    how(checkout, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / ".venv" / "of-before").touch()
    done = setup(tmp_path / "elsewhere", programs)
    assert "-m venv --clear .venv" in done.stdout
    assert "Nothing to be done" in setup(tmp_path / "elsewhere", programs).stdout


def test_the_environment_of_another_python_is_created_again(checkout: Path, programs: Path, tmp_path: Path) -> None:
    first = interpreter(programs, "3.11")
    setup(checkout, programs)
    other = interpreter(tmp_path / "other", "3.12")
    assert f"{other} -m venv --clear .venv" in setup(checkout, programs, f"PYTHON={other}").stdout
    assert "Nothing to be done" in setup(checkout, programs).stdout, "the one it was made for is still there"
    other.unlink()
    assert f"{first} -m venv --clear .venv" in setup(checkout, programs).stdout
