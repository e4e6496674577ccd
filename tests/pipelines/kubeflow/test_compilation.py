"""What the compiler writes: the same for the same, and named by its content."""

import re
from pathlib import Path

import pytest
import yaml

from components.config import load_params
from components.job import inputs_of
from pipelines import cli
from pipelines.kubeflow.client import TASK_LABEL
from pipelines.kubeflow.compilation import compiled_retrain, retrain_yaml
from pipelines.kubeflow.resources import TASKS, load_cluster

ROOT = Path(__file__).parents[3]


@pytest.fixture
def _root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.usefixtures("_root")
def test_the_same_cluster_and_parameters_make_the_same_version() -> None:
    first, again = compiled_retrain(load_cluster()), compiled_retrain(load_cluster())
    assert first == again
    assert re.fullmatch(r"bebygan-retrain-[0-9a-f]{16}", first.version)
    assert len(first.version) <= 63
    other = retrain_yaml(load_cluster(), load_params(overrides=["train.seed=7"]))
    assert other != first.content


@pytest.mark.usefixtures("_root")
def test_the_parameters_of_the_file_are_the_defaults_of_the_inputs() -> None:
    specification = next(yaml.safe_load_all(compiled_retrain(load_cluster()).content))
    inputs = specification["root"]["inputDefinitions"]["parameters"]
    assert {name: inputs[name]["defaultValue"] for name in inputs_of(load_params())} == inputs_of(load_params())


@pytest.mark.usefixtures("_root")
def test_the_pod_of_each_task_has_the_name_of_the_task_as_label() -> None:
    _, platform = yaml.safe_load_all(compiled_retrain(load_cluster()).content)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    labels = [each["podMetadata"]["labels"][TASK_LABEL] for each in executors.values()]
    assert sorted(labels) == sorted(TASKS)


@pytest.mark.usefixtures("_root")
def test_a_pipeline_that_cannot_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.main(["compile", str(tmp_path / "file" / "pipeline.yaml")]) == 6
    assert "error: cannot write" in capsys.readouterr().err
