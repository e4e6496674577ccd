"""Decide whether to train, and report what changed since the champion was made."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bebygan.differences import differences
from bebygan.errors import ConfigError, ServiceError
from components.config import digest, flatten, plain
from components.job import Job
from components.progress import say
from components.tracking.client import MlflowException, mlflow_client, service_errors
from components.tracking.registry import ROLLED_BACK, ModelVersion, all_versions, champion, lost_champion, verify
from components.tracking.runs import PARENT, PREFLIGHT_PASSED, ended_runs, open_pipeline_run

if TYPE_CHECKING:
    from mlflow.entities import Run

_NAMED = 4
"""Largest number of changed parameters that a reason names; it counts the rest."""
_TRIES = 3
"""Failed runs of the same job after which the pipeline skips it: a schedule may start one every few minutes."""


@dataclass(frozen=True)
class Decision:
    """Whether to train, and why, in one line."""

    action: Literal["train", "skip"]
    reason: str
    data_version: str = ""
    """Of the finished run of the same job, if that is the reason."""


_Made = tuple[ModelVersion, "Run | None"]
"""A champion, and the pipeline's run that made it if it is known."""


def _pipeline_run_of_champion(model: str) -> _Made | None:
    """Return the champion and the run that made it, or None if there is no champion."""
    reigning = champion(model)
    if reigning is None:
        return None
    client = mlflow_client()
    with service_errors(f"asking what {reigning.uri} was made of"):
        try:
            parent = client.get_run(reigning.run_id).data.tags.get(PARENT)
            return reigning, client.get_run(parent) if parent else None
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return reigning, None
            raise


def _changed_parameters(job: Job, before: "Run") -> str | None:
    """Return which parameters differ, or None if none does."""
    if before.data.tags.get("params_hash") == digest(job.params):
        return None
    now = {name: str(value) for name, value in flatten(plain(job.params))}
    return f"parameters changed ({', '.join(differences(before.data.params, now, _NAMED))})"


def _reason(job: Job, made: _Made | None) -> str:
    if made is None:
        return "there is no champion yet"
    version, before = made[0].version, made[1]
    if before is None or "source_version" not in before.data.tags:
        return f"it is unknown what the champion, version {version}, was made of"
    tags = before.data.tags
    changes = [
        "photographs changed" if tags["source_version"] != job.source_version else None,
        "code changed" if tags.get("code_version") != job.code_version else None,
        _changed_parameters(job, before),
    ]
    changed = [change for change in changes if change]
    if not changed:
        return f"nothing changed since the champion, version {version}, but the run that made it did not finish"
    return f"{', '.join(changed)} since the champion, version {version}"


def _outcome(run_id: str, model: str, made: _Made | None) -> str:
    """Return why a finished run of the same job did not make the champion, if that is known."""
    for version in all_versions(model, parent_run=run_id):
        if told := version.tags.get(ROLLED_BACK):
            return f", whose version {version.version} was rolled back {told}"
    return "" if made else ", whose challenger was not promoted"


def decide(job: Job, *, force: bool = False, tries: int | None = None) -> Decision:
    """Decide whether to train.

    A job with a finished run is skipped, even if its challenger did not become champion. It is not skipped silently if
    the champion is gone: whether to restore it or to train again is for a person to decide.

    Args:
        job: the run in question.
        force: train even if nothing changed.
        tries: failed runs of the same job after which it is skipped, too; None for any number. A run that preflight
            stopped does not count: it says nothing about the job.

    Returns:
        The decision. The reason of a training names what changed since the champion was made.

    Raises:
        ServiceError: the tracker or the registry is unreachable or refuses, or it lost the champion or its files.
        WeightsError: nothing changed, but the champion's files did.
    """
    if force:
        return Decision("train", "it was forced")
    model = job.params.evaluate.model_name
    made = _pipeline_run_of_champion(model)
    # Kubeflow's MLflow plugin may track this run in another experiment than the runs before.
    also_in = [made[1].info.experiment_id] if made and made[1] else []
    if made and made[1] and job.start:
        tags = made[1].data.tags
        # Otherwise each run that starts from the champion would call for the next one.
        if tags.get("recipe", tags.get("fingerprint")) == job.recipe:
            verify(made[0])
            reason = f"the champion, version {made[0].version}, was made of these photographs, parameters and code"
            return Decision("skip", reason, tags.get("data_version", ""))
    same = {"fingerprint": job.fingerprint}
    if earlier := ended_runs(same, "FINISHED", also_in):
        if made is None and (lost := lost_champion(model)):
            raise ServiceError(
                f"{model} lost its champion ({lost}), and this job was trained before: give a version the alias "
                "champion, restore the registry, or train again with --force"
            )
        if made:
            verify(made[0])
        outcome = _outcome(earlier[0], model, made)
        reason = f"photographs, parameters and code are those of the finished run {earlier[0]}{outcome}"
        with service_errors("asking for the finished run"):
            tags = mlflow_client().get_run(earlier[0]).data.tags
        return Decision("skip", reason, tags.get("data_version", ""))
    if tries and len(failed := ended_runs(same | PREFLIGHT_PASSED, "FAILED", also_in)) >= tries:
        return Decision(
            "skip",
            f"{len(failed)} runs of the same photographs, parameters and code failed, the last one {failed[0]}: "
            "correct what failed, then start a run by `bebygan submit --force`",
        )
    return Decision("train", _reason(job, made))


def begin(job: Job, *, force: str, asked_because: str) -> Literal["train", "skip"]:
    """Decide, print the decision, and open the run in MLflow that will be the parent of the steps' runs.

    A job that failed three times is skipped unless it is forced.

    Args:
        job: the run in question.
        force: "auto" to decide, "always" to train even if nothing changed.
        asked_because: why the pipeline was started; empty if unknown.

    Returns:
        The action.

    Raises:
        ConfigError: `force` is neither.
        ServiceError: the tracker or the registry is unreachable or refuses.
    """
    if force not in ("auto", "always"):
        raise ConfigError(f"force must be auto or always, got {force!r}")
    decision = decide(job, force=force == "always", tries=_TRIES)
    reason = f"{decision.reason}; started because {asked_because}" if asked_because else decision.reason
    say(f"{'training' if decision.action == 'train' else 'nothing to do'}: {reason}")
    if decision.action == "train":
        open_pipeline_run(job.params, {**job.tags, "reason": reason})
    return decision.action
