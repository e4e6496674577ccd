"""End a pipeline's run in MLflow and post its result to a webhook, with links.

Anyone who knows the address of a webhook can post there. It comes from the environment variable BEBYGAN_WEBHOOK_URL and
is never printed.
"""

import json
import logging
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Literal
from urllib.error import HTTPError

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from bebygan.errors import ConfigError, ServiceError
from components.config import Params, from_yaml
from components.progress import printable, say
from components.tracking.client import tracker
from components.tracking.registry import champion
from components.tracking.runs import close_pipeline_run

_PIPELINE = "retraining"
"""Name of the pipeline in messages."""
_DESCRIBED = ("verdict", "data")
"""Tags that evaluate gives the run, and that are posted."""
_SECONDS_TO_ANSWER = 10.0
_LONGEST_ERROR = 2000
"""Characters of an error that are posted."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a pipeline ended, as Kubeflow reports it."""

    state: str
    """SUCCEEDED, FAILED or CANCELLED."""
    error: str
    model: str
    """Registered model of the pipeline; empty if its parameters are invalid."""

    @property
    def shown_error(self) -> str:
        """Return the error in one line, without passwords and control characters, cut to what is posted."""
        return printable(self.error)[:_LONGEST_ERROR]

    @property
    def status(self) -> Literal["FINISHED", "FAILED", "KILLED"]:
        """Return MLflow's name of the state."""
        if self.state == "SUCCEEDED":
            return "FINISHED"
        return "KILLED" if self.state.startswith("CANCEL") else "FAILED"


def model_of(params: str) -> str:
    """Return the name of the registered model in a pipeline's parameters, or nothing if they are invalid.

    In that case the pipeline has failed, and its error, which names the invalid parameter, must still be posted.
    """
    try:
        return from_yaml(Params, params).evaluate.model_name
    except ConfigError:
        return ""


def _console_link() -> str:
    """Return the address of this Kubeflow run's page, or "" if BEBYGAN_CONSOLE or KFP_RUN_ID is not set."""
    console, run = os.environ.get("BEBYGAN_CONSOLE", ""), os.environ.get("KFP_RUN_ID", "")
    return f"{console.rstrip('/')}/#/runs/details/{run}" if console and run else ""


def _end_run(ending: Ending, console: str) -> dict[str, str] | None:
    """End the run in MLflow; return its id, data, verdict and link, or None if MLflow is unreachable.

    They are empty if none was opened; data and verdict are empty until evaluate has described them, the link is unless
    BEBYGAN_TRACKER is set.
    """
    tags = {"console": console, "error": ending.shown_error}
    pages, link = os.environ.get("BEBYGAN_TRACKER", "").rstrip("/"), ""
    described = dict.fromkeys(_DESCRIBED, "")
    try:
        run = close_pipeline_run(ending.status, {name: value for name, value in tags.items() if value}) or ""
        if run:
            with tracker("asking for the run of the pipeline") as client:
                found = client.get_run(run)
            described = {name: found.data.tags.get(name, "") for name in _DESCRIBED}
            link = f"{pages}/#/experiments/{found.info.experiment_id}/runs/{run}" if pages else ""
    except ServiceError as error:
        _log.warning("warning: %s. The pipeline's run there is not ended", error)
        return None
    return {"mlflow_run": run, "tracker": link, **described}


def _champion(model: str) -> str | None:
    """Return the champion's version, an empty text without a champion, or None if it cannot be known."""
    if not model:
        return None
    try:
        reigning = champion(model)
    except ServiceError as error:
        _log.warning("warning: %s", error)
        return None
    return reigning.version if reigning else ""


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, OSError) and getattr(error, "code", 500) in (429, *range(500, 600))


RETRYING = Retrying(
    retry=retry_if_exception(_may_pass),
    wait=wait_exponential(multiplier=1, exp_base=5),
    stop=stop_after_attempt(3),
    reraise=True,
)
"""Policy for a webhook that is unreachable or busy."""


def _post(address: str, message: Mapping[str, str], retrying: Retrying) -> None:
    """Post a message as JSON.

    Raises:
        ServiceError: the webhook did not accept it. The error does not contain the address.
    """
    if not address.startswith(("http://", "https://")):
        raise ServiceError("the webhook's address does not begin with http:// or https://: correct BEBYGAN_WEBHOOK_URL")
    body, kind = json.dumps(message).encode(), {"Content-Type": "application/json"}
    try:
        request = urllib.request.Request(address, body, kind)  # noqa: S310 - checked above
        retrying(urllib.request.urlopen, request, timeout=_SECONDS_TO_ANSWER).close()
    # HTTPException and ValueError name the address, or a part of it, in their messages.
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        if isinstance(error, HTTPError):
            reason = f"it answers {error.code}"
        problem = f"the webhook did not take the message ({reason}): see that it runs, or correct its secret"
        raise ServiceError(problem) from error


def notify(ending: Ending, retrying: Retrying = RETRYING) -> None:
    """End the pipeline's run in MLflow and post a message to the webhook.

    A run that found nothing to do posts no message, because schedules start many of them. Such a run succeeded and
    opened no run in MLflow.

    A failure to report is logged and is not an error: it must not fail a successful training.

    Args:
        ending: how the pipeline ended.
        retrying: policy for the webhook.
    """
    console = _console_link()
    run = _end_run(ending, console)
    nothing_to_do = ending.status == "FINISHED" and run is not None and not run["mlflow_run"]
    reigning = _champion(ending.model)
    named = f"{ending.model} version {reigning}" if reigning else "unknown" if reigning is None else "none yet"
    how = "nothing to do" if nothing_to_do else ending.state.lower()
    text = f"{_PIPELINE} of {ending.model or 'an unknown model'}: {how}; champion: {named}"
    facts = {"champion": reigning or "", **(run or dict.fromkeys(("mlflow_run", "tracker", *_DESCRIBED), ""))}
    text += "".join(f"; {name}: {facts[name]}" for name in _DESCRIBED if facts[name])
    if ending.error:
        text += f"; {ending.shown_error}"
    say(text)
    address = os.environ.get("BEBYGAN_WEBHOOK_URL")
    if not address or nothing_to_do:
        return
    message = {
        # Slack, Mattermost and Teams show this one.
        "text": " ".join(filter(None, (text, console, facts["tracker"]))),
        "pipeline": _PIPELINE,
        "state": ending.state,
        "status": ending.status,
        "error": ending.shown_error,
        "model": ending.model,
        **facts,
        "kfp_run_id": os.environ.get("KFP_RUN_ID", ""),
        "console": console,
    }
    try:
        _post(address, message, retrying)
    except ServiceError as error:
        _log.warning("warning: %s", error)
