"""The parser of `bebygan`: quick, suggests corrections of misspelt words, and names functions that exist."""

import argparse
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pipelines import cli

ROOT = Path(__file__).parents[2]


def printed_by(program: str) -> str:
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_help_imports_no_heavy_library() -> None:
    probe = (
        "import sys; from pipelines import cli; cli._parser()\n"
        "print([m for m in ('kfp', 'torch', 'mlflow', 'kubernetes', 'kfp_server_api', 'boto3') if m in sys.modules])"
    )
    assert printed_by(probe) == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        ["run"], ["compile", "x.yaml"], ["preflight"], ["manifests", "x"], ["submit", "--source", "x"], ["runs"],
        ["logs", "x"], ["schedule", "plan"], ["schedule", "apply"], ["schedule", "list"], ["schedule", "pause", "x"],
        ["schedule", "resume", "x"], ["models"], ["promote", "1", "--reason", "x"], ["rollback", "--reason", "x"],
        ["why", "1"], ["lineage", "1"], ["verify", "1"], ["ui"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_each_command_names_a_function_that_exists(command: list[str]) -> None:
    module, _, function = cli._parser().parse_args(command).function.partition(":")
    assert import_module(module).__dict__[function].__annotations__ == {"options": argparse.Namespace, "return": None}


def test_the_environment_is_described_where_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["schedule", "--help"])
    assert "KFP_HOST" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out.startswith("bebygan 0.")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["run", "--sorce", "x"], "bebygan run: error: unrecognized arguments: --sorce x; did you mean --source?"),
        (["run", "--sorce=x"], "unrecognized arguments: --sorce=x; did you mean --source?"),
        (
            ["schedule", "plan", "--fiel", "x"],
            "bebygan schedule plan: error: unrecognized arguments: --fiel x; did you",
        ),
        (["run", "--xyzzy"], "unrecognized arguments: --xyzzy\n"),
        (["rnu"], "bebygan: error: there is no command rnu; did you mean run?"),
        (["rnu", "--source", "x"], "there is no command rnu; did you mean run?"),
        (["schedule", "aply"], "bebygan schedule: error: there is no command aply; did you mean apply?"),
        (["xyzzy"], "invalid choice: 'xyzzy' (choose from 'run'"),
    ],
)
def test_a_misspelt_command_or_option_is_reported_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str], command: list[str], told: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(command)
    assert told in capsys.readouterr().err


def test_a_wrong_parameter_is_reported_before_the_module_of_the_command_is_imported() -> None:
    probe = (
        "import sys; from pipelines import cli\n"
        "print(cli.main(['compile', 'x.yaml', '--set', 'train.sead=1']), 'kfp' in sys.modules)"
    )
    assert printed_by(probe) == "2 False\n"
