"""Registered models whose stored files changed afterwards."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bebygan.errors import WeightsError
from components.artifacts import Registration
from components.tracking.registry import champion, download_generator, verify
from tests.components.registered import aliases, versions


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.fixture
def stored(registered: Callable[..., Registration], challenger: Path, tmp_path: Path) -> Path:
    """The folder in which MLflow keeps the files of the champion, version 1."""
    registered(challenger, "promote")
    return next((tmp_path / "mlartifacts").rglob("MLmodel")).parent


def load_elsewhere(folder: Path) -> "subprocess.CompletedProcess[str]":
    code = "import mlflow; mlflow.pyfunc.load_model('models:/tests@champion')"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=folder)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("artifacts/generator.safetensors", "its weights have SHA-256"),
        ("model_code.py", "its files of code have SHA-256"),
        ("code/bebygan/imaging/tiling.py", "its files of code have SHA-256"),
    ],
)
def test_a_flipped_bit_in_weights_or_code_is_found(name: str, what: str, stored: Path) -> None:
    version = champion("tests")
    assert version is not None
    verify(version)
    flip(stored / name)
    with pytest.raises(WeightsError, match=rf"models:/tests/1 is damaged: {what} .*Restore its files from a backup"):
        verify(version)


def test_a_file_that_was_added_to_the_code_or_removed_is_found(stored: Path) -> None:
    version = champion("tests")
    assert version is not None
    (stored / "code" / "numpy.py").write_text("")
    with pytest.raises(WeightsError, match="files of code"):
        verify(version)
    (stored / "code" / "numpy.py").unlink()
    verify(version)
    (stored / "model_code.py").unlink()
    with pytest.raises(WeightsError, match=r"damaged: model_code\.py is missing"):
        verify(version)


def test_flipped_weights_are_not_compared_with_a_challenger(stored: Path, tmp_path: Path) -> None:
    version = champion("tests")
    assert version is not None
    flip(stored / "artifacts" / "generator.safetensors")
    (tmp_path / "fetched").mkdir()
    with pytest.raises(WeightsError, match="models:/tests/1 is damaged: its weights have SHA-256"):
        download_generator(version, tmp_path / "fetched")


@pytest.mark.slow
def test_a_strangers_process_loads_neither_flipped_weights_nor_altered_code(stored: Path, tmp_path: Path) -> None:
    assert load_elsewhere(tmp_path).returncode == 0
    flip(stored / "artifacts" / "generator.safetensors")
    refused = load_elsewhere(tmp_path)
    assert refused.returncode
    assert "this model is damaged: its weights have SHA-256" in refused.stderr
    flip(stored / "artifacts" / "generator.safetensors")
    with (stored / "model_code.py").open("a") as code:
        code.write("# another byte\n")
    assert "this model is damaged: its files of code have SHA-256" in load_elsewhere(tmp_path).stderr


def test_registering_the_same_weights_again_replaces_a_damaged_version(
    stored: Path, registered: Callable[..., Registration], challenger: Path
) -> None:
    flip(stored / "artifacts" / "generator.safetensors")
    assert registered(challenger, "promote", champion="1").version == "2"
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}
    now = champion("tests")
    assert now is not None
    verify(now)
    assert registered(challenger, "keep", champion="2").version == "2"
    assert versions() == 2
