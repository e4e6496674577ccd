import dataclasses
from pathlib import Path

import pandas as pd
import pytest

from components.config import load_params
from components.evaluate.background import background
from components.stores.data_version import push
from components.tracking.registry import ModelVersion
from components.tracking.runs import PIPELINE, step_run


def champion(**tags: str) -> ModelVersion:
    return ModelVersion(model="tests", version="7", run_id="", tags=tags)


@pytest.fixture
def before(dataset: Path, tmp_path: Path) -> str:
    """Push the dataset as it was when the champion was trained: one photograph fewer, and one that is gone."""
    path = dataset / "manifest.parquet"
    manifest = pd.read_parquet(path)
    old = manifest.assign(sha256=["0" * 64, *manifest["sha256"][1:]])
    old.to_parquet(path)
    version = push(dataset, str(tmp_path / "remote"))
    manifest.to_parquet(path)
    return version


def test_photographs_are_new_if_the_champions_data_version_lacks_their_content(
    dataset: Path, before: str, tmp_path: Path
) -> None:
    found = background(dataset, champion(data_version=before), None, str(tmp_path / "remote"))
    first = pd.read_parquet(dataset / "manifest.parquet").iloc[0]
    assert found.new == {split: (first["source"],) if split == first["split"] else () for split in found.new or ()}
    assert (found.gone, found.unknown) == (1, "")


def test_a_data_version_that_cannot_be_read_is_named_and_costs_no_comparison(
    dataset: Path, before: str, tmp_path: Path
) -> None:
    lost = background(dataset, champion(data_version=before), None, str(tmp_path / "empty"))
    assert lost.new is None
    assert before in lost.unknown
    assert "\n" not in lost.unknown
    assert background(dataset, champion(data_version=before), None, "").unknown == "no DVC remote is given"


def test_nothing_is_known_of_a_champion_without_tags_and_without_a_champion(dataset: Path) -> None:
    assert background(dataset, champion(), None, "remote") == background(dataset, None, None, "")


@pytest.mark.usefixtures("mlflow_store")
def test_parameters_of_the_training_that_differ_from_the_champions_run_are_listed(dataset: Path) -> None:
    params = load_params()
    now = dataclasses.replace(
        params,
        train=dataclasses.replace(params.train, seed=99),
        evaluate=dataclasses.replace(params.evaluate, crop=64),
    )
    runs = []
    for each in (params, now):
        with step_run(PIPELINE, each) as run:
            runs.append(run.run_id)
    found = background(dataset, champion(parent_run=runs[0]), runs[1], "")
    assert found.parameters == {"train.seed": (str(params.train.seed), "99")}
    assert found.run_id == runs[1]
    assert found.began is not None
    assert found.link == ""
