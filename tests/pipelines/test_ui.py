"""`bebygan ui` serves the store of a workspace, or names the server."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from components.tracking import address
from components.tracking.address import database_uri
from pipelines.ui import links, where_shown
from tests.pipelines.conftest import ROOT

Command = Callable[..., tuple[int, str]]


def test_links_land_on_the_runs_and_the_model_instead_of_the_pages_for_language_models() -> None:
    assert links("https://tracker:5000", "7", "bebygan") == {
        "runs": "https://tracker:5000/#/experiments/7?workflowType=machine_learning",
        "model": "https://tracker:5000/#/models/bebygan?workflowType=machine_learning",
    }


@pytest.mark.parametrize("name", ["a b$HOME#'\"", "feature%2Fx?", "job@2"])
def test_the_command_that_serves_the_runs_can_be_pasted_into_a_shell(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(address.VARIABLE, database_uri(tmp_path / name / "mlflow.db"))
    shown = where_shown(tmp_path / name, "bebygan")
    words = subprocess.check_output(["sh", "-c", f'printf "%s\\0" {shown}'], text=True).split("\0")
    assert words == [str(Path(sys.executable).with_name("bebygan")), "ui", "--workspace", str(tmp_path / name), ""]


def test_a_workspace_without_runs_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(address.VARIABLE, raising=False)
    code, told = command("ui", "--workspace", "nowhere")
    assert code == 5
    assert told.startswith("error: nowhere has no models yet")


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_the_pages_are_served_on_loopback_until_the_command_is_stopped(
    stop: signal.Signals, made: str, workspace: Path
) -> None:
    words = [sys.executable, "-m", "pipelines.cli", "ui", "--workspace", str(workspace)]
    environment = {name: value for name, value in os.environ.items() if name != address.VARIABLE}
    environment["PYTHONPATH"] = str(ROOT)
    with (
        subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process,
        contextlib.ExitStack() as ended,
    ):
        ended.callback(process.terminate)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert re.fullmatch(
            r"runs: +http://127\.0\.0\.1:\d+/#/experiments/1\?workflowType=machine_learning\n", lines[0]
        )
        assert lines[2] == "Ctrl-C ends it\n"
        server = lines[0].split()[1].partition("/#")[0]
        asked = f"{server}/api/2.0/mlflow/model-versions/get?name=bebygan&version={made}"
        with urllib.request.urlopen(asked) as answer:  # noqa: S310 - loopback
            assert json.load(answer)["model_version"]["version"] == made
        process.send_signal(stop)
        assert process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"{server}/health")  # noqa: S310 - loopback
