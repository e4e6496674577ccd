import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from bebygan.errors import ConfigError, ServiceError, WeightsError
from bebygan.files import sha256_of
from components.config import load_params
from components.detect import __main__ as command
from components.detect.step import Decision, begin, decide
from components.job import Job
from components.register.promotion import roll_back
from components.tracking.client import mlflow_client
from components.tracking.runs import (
    PREFLIGHT_PASSED,
    close_pipeline_run,
    open_pipeline_run,
    step_run,
    tag_pipeline_run,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def job() -> Job:
    return Job(load_params(ROOT / "params.yaml"), "s3://bucket/photographs", "source-1", "code-1")


def with_params(job: Job, *assignments: str) -> Job:
    return dataclasses.replace(job, params=load_params(ROOT / "params.yaml", assignments))


def finish(job: Job, monkeypatch: pytest.MonkeyPatch, *, promote: bool, status: str = "FINISHED") -> str:
    """Leave what a whole run leaves: a run with the job's tags, a child that registered, an alias."""
    monkeypatch.delenv("BEBYGAN_PARENT_RUN", raising=False)
    parent = open_pipeline_run(job.params, job.tags)
    monkeypatch.setenv("BEBYGAN_PARENT_RUN", parent)
    tag_pipeline_run(PREFLIGHT_PASSED)
    with step_run("register", job.params.register) as run:
        if promote:
            register_version(run.client, job.params.evaluate.model_name, run.run_id)
    assert close_pipeline_run(status, {}) == parent
    monkeypatch.delenv("BEBYGAN_PARENT_RUN")
    return parent


def register_version(client: MlflowClient, model: str, run_id: str) -> None:
    if not client.search_registered_models(f"name='{model}'"):
        client.create_registered_model(model)
    weights = Path("stored", "artifacts", "generator.safetensors").absolute()
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(b"weights")
    source, tags = weights.parents[1].as_uri(), {"weights_sha256": sha256_of(weights)}
    version = client.create_model_version(model, source, run_id, tags)
    client.set_registered_model_alias(model, "champion", str(version.version))


@pytest.mark.usefixtures("mlflow_store")
def test_without_a_champion_it_trains_and_says_so(job: Job) -> None:
    assert decide(job) == Decision("train", "there is no champion yet")


@pytest.mark.usefixtures("mlflow_store")
def test_a_finished_run_of_the_same_job_makes_another_pointless_unless_it_is_asked_for(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = finish(job, monkeypatch, promote=True)
    decision = decide(job)
    assert decision.action == "skip"
    assert decision.reason == f"photographs, parameters and code are those of the finished run {earlier}"
    moved = dataclasses.replace(job, source="/elsewhere")
    assert decide(moved).action == "skip"
    assert decide(job, force=True).action == "train"


@pytest.mark.usefixtures("mlflow_store")
def test_a_damaged_champion_is_no_reason_to_do_nothing(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(job, monkeypatch, promote=True)
    weights = Path("stored", "artifacts", "generator.safetensors")
    weights.write_bytes(b"Weights")
    with pytest.raises(WeightsError, match="models:/bebygan/1 is damaged: its weights have SHA-256"):
        decide(job)
    weights.unlink()
    with pytest.raises(
        WeightsError, match=r"models:/bebygan/1 is damaged: artifacts/generator\.safetensors is missing"
    ):
        decide(job)


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_that_continues_the_champion_is_not_repeated_with_the_champion_that_it_made(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, monkeypatch, promote=True)
    continued = dataclasses.replace(job, start="models:/bebygan/1#1")
    decision = decide(continued)
    assert (decision.action, decision.reason) == (
        "skip", "the champion, version 1, was made of these photographs, parameters and code",
    )  # fmt: skip
    more = dataclasses.replace(continued, source_version="source-2")
    assert decide(more).action == "train"
    finish(more, monkeypatch, promote=True)
    assert decide(dataclasses.replace(more, start="models:/bebygan/2#2")).reason.startswith("the champion, version 2,")
    even_more = dataclasses.replace(more, source_version="source-3")
    finish(even_more, monkeypatch, promote=False)
    assert decide(even_more).action == "skip", "its challenger was not promoted"
    assert decide(dataclasses.replace(even_more, start="models:/bebygan/3#3")).action == "train", "another champion"


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_whose_challenger_was_not_promoted_is_not_repeated(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(job, monkeypatch, promote=True)
    other = dataclasses.replace(job, source_version="source-2")
    finish(other, monkeypatch, promote=False)
    assert decide(other).action == "skip"


@pytest.mark.usefixtures("mlflow_store")
def test_a_job_whose_version_was_rolled_back_is_not_repeated_and_the_reason_is_told(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finish(job, monkeypatch, promote=True)
    other = dataclasses.replace(job, source_version="source-2")
    earlier = finish(other, monkeypatch, promote=True)
    client = mlflow_client()
    client.set_model_version_tag("bebygan", "2", "parent_run", earlier)
    client.set_registered_model_alias("bebygan", "previous", "1")
    monkeypatch.setenv("LOGNAME", "ada")
    roll_back("bebygan", "faces look worse", str(tmp_path / "ledger"), client)
    decision = decide(other)
    assert decision.action == "skip"
    start = (
        f"photographs, parameters and code are those of the finished run {earlier}, whose version 2 was rolled back "
    )
    assert decision.reason.startswith(start)
    assert decision.reason.endswith(" by ada: faces look worse")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("lose", "said"),
    [
        (lambda client: client.delete_registered_model("bebygan"), "its versions were deleted"),
        (lambda client: client.delete_model_version("bebygan", "1"), "its versions were deleted"),
        (
            lambda client: client.delete_registered_model_alias("bebygan", "champion"),
            "version 1 was promoted and lost the alias champion",
        ),
    ],
)
def test_a_lost_champion_is_an_error_although_the_job_was_trained(
    lose: Callable[[MlflowClient], None], said: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, monkeypatch, promote=True)
    client = mlflow_client()
    client.set_model_version_tag("bebygan", "1", "promoted", "true")
    lose(client)
    with pytest.raises(ServiceError) as caught:
        decide(job)
    assert str(caught.value) == (
        f"bebygan lost its champion ({said}), and this job was trained before: give a version the alias champion, "
        "restore the registry, or train again with --force"
    )
    assert decide(job, force=True).action == "train"
    assert decide(dataclasses.replace(job, code_version="code-2")).action == "train"


@pytest.mark.usefixtures("mlflow_store")
def test_a_deleted_champion_is_known_from_the_version_that_was_compared_with_it(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, monkeypatch, promote=True)
    client = mlflow_client()
    version = client.create_model_version("bebygan", "file:///nowhere")
    client.set_model_version_tag("bebygan", version.version, "compared_with_champion", "1")
    client.delete_model_version("bebygan", "1")
    with pytest.raises(ServiceError, match=r"\(version 1, which version 2 was compared with, lost the alias or was de"):
        decide(job)


@pytest.mark.usefixtures("mlflow_store")
def test_without_a_promotion_so_far_a_finished_job_is_not_repeated(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = finish(job, monkeypatch, promote=False)
    client = mlflow_client()
    client.create_registered_model("bebygan")
    client.set_model_version_tag(
        "bebygan", client.create_model_version("bebygan", "file:///nowhere").version, "compared_with_champion", "none"
    )
    assert decide(job).action == "skip"
    assert decide(job).reason.endswith(f"are those of the finished run {earlier}, whose challenger was not promoted")


@pytest.mark.usefixtures("mlflow_store")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source_version": "source-2"}, "photographs changed since the champion, version 1"),
        ({"code_version": "code-2"}, "code changed since the champion, version 1"),
        (
            {"source_version": "source-2", "code_version": "code-2"},
            "photographs changed, code changed since the champion, version 1",
        ),
    ],
)
def test_what_changed_since_the_champion_was_made_is_named(
    job: Job, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], reason: str
) -> None:
    finish(job, monkeypatch, promote=True)
    decision = decide(dataclasses.replace(job, **change))  # type: ignore[arg-type]
    assert (decision.action, decision.reason) == ("train", reason)


@pytest.mark.usefixtures("mlflow_store")
def test_changed_parameters_are_named_with_their_values_and_many_are_counted(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, monkeypatch, promote=True)
    one = decide(with_params(job, "train.iterations=7", "evaluate.thresholds.absolute={}"))
    assert one.action == "train"
    assert "train.iterations 200 -> 7" in one.reason
    assert "evaluate.thresholds.absolute.lr_psnr 35.0 -> unset" in one.reason
    assert one.reason.endswith("since the champion, version 1")
    many = [f"train.{name}=3" for name in ("iterations", "batch", "seed", "log_every", "checkpoint_every")]
    assert decide(with_params(job, *many)).reason.count("->") == 4
    assert "and 1 more" in decide(with_params(job, *many)).reason


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_that_failed_after_promoting_is_repeated_and_a_foreign_champion_is_told(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(job, monkeypatch, promote=True, status="FAILED")
    assert decide(job).reason.startswith("nothing changed since the champion, version 1, but the run")
    with step_run("register", job.params.register) as run:
        register_version(run.client, "bebygan", run.run_id)
    assert decide(job).reason == "it is unknown what the champion, version 2, was made of"


@pytest.mark.usefixtures("mlflow_store")
def test_a_job_that_failed_three_times_is_skipped_until_it_is_forced(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def found(which: Job) -> str:
        return begin(which, force="auto", asked_because="")

    finish(dataclasses.replace(job, code_version="code-0"), monkeypatch, promote=True)
    for _ in range(3):
        assert found(job) == "train"
        last = finish(job, monkeypatch, promote=False, status="FAILED")
    capsys.readouterr()
    assert found(job) == "skip"
    assert capsys.readouterr().err == (
        "nothing to do: 3 runs of the same photographs, parameters and code failed, the last one "
        f"{last}: correct what failed, then start a run by `bebygan submit --force`\n"
    )
    assert found(dataclasses.replace(job, source_version="source-2")) == "train"
    # On one machine a person starts each run and sees how it ends.
    assert decide(job).action == "train"
    assert begin(job, force="always", asked_because="") == "train"


def test_a_tracker_that_is_away_is_told_and_not_taken_for_an_empty_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ServiceError, match="check that it runs"):
        decide(job)


@pytest.mark.usefixtures("mlflow_store")
def test_runs_that_preflight_stopped_do_not_count_as_failures_of_the_job(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They say that something is missing, which may be there again at the next run."""
    for number in range(4):
        monkeypatch.setenv("KFP_RUN_ID", f"kubeflow-{number}")
        assert begin(job, force="auto", asked_because="") == "train"
        assert close_pipeline_run("FAILED", {})
    assert begin(job, force="auto", asked_because="") == "train"


@pytest.mark.usefixtures("mlflow_store")
def test_a_training_is_opened_once_however_often_the_task_is_tried(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-1")
    for _ in range(2):
        assert begin(job, force="auto", asked_because="it is Monday") == "train"
    assert capsys.readouterr().err == "training: there is no champion yet; started because it is Monday\n" * 2
    client = mlflow_client()
    [opened] = client.search_runs([client.get_experiment_by_name("bebygan").experiment_id])
    assert opened.info.status == "RUNNING"
    tags = opened.data.tags
    assert {name: tags[name] for name in ("step", "kfp_run_id", *job.tags)} == {
        "step": "retrain",
        "kfp_run_id": "kubeflow-1",
        **job.tags,
    }
    assert tags["reason"] == "there is no champion yet; started because it is Monday"
    assert tags["params_hash"]
    with step_run("train", job.params.train) as run:
        pass
    assert client.get_run(run.run_id).data.tags["mlflow.parentRunId"] == opened.info.run_id
    # Another run of the pipeline is none of its business.
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-2")
    with step_run("train", job.params.train) as other:
        pass
    assert "mlflow.parentRunId" not in client.get_run(other.run_id).data.tags


@pytest.mark.usefixtures("mlflow_store")
def test_a_skip_opens_no_run(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_client()
    finish(job, monkeypatch, promote=True)
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-2")
    assert begin(job, force="auto", asked_because="") == "skip"
    assert not client.search_runs(["1"], "tags.kfp_run_id = 'kubeflow-2'")
    assert begin(job, force="always", asked_because="") == "train"
    assert client.search_runs(["1"], "tags.kfp_run_id = 'kubeflow-2'")


@pytest.mark.usefixtures("mlflow_store")
def test_where_kubeflow_tracks_by_itself_its_own_run_of_the_pipeline_is_described_and_ended(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_client()
    experiment = client.create_experiment("of-kubeflow")
    parent = client.create_run(experiment, tags={"kfp.pipeline_run_id": "kubeflow-1"}).info.run_id
    own = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    for name, value in {"MLFLOW_EXPERIMENT_ID": experiment, "MLFLOW_RUN_ID": own, "KFP_RUN_ID": "kubeflow-1"}.items():
        monkeypatch.setenv(name, value)
    assert close_pipeline_run("FINISHED", {}) is None
    assert begin(job, force="auto", asked_because="") == "train"
    assert client.get_run(parent).data.tags["fingerprint"] == job.fingerprint
    assert close_pipeline_run("FINISHED", {"console": "http://kubeflow"}) == parent
    ended = client.get_run(parent)
    assert (ended.info.status, ended.data.tags["console"]) == ("FINISHED", "http://kubeflow")
    register_version(client, job.params.evaluate.model_name, own)
    assert begin(job, force="auto", asked_because="") == "skip"


@pytest.mark.usefixtures("mlflow_store")
def test_a_run_tracked_in_another_experiment_sees_what_was_trained(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(job, monkeypatch, promote=True)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", mlflow_client().create_experiment("of-this-run"))
    assert decide(job).action == "skip"
    assert decide(dataclasses.replace(job, code_version="code-2")).action == "train"


def test_a_word_that_is_neither_auto_nor_always_is_refused(job: Job) -> None:
    with pytest.raises(ConfigError, match="auto or always, got 'no'"):
        begin(job, force="no", asked_because="")


@pytest.mark.usefixtures("mlflow_store")
def test_the_command_prints_the_decision(
    photographs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: list[Any] = ["detect", "--source", str(photographs), "--params", str(ROOT / "params.yaml")]
    monkeypatch.setattr("sys.argv", arguments)
    assert command.main() == 0
    assert capsys.readouterr().out == "train: there is no champion yet\n"
