"""End a pipeline's run in MLflow and post its result to a webhook, with links.

Anyone who knows the address of a webhook can post there. It comes from the environment variable BEBYGAN_WEBHOOK_URL and
is never printed.
"""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bebygan.errors import ConfigError, ServiceError
from components.config import Params, from_yaml
from components.progress import say
from components.tracking.client import mlflow_client, service_errors
from components.tracking.registry import champion
from components.tracking.runs import close_pipeline_run

_PIPELINE = "retraining"
"""Name of the pipeline in messages."""
_SECONDS_TO_ANSWER = 10.0
_SECONDS_BEFORE_TRYING_AGAIN = (1.0, 5.0)
_LONGEST_ERROR = 2000
"""Characters of an error that are posted."""
_log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a pipeline ended, as Kubeflow reports it."""

    state: str
    """SUCCEEDED, FAILED or CANCELLED."""
    error: str
    model: str
    """Registered model of the pipeline; empty if its parameters are invalid."""

    @property
    def status(self) -> Status:
        """Return MLflow's name for the state."""
        if self.state == "SUCCEEDED":
            return "FINISHED"
        return "KILLED" if self.state.startswith("CANCEL") else "FAILED"


def model_of(params: str) -> str:
    """Return the name of the registered model in a pipeline's parameters, or nothing if they are invalid.

    The pipeline failed then, and its error says what is invalid: that must still be posted.
    """
    try:
        return from_yaml(Params, params).evaluate.model_name
    except ConfigError:
        return ""


def console_link() -> str:
    """Return the address of this Kubeflow run's page, or "" if BEBYGAN_CONSOLE or KFP_RUN_ID is not set."""
    console, run = os.environ.get("BEBYGAN_CONSOLE", ""), os.environ.get("KFP_RUN_ID", "")
    return f"{console.rstrip('/')}/#/runs/details/{run}" if console and run else ""


def tracker_link(run: str) -> str:
    """Return the address of a run's page in MLflow, or an empty string if BEBYGAN_TRACKER is not set.

    Raises:
        ServiceError: the tracker is unreachable or refuses.
    """
    tracker = os.environ.get("BEBYGAN_TRACKER", "").rstrip("/")
    if not tracker:
        return ""
    with service_errors("asking for the run of the pipeline"):
        return f"{tracker}/#/experiments/{mlflow_client().get_run(run).info.experiment_id}/runs/{run}"


def _end_run(ending: Ending, console: str) -> dict[str, str] | None:
    """End the run in MLflow; return its id and link (empty if no run was opened), or None if MLflow is unreachable."""
    tags = {"console": console, "error": ending.error[:_LONGEST_ERROR]}
    try:
        run = close_pipeline_run(ending.status, {name: value for name, value in tags.items() if value}) or ""
        return {"mlflow_run": run, "tracker": tracker_link(run) if run else ""}
    except ServiceError as error:
        _log.warning("warning: %s. The pipeline's run there is not ended", error)
        return None


def _champion(model: str) -> str | None:
    """Return the champion's version, empty if there is none, or None if the registry is unreachable."""
    try:
        reigning = champion(model)
    except ServiceError as error:
        _log.warning("warning: %s", error)
        return None
    return reigning.version if reigning else ""


def post(address: str, message: Mapping[str, str]) -> None:
    """Post a message as JSON, and try again if the webhook is unreachable.

    Raises:
        ServiceError: the webhook did not accept the message. The error does not contain the address.
    """
    if not address.startswith(("http://", "https://")):
        raise ServiceError("the webhook's address does not begin with http:// or https://: correct BEBYGAN_WEBHOOK_URL")
    body = json.dumps(message).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
    for wait in (*_SECONDS_BEFORE_TRYING_AGAIN, None):
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER):  # noqa: S310
                return
        except urllib.error.HTTPError as error:
            reason = f"it answers {error.code}"
            final = error.code < 500 and error.code != 429
        except OSError as error:
            reason = str(getattr(error, "reason", None) or error.strerror or type(error).__name__)
            final = False
        if final or wait is None:
            break
        time.sleep(wait)
    raise ServiceError(f"the webhook did not take the message ({reason}): see that it runs, or correct its secret")


def notify(ending: Ending) -> None:
    """End the pipeline's run in MLflow and post a message to the webhook.

    A run that found nothing to do posts no message: schedules start many of them. It is recognized by the fact that it
    succeeded and opened no run in MLflow.

    A failure to report is logged and is not an error: it must not fail a successful training.
    """
    console = console_link()
    run = _end_run(ending, console)
    nothing_to_do = ending.status == "FINISHED" and run is not None and not run["mlflow_run"]
    reigning = _champion(ending.model) if ending.model else None
    named = f"{ending.model} version {reigning}" if reigning else "unknown" if reigning is None else "none yet"
    how = "nothing to do" if nothing_to_do else ending.state.lower()
    text = f"{_PIPELINE} of {ending.model or 'an unknown model'}: {how}; champion: {named}"
    if ending.error:
        text += f"; {ending.error[:_LONGEST_ERROR]}"
    say(text)
    address = os.environ.get("BEBYGAN_WEBHOOK_URL")
    if not address or nothing_to_do:
        return
    facts = {"champion": reigning or "", **(run or {"mlflow_run": "", "tracker": ""})}
    message = {
        # Slack, Mattermost and Teams show this one.
        "text": " ".join(filter(None, (text, console, facts["tracker"]))),
        "pipeline": _PIPELINE,
        "state": ending.state,
        "status": ending.status,
        "error": ending.error[:_LONGEST_ERROR],
        "model": ending.model,
        **facts,
        "kfp_run_id": os.environ.get("KFP_RUN_ID", ""),
        "console": console,
    }
    try:
        post(address, message)
    except ServiceError as error:
        _log.warning("warning: %s", error)
