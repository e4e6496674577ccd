"""Damaged outputs of earlier runs: they are detected before they are used, and made again."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import Finished, run

pytestmark = pytest.mark.slow
CACHED = ["ingest", "patches", "warmup"]


@pytest.fixture(scope="module")
def project(new_project: Callable[[str], Path]) -> Path:
    """A project whose training fails at once, so that a run ends after the steps with a cache."""
    folder = new_project("cached")
    step = folder / "components" / "train" / "step.py"
    step.write_text("from bebygan.errors import DataError\n\nraise DataError('enough')\n")
    return folder


def retrain(project: Path, *options: str) -> Finished:
    done = run(project, "pipelines.cli", "run", *options)
    assert done.err.endswith("error: train: enough\n"), done.err
    return done


def stepped(finished: Finished) -> list[str]:
    return re.findall(r"^(\w+) done in \d+ s$", finished.err, re.MULTILINE)


@pytest.fixture(scope="module")
def first(project: Path) -> Finished:
    return retrain(project)


def test_intact_outputs_are_used(first: Finished, project: Path) -> None:
    assert stepped(first) == CACHED
    again = retrain(project)
    assert stepped(again) == []
    assert "damaged" not in again.err


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add(path: Path) -> None:
    path.with_name("added").touch()


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("patches/shards/shard-000.npy", delete),
        ("patches/shards/shard-000.npy", flip),
        ("ingest/dataset/manifest.parquet", flip),
        ("ingest/dataset/quarantine.json", add),
        ("warmup/generator/generator.safetensors", truncate),
        ("warmup/generator.sha256", flip),
    ],
)
def test_a_damaged_output_is_reported_and_made_again(
    file: str, damage: Callable[[Path], None], first: Finished, project: Path
) -> None:
    assert first.code == 3
    path = max((project / "workspace" / "pipeline").glob(f"*/{file}"), key=lambda found: found.stat().st_ctime)
    damage(path)
    again = retrain(project)
    step, output, *_ = file.removesuffix(".sha256").split("/")
    [line] = [line for line in again.err.splitlines() if "damaged" in line]
    assert line.startswith(f"{project / 'workspace' / 'pipeline'}/")
    assert line.endswith(f"/{step}/{output} is damaged: {step} makes it again")
    assert stepped(again) == CACHED[CACHED.index(step) :]
    assert stepped(retrain(project)) == []


@pytest.mark.parametrize("damage", [truncate, flip, lambda path: path.write_bytes(b"\xff")])
def test_a_damaged_entry_of_the_cache_is_reported_and_its_step_runs_again(
    damage: Callable[[Path], None], first: Finished, project: Path
) -> None:
    assert first.code == 3
    entries = [path for path in (project / "workspace" / "cache").glob("*.json") if "/warmup/" in path.read_text()]
    entry = max(entries, key=lambda path: path.stat().st_mtime)
    damage(entry)
    again = retrain(project)
    assert f"{entry} is damaged: its step runs again\n" in again.err
    assert stepped(again) == ["warmup"]
    assert stepped(retrain(project)) == []


def test_force_uses_no_output_of_an_earlier_run(first: Finished, project: Path) -> None:
    assert first.code == 3
    assert stepped(retrain(project, "--force")) == CACHED
    assert stepped(retrain(project)) == []
