import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tenacity import wait_fixed

from components.config import load_params, one_line_yaml
from components.notify.step import RETRYING, Ending, model_of
from components.notify.step import notify as run
from components.tracking.client import mlflow_client
from components.tracking.runs import open_pipeline_run
from tests.standins.webhook import Webhook
from tests.standins.webhook import webhook as standin

ROOT = Path(__file__).parents[3]
FAILED = Ending(state="FAILED", error="train: no GPU", model="bebygan")
SUCCEEDED = Ending(state="SUCCEEDED", error="", model="bebygan")


def notify(ending: Ending) -> None:
    run(ending, RETRYING.copy(wait=wait_fixed(0.05)))


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    with standin() as hook:
        monkeypatch.setenv("BEBYGAN_WEBHOOK_URL", hook.address)
        yield hook


@pytest.fixture
def opened(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: ARG001
    """The id of a pipeline's run under way."""
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-1")
    monkeypatch.setenv("BEBYGAN_CONSOLE", "https://kubeflow.invalid/pipeline/")
    monkeypatch.setenv("BEBYGAN_TRACKER", "https://mlflow.invalid/")
    return open_pipeline_run(load_params(ROOT / "params.yaml"), {"fingerprint": "f"})


LINK = "https://kubeflow.invalid/pipeline/#/runs/details/kubeflow-1"
TRACKED = "https://mlflow.invalid/#/experiments/1/runs/"


def test_a_failure_ends_the_run_as_failed_and_is_told_with_links(webhook: Webhook, opened: str) -> None:
    notify(FAILED)
    run = mlflow_client().get_run(opened)
    assert run.info.status == "FAILED"
    assert (run.data.tags["console"], run.data.tags["error"]) == (LINK, "train: no GPU")
    [message] = webhook.taken
    assert message == {
        "text": f"retraining of bebygan: failed; champion: none yet; train: no GPU {LINK} {TRACKED}{opened}",
        "pipeline": "retraining",
        "state": "FAILED",
        "status": "FAILED",
        "error": "train: no GPU",
        "model": "bebygan",
        "champion": "",
        "mlflow_run": opened,
        "kfp_run_id": "kubeflow-1",
        "console": LINK,
        "tracker": f"{TRACKED}{opened}",
        "data": "",
        "verdict": "",
    }


def test_the_message_tells_the_verdict_in_one_sentence(webhook: Webhook, opened: str) -> None:
    said = "Version 3 stays champion: too few photographs to tell (4 held out, 6 are needed)."
    mlflow_client().set_tag(opened, "verdict", said)
    notify(SUCCEEDED)
    [message] = webhook.taken
    assert message["verdict"] == said
    assert f"; verdict: {said}" in message["text"]


def test_the_message_tells_the_data_that_evaluate_described_and_forges_no_line(webhook: Webhook, opened: str) -> None:
    mlflow_client().set_tag(opened, "data", "24 photographs (18 train, 3 validation, 3 test)")
    notify(replace(FAILED, error="evaluate: cannot read a\nb\x1b[31m.png"))
    [message] = webhook.taken
    assert message["data"] == "24 photographs (18 train, 3 validation, 3 test)"
    assert "; data: 24 photographs (18 train, 3 validation, 3 test); evaluate: cannot read" in message["text"]
    assert r"a\nb\x1b[31m.png" in message["text"]
    assert mlflow_client().get_run(opened).data.tags["error"] == r"evaluate: cannot read a\nb\x1b[31m.png"


def test_a_success_ends_the_run_as_finished_and_names_the_champion(webhook: Webhook, opened: str) -> None:
    client = mlflow_client()
    client.create_registered_model("bebygan")
    version = client.create_model_version("bebygan", "file:///nowhere", opened)
    client.set_registered_model_alias("bebygan", "champion", str(version.version))
    notify(SUCCEEDED)
    run = client.get_run(opened)
    assert run.info.status == "FINISHED"
    assert "error" not in run.data.tags
    [message] = webhook.taken
    assert message["text"] == (
        f"retraining of bebygan: succeeded; champion: bebygan version 1 {LINK} {TRACKED}{opened}"
    )
    assert (message["champion"], message["status"]) == ("1", "FINISHED")


def test_a_run_that_a_person_cancelled_ends_as_killed(opened: str) -> None:
    notify(Ending(state="CANCELED", error="", model="bebygan"))
    assert mlflow_client().get_run(opened).info.status == "KILLED"


@pytest.mark.usefixtures("opened")
def test_a_failure_before_a_run_was_opened_is_posted(webhook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-2")
    monkeypatch.delenv("BEBYGAN_CONSOLE")
    notify(FAILED)
    [failed] = webhook.taken
    assert (failed["mlflow_run"], failed["console"], failed["tracker"]) == ("", "", "")
    assert failed["text"].startswith("retraining of bebygan: failed; ")


def test_invalid_parameters_end_a_pipeline_and_that_is_posted(webhook: Webhook, opened: str) -> None:
    model = model_of("{train: {iterashuns: 1}}")
    notify(Ending(state="FAILED", error="decide: there is no parameter train.iterashuns", model=model))
    assert mlflow_client().get_run(opened).info.status == "FAILED"
    [message] = webhook.taken
    assert message["text"].startswith(
        "retraining of an unknown model: failed; champion: unknown; decide: there is no parameter train.iterashuns "
    )
    assert model_of(one_line_yaml(load_params(ROOT / "params.yaml"))) == "bebygan"


def test_a_run_that_found_nothing_to_do_posts_no_message_and_ends_no_other_run(
    webhook: Webhook, opened: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-2")
    notify(SUCCEEDED)
    assert (webhook.asked, capsys.readouterr().err) == (
        0,
        "retraining of bebygan: nothing to do; champion: none yet\n",
    )
    assert mlflow_client().get_run(opened).info.status == "RUNNING"


def test_a_webhook_that_is_busy_is_asked_again(webhook: Webhook, opened: str) -> None:
    webhook.refusals = [503, 429]
    notify(SUCCEEDED)
    assert (webhook.asked, len(webhook.taken)) == (3, 1)
    assert mlflow_client().get_run(opened).info.status == "FINISHED"


@pytest.mark.parametrize(("refusals", "asked"), [([404], 1), ([500, 502, 503], 3)])
def test_a_webhook_that_refuses_is_no_failure_and_its_address_stays_secret(
    webhook: Webhook, opened: str, refusals: list[int], asked: int, caplog: pytest.LogCaptureFixture
) -> None:
    webhook.refusals = list(refusals)
    with caplog.at_level(logging.WARNING):
        notify(SUCCEEDED)
    assert (webhook.asked, webhook.taken) == (asked, [])
    assert f"the webhook did not take the message (it answers {refusals[-1]})" in caplog.text
    assert "a-secret-path" not in caplog.text
    assert mlflow_client().get_run(opened).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("address", "said"), [("http://127.0.0.1:9/x", "Connection refused"), ("file:///etc/hostname", "http://")]
)
@pytest.mark.usefixtures("opened")
def test_a_webhook_that_is_away_or_none_is_no_failure(
    address: str, said: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BEBYGAN_WEBHOOK_URL", address)
    with caplog.at_level(logging.WARNING):
        notify(SUCCEEDED)
    assert said in caplog.text


def test_a_tracker_that_is_away_is_no_failure_and_the_webhook_is_told(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("KFP_RUN_ID", "kubeflow-1")
    with caplog.at_level(logging.WARNING):
        notify(SUCCEEDED)
    assert "is not ended" in caplog.text
    # Whether it trained is not known.
    assert [message["text"] for message in webhook.taken] == ["retraining of bebygan: succeeded; champion: unknown"]


@pytest.mark.parametrize(
    "address", ["http://user:a-secret@127.0.0.1", "http://127.0.0.1:9/a secret path", "http://[a-secret", "http://\n"]
)
@pytest.mark.usefixtures("opened")
def test_an_address_that_is_no_address_is_no_failure_and_stays_secret(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BEBYGAN_WEBHOOK_URL", address)
    with caplog.at_level(logging.WARNING):
        notify(SUCCEEDED)
    assert "the webhook did not take the message" in caplog.text
    assert "secret path" not in caplog.text
    assert "a-secret" not in caplog.text


def test_no_password_is_posted_tagged_or_printed(
    webhook: Webhook, opened: str, capsys: pytest.CaptureFixture[str]
) -> None:
    notify(Ending(state="FAILED", error="ingest: http://user:s3cret@host:8333 does not answer", model="bebygan"))
    [message] = webhook.taken
    assert message["error"] == "ingest: http://host:8333 does not answer"
    shown = [message["text"], capsys.readouterr().err, str(mlflow_client().get_run(opened).data.tags)]
    assert not [text for text in shown if "s3cret" in text]
    assert all("http://host:8333 does not answer" in text for text in shown)
