"""The commands, parameters, files, exit codes and figures in README.md and docs/how-it-works.md exist and are right."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from bebygan.errors import BebyganError
from pipelines.cli import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
HOW = (ROOT / "docs" / "how-it-works.md").read_text()
COMMANDS = [
    line.partition(" #")[0]
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())


def names(values: dict[str, Any], prefix: str = "") -> set[str]:
    """Return the dotted names of a tree, inner ones included."""
    found = {prefix + name for name in values}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= names(value, f"{prefix}{name}.")
    return found


def run_options() -> list[list[str]]:
    """Return the words of each `bebygan` command of the README, those that `make run` passes on included."""
    found = [shlex.split(line)[1:] for line in COMMANDS if line.startswith(".venv/bin/bebygan")]
    passed = [re.findall(r'^make run ARGS="(.*)"', line) for line in COMMANDS]
    return found + [["run", *shlex.split(arguments)] for [arguments] in filter(None, passed)]


@pytest.mark.parametrize("words", run_options(), ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = [word for word in words if not word.startswith("-")][: 2 if words[0] == "schedule" else 1]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    options = {word for word in words if word.startswith("--")}
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_every_make_target_named_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in COMMANDS if line.startswith("make ")}
    named |= set(re.findall(r"`make ([a-z-]+)`", README + HOW))
    assert len(named) > 5
    assert named <= targets


def test_every_file_named_in_the_readme_exists() -> None:
    named = re.findall(r"\]\(([\w./-]+)\)", README)
    named += re.findall(r"`((?:params|infra|data|docs)/[\w./-]+)`", README + HOW)
    assert len(named) > 8
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_parameter_named_in_the_documents_exists() -> None:
    told = set(re.findall(rf"(?:`|--set )((?:{'|'.join(PARAMS)})\.[a-z_.]+)", README + HOW)) - {"patches.json"}
    assert len(told) > 6
    assert told <= names(PARAMS)
    table = HOW.split("| parameter of `warmup` and `train` |")[1].split("\n\n")[0]
    of_both = {
        name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`([\w.]+)`", row)
    }
    assert len(of_both) > 6
    assert {name for name in of_both if "." not in name} <= PARAMS["warmup"].keys() & PARAMS["train"].keys()


def test_the_exit_codes_are_those_of_the_errors() -> None:
    table = HOW.split("## Exit codes")[1]
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert told == {0, 1, *(kind.exit_code for kind in BebyganError.__subclasses__())}


def test_the_readmes_figures_are_those_that_were_measured() -> None:
    results = {each["name"]: each for each in json.loads((ROOT / "benchmarks" / "results.json").read_text())}
    rows = re.findall(r"^\| (.* crops of 192.*?) \| (.*?) \| (.*?) \|$", README, re.MULTILINE)
    assert len(rows) == 5
    for label, *cells in rows:
        name, both, _ = label.replace(" crops of ", " x ").replace(" blocks x ", " x ").partition("fp32 / bf16")
        kinds = [name + kind for kind in ("fp32", "bf16")] if both else [name]
        for what, cell in zip(("time", "memory"), cells, strict=True):
            assert cell == " / ".join(f"{results[f'{kind}: {what}']['ratio']:.1f}" for kind in kinds)
    told = re.search(r"costs training (\d+) % .* is ([\d.]+) s,\s.* takes ([\d.]+) s", README, re.DOTALL)
    assert told is not None
    checkpoint, own, compiling = (
        results[name]["ours"]
        for name in (
            "checkpoint, 23 x 64, 2 x 192: time it costs training",
            "pipeline, a run on this machine: time outside its steps",
            "pipeline, compiling it for a cluster",
        )
    )
    assert told.groups() == (f"{checkpoint:.0f}", f"{own:.1f}", f"{compiling:.1f}")
