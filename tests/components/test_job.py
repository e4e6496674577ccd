import dataclasses
from pathlib import Path

import pytest
import yaml

from bebygan.errors import ConfigError, DataError
from components.config import GROUPS, Params, load_params
from components.job import Job, inputs_of, job_here, params_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params() -> Params:
    return load_params(ROOT / "params.yaml")


def test_the_fingerprint_changes_with_photographs_code_and_parameters_alone(params: Params) -> None:
    job = Job(params, "photographs", "s1", "c1")
    moved = dataclasses.replace(job, source="s3://bucket/photographs")
    assert moved.fingerprint == job.fingerprint
    other = load_params(ROOT / "params.yaml", ["train.seed=2"])
    changed = [
        dataclasses.replace(job, source_version="s2"),
        dataclasses.replace(job, code_version="c2"),
        dataclasses.replace(job, params=other),
    ]
    assert len({job.fingerprint, *(each.fingerprint for each in changed)}) == 4
    assert job.tags == {
        "fingerprint": job.fingerprint, "source": "photographs", "source_version": "s1", "code_version": "c1",
    }  # fmt: skip


def test_a_job_here_knows_photographs_and_starting_weights(params: Params, photographs: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"1")
    params = load_params(ROOT / "params.yaml", [f"warmup.weights={weights}"])
    before = job_here(params, str(photographs))
    assert job_here(params, str(photographs)) == before
    weights.write_bytes(b"2")
    assert job_here(params, str(photographs)).code_version != before.code_version
    (photographs / "00.png").unlink()
    assert job_here(params, str(photographs)).source_version != before.source_version
    with pytest.raises(DataError):
        job_here(params, str(tmp_path / "nowhere"))


def test_parameters_travel_as_inputs_of_one_line_each(params: Params) -> None:
    inputs = inputs_of(params)
    assert set(inputs) == {f"{group}_params" for group in GROUPS}
    assert not any("\n" in text for text in inputs.values())
    groups = {name.removesuffix("_params"): text for name, text in inputs.items()}
    assert params_of(groups) == params
    wrong = {**groups, "train": yaml.safe_dump({**yaml.safe_load(groups["train"]), "itterations": 1})}
    with pytest.raises(ConfigError, match="did you mean iterations"):
        params_of(wrong)
