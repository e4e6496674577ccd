"""The same steps as DVC stages: the same numbers as the Kubeflow run, no work done twice, bytes that come back."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from bebygan.files import sha256_of
from tests.system.conftest import ROOT, Finished, output_of, run

pytestmark = pytest.mark.slow
STAGES = ("ingest", "patches", "warmup", "train", "evaluate", "register")
OUTS = (
    "data/dataset", "data/patches", "artifacts/warmup", "artifacts/challenger", "artifacts/evaluation",
    "artifacts/registration",
)  # fmt: skip


def contents(project: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that DVC keeps."""
    files = (path for out in OUTS for path in (project / out).rglob("*") if path.is_file())
    return {path.relative_to(project).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def locked(project: Path) -> dict[str, dict[str, Any]]:
    """Return what DVC noted of each out, by its path."""
    lock = yaml.safe_load((project / "dvc.lock").read_text())
    return {out["path"]: out for stage in lock["stages"].values() for out in stage["outs"]}


@pytest.fixture(scope="module")
def desk(new_project: Callable[[str], Path]) -> Path:
    """A project under git, as a person has it who has cloned it."""
    folder = new_project("desk")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def reproduced(desk: Path) -> Finished:
    """The first `dvc repro`."""
    done = run(desk, "dvc", "repro")
    assert done.code == 0, done.out + done.err
    return done


def test_all_stages_run_once_in_order(reproduced: Finished) -> None:
    lines = reproduced.out.splitlines()
    assert [line for line in lines if line.startswith("Running stage")] == [
        f"Running stage '{name}':" for name in STAGES
    ]


def test_the_numbers_are_those_of_the_kubeflow_run(
    reproduced: Finished, desk: Path, first_run: Finished, project: Path
) -> None:
    assert (reproduced.code, first_run.code) == (0, 0)
    ours = json.loads((desk / "artifacts" / "evaluation" / "metrics.json").read_text())
    assert ours == json.loads((output_of(project, "evaluate", "evaluation") / "metrics.json").read_text())
    assert set(ours) == {"schema", "bicubic", "warmup", "challenger"}
    for step, artifact, out in (("warmup", "generator", "warmup"), ("train", "challenger", "challenger")):
        theirs = output_of(project, step, artifact) / "generator.safetensors"
        assert (desk / "artifacts" / out / "generator.safetensors").read_bytes() == theirs.read_bytes()


def test_a_data_version_is_dvcs_own_name_of_the_dataset(reproduced: Finished, desk: Path) -> None:
    assert reproduced.code == 0
    uri = f"sqlite:///{desk / 'workspace' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    by_step = {each.data.tags["step"]: each for each in runs}
    assert set(by_step) == {"retrain", "warmup", "train", "evaluate", "register"}
    parent = by_step.pop("retrain")
    assert len(runs) == 5
    assert {each.data.tags["mlflow.parentRunId"] for each in by_step.values()} == {parent.info.run_id}
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["challenger/lpips"] > 0
    assert parent.data.params["train.iterations"] == by_step["train"].data.params["iterations"]
    version = locked(desk)["data/dataset"]["md5"]
    for step in ("warmup", "train", "evaluate"):
        assert by_step[step].data.tags["data_version"] == version
    champion = client.get_model_version_by_alias("bebygan", "champion")
    assert champion.tags["data_version"] == version
    assert json.loads((desk / "artifacts" / "registration" / "registration.json").read_text())["champion"] == "1"


def test_metrics_are_shown(reproduced: Finished, desk: Path) -> None:
    assert reproduced.code == 0
    shown = run(desk, "dvc", "metrics", "show", "--json")
    assert shown.code == 0, shown.err
    [file] = json.loads(shown.out)[""]["data"].values()
    assert file["data"] == json.loads((desk / "artifacts" / "evaluation" / "metrics.json").read_text())


def stages_run(done: Finished) -> list[str]:
    assert done.code == 0, done.err
    return re.findall(r"^Running stage '(\w+)':", done.out, re.MULTILINE)


def check_registered(project: Path, versions: int) -> None:
    """Check the number of registered versions, and that the one in registration.json has the challenger's weights."""
    # MLflow keeps a file open that was removed since: use another path each time.
    _, copy = tempfile.mkstemp(dir=project)
    shutil.copy(project / "workspace" / "mlflow.db", copy)
    client = MlflowClient(tracking_uri=f"sqlite:///{copy}", registry_uri=f"sqlite:///{copy}")
    assert len(client.search_model_versions("name='bebygan'")) == versions
    registration = json.loads((project / "artifacts" / "registration" / "registration.json").read_text())
    found = client.get_model_version("bebygan", registration["version"])
    weights = sha256_of(project / "artifacts" / "challenger" / "generator.safetensors")
    assert found.tags["weights_sha256"] == registration["weights_sha256"] == weights


def test_a_second_repro_repeats_only_what_depends_on_the_registry(reproduced: Finished, desk: Path) -> None:
    assert reproduced.code == 0
    before = contents(desk)
    assert stages_run(run(desk, "dvc", "repro")) == ["evaluate", "register"]
    after = contents(desk)
    # Which pictures are shown depends on the champion, too.
    assert {path for path in set(after) ^ set(before) if "/pictures/" not in path} == set()
    changed = {path.split("/")[1] for path in before if after.get(path) != before[path]}
    assert changed <= {"evaluation", "registration"}
    check_registered(desk, versions=1)


def test_a_removed_workspace_gets_its_registry_back_without_training(reproduced: Finished, desk: Path) -> None:
    assert reproduced.code == 0
    shutil.rmtree(desk / "workspace")
    assert stages_run(run(desk, "dvc", "repro")) == ["evaluate", "register"]
    check_registered(desk, versions=1)


def test_make_repro_needs_no_git(new_project: Callable[[str], Path]) -> None:
    folder = new_project("archive")
    shutil.copy(ROOT / "Makefile", folder)
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["make", "repro", "--assume-old=setup", "ARGS=ingest"],
        cwd=folder, env={**os.environ, "PATH": programs}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (folder / "data" / "dataset" / "manifest.parquet").is_file()


def test_what_was_pushed_comes_back_as_the_same_bytes(reproduced: Finished, desk: Path) -> None:
    assert reproduced.code == 0
    before = contents(desk)
    pushed = run(desk, "dvc", "push")
    assert pushed.code == 0, pushed.err
    shutil.rmtree(desk / ".dvc" / "cache")
    for out in OUTS:
        shutil.rmtree(desk / out)
    pulled = run(desk, "dvc", "pull")
    assert pulled.code == 0, pulled.err
    assert contents(desk) == before
    assert stages_run(run(desk, "dvc", "repro")) == ["evaluate", "register"]


@pytest.mark.parametrize(
    ("group", "name", "first"),
    [("train", "iterations", "train"), ("evaluate", "crop", "evaluate"), ("patches", "step", "patches")],
)
def test_a_changed_parameter_reaches_the_stages_behind_it_and_no_other(
    group: str, name: str, first: str, reproduced: Finished, desk: Path
) -> None:
    assert reproduced.code == 0
    text = (desk / "params.yaml").read_text()
    values = yaml.safe_load(text)
    values[group][name] += 4
    (desk / "params.yaml").write_text(yaml.safe_dump(values))
    try:
        planned = run(desk, "dvc", "repro", "--dry")
    finally:
        (desk / "params.yaml").write_text(text)
    assert planned.code == 0, planned.err
    named = [name for name in STAGES if f"Running stage '{name}'" in planned.out]
    assert named[0] == first
    assert set(named) <= set(STAGES[STAGES.index(first) :])


def test_an_experiment_elsewhere_is_registered_here_when_it_is_reproduced(reproduced: Finished, desk: Path) -> None:
    """The last test of the project: it leaves other parameters there."""
    assert reproduced.code == 0
    identity = ("-c", "user.name=tests", "-c", "user.email=tests@localhost")
    shutil.copy(ROOT / ".gitignore", desk)
    subprocess.run(["git", "add", "--all"], cwd=desk, check=True)
    subprocess.run(["git", *identity, "commit", "--quiet", "--message", "All"], cwd=desk, check=True)
    elsewhere = run(desk, "dvc", "exp", "run", "--temp", "--set-param", "train.iterations=3")
    assert elsewhere.code == 0, elsewhere.err
    values = yaml.safe_load((desk / "params.yaml").read_text())
    values["train"]["iterations"] = 3
    (desk / "params.yaml").write_text(yaml.safe_dump(values))
    assert stages_run(run(desk, "dvc", "repro"))[-2:] == ["evaluate", "register"]
    check_registered(desk, versions=2)
