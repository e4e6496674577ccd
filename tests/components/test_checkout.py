import os
import shutil
from pathlib import Path

import pytest
import yaml

from bebygan.errors import WeightsError
from components.checkout import PARAMS_VARIABLE, discriminator_beside, in_checkout, start_weights_file
from components.cli import run_step, step_parser
from components.config import Params, load_params, plain
from components.identify import job_here
from components.job import Job

ROOT = Path(__file__).parents[2]
WEIGHTS = "data/pretrained/rrdb-4x32.safetensors"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder outside the checkout."""
    monkeypatch.setenv(PARAMS_VARIABLE, "")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def job(photographs: Path) -> Job:
    return job_here(load_params(ROOT / "params.yaml"), str(photographs), "code-1")


def test_a_run_from_another_folder_is_the_same_job(
    photographs: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = job(photographs)
    assert start_weights_file(WEIGHTS) == ROOT / WEIGHTS
    monkeypatch.chdir(ROOT)
    assert start_weights_file(WEIGHTS) == Path(WEIGHTS)
    assert job(photographs).fingerprint == there.fingerprint
    assert elsewhere != ROOT


@pytest.mark.parametrize("folder", [".", "params"])
def test_weights_beside_the_parameters_or_one_folder_above_are_preferred_to_those_of_the_checkout(
    folder: str, elsewhere: Path, tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    (project / folder).mkdir(exist_ok=True)
    shutil.copytree(ROOT / "data" / "pretrained", project / "data" / "pretrained")
    values = plain(load_params(ROOT / "params/compact.yaml"))
    (project / folder / "params.yaml").write_text(yaml.safe_dump(values))
    seen: list[Path] = []

    def run(_: object, params: Params) -> None:
        assert params.warmup.weights == WEIGHTS
        seen.append(start_weights_file(WEIGHTS))

    assert run_step(step_parser("train", "A step."), run, ["--params", f"../project/{folder}/params.yaml"]) == 0
    assert seen == [project / WEIGHTS]
    (elsewhere / "data").mkdir()
    shutil.copytree(ROOT / "data" / "pretrained", elsewhere / "data" / "pretrained")
    assert start_weights_file(WEIGHTS) == Path(WEIGHTS)


@pytest.mark.usefixtures("elsewhere")
def test_parameters_and_profiles_of_the_checkout_are_found_from_another_folder() -> None:
    assert load_params() == load_params(ROOT / "params.yaml")
    assert load_params(Path("params/paper.yaml")) == load_params(ROOT / "params" / "paper.yaml")
    assert in_checkout("data/sample") == ROOT / "data" / "sample"
    assert in_checkout("no-such-file") == Path("no-such-file")
    Path("params.yaml").write_text("{}")
    assert in_checkout("params.yaml") == Path("params.yaml")
    assert os.environ[PARAMS_VARIABLE] == ""


def test_a_name_like_that_of_known_weights_is_refused_with_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert start_weights_file("realsr-df2k-x4") == Path("realsr-df2k-x4")
    assert start_weights_file("mine.safetensors") == Path("mine.safetensors")
    with pytest.raises(WeightsError, match=r"realsr-df2k, which is no file; did you mean realsr-df2k-x4\?"):
        start_weights_file("realsr-df2k")
    (tmp_path / "realsr-df2k").touch()
    assert start_weights_file("realsr-df2k") == Path("realsr-df2k")


def test_a_discriminator_in_the_working_folder_belongs_to_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "discriminator.safetensors").touch()
    assert discriminator_beside(Path()) is None
    known = discriminator_beside(Path("realsr-df2k-x4"))
    assert known is not None
    assert known.relative_to(ROOT).as_posix() == "data/pretrained/realsr-df2k-x4/discriminator.safetensors"
    (tmp_path / "start.safetensors").touch()
    assert discriminator_beside(Path("start.safetensors")) == Path("discriminator.safetensors")
