"""The commands, files, names and Secrets in docs/cluster.md exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipelines.cli import main
from pipelines.kubeflow.manifests import build

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "infra" / "kubernetes"
PROGRAMS = Path(sys.executable).parent
TEXT = (ROOT / "docs" / "cluster.md").read_text()
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
COMMANDS = sorted(set(re.findall(r"\.venv/bin/bebygan ([^>|#`\n]+)", SHELL)))
KUBECTL = sorted(set(re.findall(r"\bkubectl ([^|;&#)<\n]+)", SHELL)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_exists_with_its_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    options = {word for word in words if word.startswith("--")}
    positional = [word for word in words[:2] if not word.startswith("-") and "/" not in word]
    command_words = positional if words[0] == "schedule" else words[:1]
    with pytest.raises(SystemExit, match="0"):
        main([*command_words, "--help"])
    assert options <= set(re.findall(r"--[a-z-]+", capsys.readouterr().out))


def test_every_command_of_kubectl_exists_with_its_options() -> None:
    assert len(KUBECTL) > 25
    for command in KUBECTL:
        words = shlex.split(command)
        options = next((at for at, word in enumerate(words) if word.startswith("-")), len(words))
        # Options are checked before help is shown, which needs no cluster.
        told = subprocess.run(
            [PROGRAMS / "kubectl", *words[:options], "--help", *words[options:]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not told.returncode, f"{command}: {told.stderr}"


def test_every_file_and_make_target_that_is_named_exists() -> None:
    paths = re.findall(r"(?<![\w./-])((?:infra|docs|params|tests)/[\w./-]*[\w/])", TEXT)
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []
    overlays = re.findall(r"`((?:overlays|base)/[\w./-]+)`", TEXT)
    assert overlays
    assert [path for path in overlays if not (KUBERNETES / path).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [word for line in re.findall(r"^make ([a-z -]+)", SHELL, re.MULTILINE) for word in line.split()]
    assert named
    assert set(named) <= targets


def test_every_object_that_a_command_names_is_in_the_manifests() -> None:
    built = [
        each
        for overlay in ("single-node", "production")
        for each in yaml.safe_load_all(build(KUBERNETES / "overlays" / overlay))
    ]
    there = {f"{each['kind'].lower()}/{each['metadata']['name']}" for each in built}
    lines = [line for line in SHELL.splitlines() if "--namespace kubeflow" not in line]
    named = re.findall(r"\b((?:cronjob|deployment|statefulset|service)/[a-z-]+)", "\n".join(lines))
    assert len(named) > 8
    assert set(named) - there == set()
    # The page describes the permissions of each account.
    told = TEXT.split("## Who may do what")[1].split("\n## ")[0]
    accounts = {each["metadata"]["name"] for each in built if each["kind"] == "ServiceAccount"}
    assert accounts - set(re.findall(r"`([a-z-]+)`", told)) == set()


def test_the_table_of_secrets_is_that_of_the_script() -> None:
    script = KUBERNETES / "overlays/single-node/secrets.sh"
    printed = subprocess.run(["sh", script], capture_output=True, text=True, check=True).stdout
    made = {each["metadata"]["name"]: set(each["stringData"]) for each in yaml.safe_load_all(printed)}
    table = TEXT.split("## 3. Secrets")[1].split("\n\n")[1]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    told = {re.findall(r"`([\w-]+)`", row[1])[0]: set(re.findall(r"`([\w.]+)`", row[2])) for row in rows}
    assert told.pop("bebygan-webhook") == {"BEBYGAN_WEBHOOK_URL"}
    assert told == made


def test_its_yaml_can_be_read() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) >= 2
    assert all(isinstance(yaml.safe_load(block), dict) for block in blocks)
