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
    "damages",
    [
        {
            "ingest/dataset/manifest.parquet": flip,
            "patches/shards/shard-000.npy": delete,
            "warmup/generator/generator.safetensors": truncate,
        },
        {
            "ingest/dataset/quarantine.json": add,
            "patches/shards/shard-000.npy": flip,
            "warmup/generator.sha256": flip,
        },
    ],
    ids=["missing", "changed"],
)
def test_damaged_outputs_are_reported_and_made_again(
    damages: dict[str, Callable[[Path], None]], first: Finished, project: Path
) -> None:
    assert first.code == 3
    workspace = project / "workspace" / "pipeline"
    for file, damage in damages.items():
        damage(max(workspace.glob(f"*/{file}"), key=lambda found: found.stat().st_ctime))
    again = retrain(project)
    lines = sorted(
        line.removeprefix(f"{workspace}/").partition("/")[2] for line in again.err.splitlines() if "damaged" in line
    )
    named = sorted(file.removesuffix(".sha256").split("/")[:2] for file in damages)
    assert lines == [f"{step}/{output} is damaged: {step} makes it again" for step, output in named]
    assert stepped(again) == CACHED


def test_only_the_step_of_a_damaged_output_and_those_that_read_it_run_again(first: Finished, project: Path) -> None:
    assert first.code == 3
    flip(max((project / "workspace" / "pipeline").glob("*/warmup/generator/*.safetensors"), key=os.path.getctime))
    assert stepped(retrain(project)) == ["warmup"]


def test_damaged_entries_of_the_cache_are_reported_and_their_steps_run_again(first: Finished, project: Path) -> None:
    assert first.code == 3
    found = sorted((project / "workspace" / "cache").glob("*.json"), key=lambda path: path.stat().st_mtime)
    entries = {step: [path for path in found if f"/{step}/" in path.read_text()][-1] for step in CACHED}
    truncate(entries["ingest"])
    flip(entries["patches"])
    entries["warmup"].write_bytes(b"\xff")
    again = retrain(project)
    for entry in entries.values():
        assert f"{entry} is damaged: its step runs again\n" in again.err
    assert stepped(again) == CACHED


def test_force_uses_no_output_of_an_earlier_run(first: Finished, project: Path) -> None:
    assert first.code == 3
    assert stepped(retrain(project, "--force")) == CACHED
    assert stepped(retrain(project)) == []
