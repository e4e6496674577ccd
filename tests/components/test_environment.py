import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.cli import report_errors

NAMED = {
    "AWS_CA_BUNDLE": "authority.pem",
    "AWS_CONFIG_FILE": "aws/config",
    "AWS_SHARED_CREDENTIALS_FILE": "../aws/credentials",
    "BEBYGAN_WEIGHTS": "weights",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": "authority.pem",
    "REQUESTS_CA_BUNDLE": "authority.pem",
    "SSL_CERT_FILE": "authority.pem",
}


def test_child_processes_in_other_folders_get_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, path in NAMED.items():
        monkeypatch.setenv(name, path)
    code = f"import os; print(*(os.environ[name] for name in {list(NAMED)}), sep=chr(10))"
    seen: list[str] = []

    def run() -> None:
        seen.extend(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, text=True).splitlines())

    assert report_errors(run) == 0
    assert seen == [os.path.normpath(tmp_path / "here" / path) for path in NAMED.values()]


def test_empty_and_absolute_paths_stay_and_a_tilde_is_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_CONFIG_FILE", "~/config")
    monkeypatch.setenv("AWS_CA_BUNDLE", "")
    monkeypatch.setenv("BEBYGAN_WEIGHTS", "/data/weights")
    assert report_errors(lambda: None) == 0
    assert os.environ["AWS_CONFIG_FILE"] == f"{tmp_path}/config"
    assert os.environ["AWS_CA_BUNDLE"] == ""
    assert os.environ["BEBYGAN_WEIGHTS"] == "/data/weights"
