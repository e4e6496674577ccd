"""Jobs: how they are told apart, and how their parameters travel."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from bebygan.errors import ConfigError, DataError, ServiceError, WeightsError
from components.config import GROUPS, Params, from_yaml, load_params
from components.identify import job_here, start_of
from components.job import Job, groups_of, inputs_of
from components.tracking import provenance
from components.tracking.client import mlflow_client

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


@pytest.mark.usefixtures("mlflow_store")
def test_another_champion_to_continue_makes_another_job_of_the_same_recipe(
    photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = load_params(ROOT / "params.yaml", ["train.start=champion"])
    first = job_here(params, str(photographs))
    assert "there is no champion yet: training starts from the warm-up" in capsys.readouterr().err
    assert (first.start, first.fingerprint, first.params_of_steps) == ("", first.recipe, params)
    client = mlflow_client()
    client.create_registered_model("bebygan")
    jobs = [first]
    for number in (1, 2):
        client.create_model_version("bebygan", "source", tags={"weights_sha256": f"{number}" * 64, "promoted": "true"})
        client.set_registered_model_alias("bebygan", "champion", str(number))
        jobs.append(job_here(params, str(photographs)))
        assert jobs[-1].start == f"models:/bebygan/{number}#{f'{number}' * 64}"
        assert jobs[-1].tags["start"] == jobs[-1].start
        warmup = jobs[-1].params_of_steps.warmup
        assert (warmup.weights, warmup.iterations) == (jobs[-1].start, 0)
    assert len({job.fingerprint for job in jobs}) == 3
    assert {job.recipe for job in jobs} == {first.recipe}
    named = load_params(ROOT / "params.yaml", ["train.start=models:/bebygan/1"])
    assert start_of(named) == jobs[1].start
    assert start_of(load_params(ROOT / "params.yaml")) == ""
    with pytest.raises(WeightsError, match="bebygan has no version 9 in this registry"):
        start_of(load_params(ROOT / "params.yaml", ["train.start=models:/bebygan/9"]))
    client.delete_registered_model_alias("bebygan", "champion")
    with pytest.raises(ServiceError, match=r"bebygan lost its champion .*give a version the alias champion, or set"):
        start_of(params)


def test_training_may_start_from_a_file_of_weights(photographs: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"1")
    job = job_here(load_params(ROOT / "params.yaml", [f"train.start={weights}"]), str(photographs))
    assert (job.params_of_steps.warmup.weights, job.start) == (str(weights), "")
    weights.write_bytes(b"2")
    other = job_here(job.params, str(photographs))
    assert other.fingerprint != job.fingerprint
    weights.with_name("discriminator.safetensors").write_bytes(b"3")
    assert job_here(job.params, str(photographs)).fingerprint != other.fingerprint


def test_a_job_here_knows_photographs_and_starting_weights(params: Params, photographs: Path, tmp_path: Path) -> None:
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"1")
    params = load_params(ROOT / "params.yaml", [f"warmup.weights={weights}"])
    before = job_here(params, str(photographs))
    assert job_here(params, str(photographs)) == before
    weights.write_bytes(b"2")
    assert job_here(params, str(photographs)).code_version != before.code_version
    assert job_here(load_params(ROOT / "params.yaml", ["warmup.weights=null"]), str(photographs)) != before
    (photographs / "00.png").unlink()
    assert job_here(params, str(photographs)).source_version != before.source_version
    with pytest.raises(DataError):
        job_here(params, str(tmp_path / "nowhere"))


def test_parameters_travel_as_one_line_and_come_back_equal() -> None:
    params = load_params(ROOT / "params.yaml")
    [(name, text)] = inputs_of(params).items()
    assert (name, "\n" in text, text.isascii()) == ("params", False, True)
    assert from_yaml(Params, text) == params
    with pytest.raises(ConfigError, match=r"iterashuns.*iterations"):
        from_yaml(Params, text.replace("iterations", "iterashuns"))


def test_each_group_is_one_line_that_changes_with_that_group_alone() -> None:
    params = load_params(ROOT / "params.yaml")
    groups = groups_of(params)
    assert tuple(groups) == GROUPS
    for name, text in groups.items():
        assert "\n" not in text
        assert from_yaml(type(getattr(params, name)), text) == getattr(params, name)
    other = groups_of(load_params(ROOT / "params.yaml", ["train.seed=9"]))
    assert [name for name in GROUPS if groups[name] != other[name]] == ["train"]


def test_a_job_is_told_apart_by_photographs_code_starting_weights_and_parameters(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "start.safetensors"
    weights.write_bytes(b"1")
    params = load_params(ROOT / "params.yaml", [f"warmup.weights={weights}"])
    jobs = [job_here(params, str(photographs))]
    weights.write_bytes(b"2")
    jobs.append(job_here(params, str(photographs)))
    (photographs / "00.png").unlink()
    jobs.append(job_here(params, str(photographs)))
    jobs.append(dataclasses.replace(jobs[-1], params=load_params(ROOT / "params.yaml", ["train.seed=9"])))
    assert len({each.fingerprint for each in jobs}) == len(jobs)
    assert jobs[0].source_version == jobs[1].source_version != jobs[2].source_version
    assert jobs[0].code_version != jobs[1].code_version == jobs[2].code_version
    assert {len(each.fingerprint) for each in jobs} == {hashlib.sha256().digest_size * 2}


def test_another_torch_or_lock_file_makes_another_job(
    params: Params, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = job_here(params, str(photographs))
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "_version", {"torch": "1.0"}.get)
        assert job_here(params, str(photographs)).code_version != before.code_version
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    without = job_here(params, str(photographs)).code_version
    (tmp_path / "requirements.lock").write_text("torch==2.0\n")
    locked = job_here(params, str(photographs)).code_version
    (tmp_path / "requirements.lock").write_text("torch==2.1\n")
    assert len({before.code_version, without, locked, job_here(params, str(photographs)).code_version}) == 4
