"""`bebygan verify` finds one changed byte in each place that holds a part of a version's story."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from components.tracking.client import mlflow_client
from tests.pipelines.conftest import MODEL

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def promoted(made: str, command: Command) -> str:
    """A version with two moves in the ledger."""
    for verb in ("1", "2"):
        command("promote", made, "--reason", f"try {verb}")
        mlflow_client().delete_registered_model_alias(MODEL, "champion")
    command("promote", made, "--reason", "once more")
    return made


def test_an_untouched_version_is_what_its_records_say(promoted: str, command: Command) -> None:
    code, told = command("verify", promoted)
    assert code == 0, told
    lines = told.splitlines()
    assert lines[-1] == f"{MODEL} version 1 is what its records say"
    results = dict(line.strip().rpartition(" (")[0].split(": ", 1) for line in lines[:-1])
    assert results.keys() == {"weights and code", "parameters", "verdict", "photographs", "ledger"}
    assert results["weights and code"] == "as registered"
    assert results["parameters"].endswith(", as registered")
    assert results["photographs"].startswith("2 files of ")
    assert "unbroken" in results["ledger"]


@pytest.mark.parametrize(
    "damage",
    [
        ("stored/0/artifacts/generator.safetensors", "weights and code", 5),
        ("stored/0/model_code.py", "weights and code", 5),
        ("mlartifacts/**/params.yaml", "parameters", 3),
        ("mlartifacts/**/evaluation/verdict.json", "verdict", 3),
        ("mlartifacts/**/evaluation/metrics.json", "verdict", 3),
        ("dvc-remote/files/md5/*/*", "photographs", 3),
        ("ledger/bebygan/*.json", "ledger", 3),
    ],
)
def test_one_flipped_bit_is_found_in_each_file(
    damage: tuple[str, str, int], promoted: str, command: Command, workspace: Path
) -> None:
    pattern, check, code = damage
    paths = sorted(workspace.glob(pattern))
    assert paths
    for path in paths:
        original = path.read_bytes()
        for position in (0, len(original) // 2, len(original) - 1):
            path.write_bytes(original[:position] + bytes([original[position] ^ 1]) + original[position + 1 :])
            found, told = command("verify", promoted)
            assert (found, told.count("\n")) == (code, 0), (path, position)
            assert told.startswith(f"error: 1 of 5 checks failed: {check}: "), (path, position)
        path.write_bytes(original)
    assert command("verify", promoted)[0] == 0


def test_a_parameter_that_was_changed_in_mlflow_is_named(promoted: str, command: Command, workspace: Path) -> None:
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database, database:
        changed = database.execute("UPDATE params SET value = '2' WHERE key = 'train.seed'").rowcount
    assert changed == 1
    code, told = command("verify", promoted)
    assert code == 3
    assert "were changed in MLflow: train.seed 1 -> 2" in told


@pytest.mark.parametrize(
    ("tag", "check"),
    [
        ("weights_sha256", "weights and code"),
        ("code_sha256", "weights and code"),
        ("train.params", "weights and code"),
        ("params_hash", "parameters"),
        ("verdict_sha256", "verdict"),
        ("verdict", "verdict"),
    ],
)
def test_a_tag_that_was_changed_in_the_registry_is_found(tag: str, check: str, promoted: str, command: Command) -> None:
    mlflow_client().set_model_version_tag(MODEL, promoted, tag, "0" * 64)
    code, told = command("verify", promoted)
    assert code in (3, 5)
    assert f"{check}: " in told


def test_a_version_that_lost_the_tag_of_its_photographs_is_told(promoted: str, command: Command) -> None:
    mlflow_client().delete_model_version_tag(MODEL, promoted, "data_version")
    code, told = command("verify", promoted)
    assert code == 3
    assert "photographs: models:/bebygan/1 has lost its tag data_version" in told


def test_a_metric_that_was_changed_in_the_registry_is_named(promoted: str, command: Command) -> None:
    mlflow_client().set_model_version_tag(MODEL, promoted, "metric.lpips", "0.5")
    assert command("verify", promoted)[0] == 0
    mlflow_client().set_model_version_tag(MODEL, promoted, "metric.lpips", "0.4")
    code, told = command("verify", promoted)
    assert code == 3
    assert "were changed in MLflow: metric.lpips 0.5 -> 0.4" in told


def test_several_faults_are_all_told(promoted: str, command: Command, workspace: Path) -> None:
    for path in (*workspace.glob("dvc-remote/files/md5/*/*"), *workspace.glob("ledger/bebygan/*.json")):
        path.write_bytes(b"x")
    code, told = command("verify", promoted)
    assert code == 3
    assert told.startswith("error: 2 of 5 checks failed: photographs: ")
    assert "; ledger: " in told
