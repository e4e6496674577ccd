import os
import subprocess
from pathlib import Path

import pytest

from components.cli import FAILURE_FILE
from pipelines.local import containers
from pipelines.local.containers import environment_of_tasks, mounts, network_mode


def test_tasks_inherit_settings_but_no_paths_of_this_machine() -> None:
    variables = {
        "AWS_REGION": "a", "BEBYGAN_PARENT_RUN": "b", "MLFLOW_TRACKING_URI": "c", "OMP_NUM_THREADS": "1",
        "BEBYGAN_CACHE": "here", "BEBYGAN_TORCH_IMAGE": "here", "PATH": "here", "HOME": "here",
    }  # fmt: skip
    assert environment_of_tasks(variables) == dict(list(variables.items())[:4])


def test_written_folders_are_mounted_and_the_rest_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = tmp_path / "workspace"
    for folder in ("photographs", "workspace/inside", "absolute"):
        Path(folder).mkdir(parents=True)
    read = ["photographs", str(tmp_path / "absolute"), str(workspace / "inside"), "missing"]
    found = {each["Target"]: (each["Source"], each.get("ReadOnly")) for each in mounts([workspace], read)}
    assert found == {
        str(workspace): (str(workspace), False),
        "/app/photographs": (str(tmp_path / "photographs"), True),
        str(tmp_path / "absolute"): (str(tmp_path / "absolute"), True),
    }


@pytest.mark.parametrize(
    ("network", "addresses", "server", "mode"),
    [
        (None, ["photographs", "", "/ledger"], False, "none"),
        (None, ["s3://photographs", ""], False, "host"),
        (None, ["photographs", "s3://versions/dvc"], False, "host"),
        (None, ["photographs"], True, "host"),
        ("team", ["photographs"], False, "team"),
    ],
)
def test_tasks_have_a_network_only_if_the_run_names_something_remote(
    network: str | None, addresses: list[str], server: bool, mode: str
) -> None:
    assert network_mode(network, addresses, server=server) == mode


def test_tasks_never_run_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {}
    monkeypatch.setattr(os, "getuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, user, group, **_: owners.update({Path(path).name: (user, group)}))
    (tmp_path / "file").touch()
    containers._hand_over(tmp_path)
    assert owners == {tmp_path.name: (1000, 1000), "file": (1000, 1000)}


def _in_entrypoint(script: str, failure: Path) -> int:
    return subprocess.run(
        ["sh", "-c", containers._ENTRYPOINT, "task", "sh", "-c", script],
        env={"PATH": os.environ["PATH"], FAILURE_FILE: str(failure)}, check=False,
    ).returncode  # fmt: skip


def test_a_container_leaves_a_file_if_its_task_fails(tmp_path: Path) -> None:
    failure = tmp_path / "failure.json"
    assert _in_entrypoint(f"test -e {failure}", failure) == 0
    assert not failure.exists()
    assert _in_entrypoint("exit 3", failure) == 3
    assert failure.read_text() == ""
    # No task starts after a failed one, even if the runner believes that it succeeded.
    assert _in_entrypoint(f"touch {tmp_path}/started", failure) == 1
    assert not (tmp_path / "started").exists()
    failure.unlink()
    assert _in_entrypoint(f"echo told > {failure}; kill -9 $$", failure) == 137
    assert failure.read_text() == "told\n"
