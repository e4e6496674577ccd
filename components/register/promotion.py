"""Move the alias champion and record each move in the ledger.

MLflow moves an alias unconditionally and keeps no history. A process therefore first writes the ledger's next entry,
which only one process can do, and then moves the aliases. If it is killed in between, the next run completes the move.
"""

from bebygan.errors import DataError
from components.artifacts import Verdict
from components.tracking.client import MlflowClient, MlflowException, service_errors
from components.tracking.ledger import HEAD, Move, append, last, now, who
from components.tracking.registry import PROMOTED, ModelVersion, as_version, champion, check_ledger
from components.tracking.runs import StepRun


def _move_aliases(client: MlflowClient, model: str, version: str, previous: str | None) -> None:
    with service_errors(f"making models:/{model}/{version} champion"):
        if previous and previous != version:
            client.set_registered_model_alias(model, "previous", previous)
        client.set_registered_model_alias(model, "champion", version)
        client.set_model_version_tag(model, version, PROMOTED, "true")


def _record(ledger: str, model: str, move: Move, client: MlflowClient) -> bool:
    """Append an entry unless its number is taken, and tell the registry which entry is the newest."""
    head = append(ledger, model, move)
    if head is None:
        return False
    with service_errors(f"recording the newest entry of the ledger of {model}"):
        # The registered model may have been deleted since the last entry.
        if not client.search_registered_models(f"name='{model}'"):
            client.create_registered_model(model)
        client.set_registered_model_tag(model, HEAD, head)
    return True


def _interrupted(move: Move, holds: str | None, model: str, client: MlflowClient) -> bool:
    """Return whether a process wrote an entry and did not move its aliases."""
    if move.verdict != "promote" or not move.version or move.previous != holds:
        return False
    with service_errors(f"asking for version {move.version} of {model}"):
        try:
            tags = as_version(client.get_model_version(model, move.version)).tags
        except MlflowException as error:
            # MLflow restored from a backup may not have all versions of the ledger.
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return PROMOTED not in tags and tags.get("weights_sha256") == move.weights_sha256


def _follow(ledger: str, model: str, client: MlflowClient) -> bool:
    """Set the aliases to those of the newest entry, until no newer one appears; return False without an entry."""
    seen, newest = None, last(ledger, model)
    while newest and newest.version and newest != seen:
        _move_aliases(client, model, newest.version, newest.previous)
        seen, newest = newest, last(ledger, model)
    return newest is not None


def settle(ledger: str, model: str, run: StepRun) -> int:
    """Complete an interrupted promotion, and record a champion that was chosen outside the pipeline.

    Returns:
        Number of the newest entry; 0 without entries, which leaves all as it is.

    Raises:
        DataError: an entry is damaged or missing.
        ServiceError: the registry or the bucket is unreachable or refuses access.
        StorageError: the ledger's folder cannot be written.
    """
    check_ledger(ledger, model)
    while True:
        newest, current = last(ledger, model), champion(model)
        if newest is None:
            return 0
        holds = current.version if current else None
        weights = current.tags.get("weights_sha256") if current else None
        if (newest.version, newest.weights_sha256) == (holds, weights):
            return newest.number
        if _interrupted(newest, holds, model, run.client):
            _follow(ledger, model, run.client)
            continue
        by_hand = Move(
            number=newest.number + 1,
            version=holds,
            previous=newest.version,
            weights_sha256=weights,
            verdict="by hand",
            reason="the alias was moved outside the pipeline",
            run=run.run_id,
            data_version=current.tags.get("data_version") if current else None,
            who="unknown",
            time=now(),
        )
        if _record(ledger, model, by_hand, run.client):
            return by_hand.number


def may_promote(version: ModelVersion, judged_against: str | None) -> bool:
    """Return whether the champion is the version that the challenger was judged against, not the challenger itself.

    Raises:
        DataError: another version is champion.
        ServiceError: the registry is unreachable or refuses access.
    """
    current = champion(version.model)
    holds = current.version if current else None
    if holds not in (version.version, judged_against):
        before, after = (f"version {number}" if number else "no version" for number in (judged_against, holds))
        raise DataError(
            f"the verdict compares with {before}, but now {after} holds the alias champion of {version.model}: run "
            "evaluate again"
        )
    return holds != version.version


def promote(version: ModelVersion, verdict: Verdict, run: StepRun, ledger: str) -> None:
    """Give a challenger the alias champion, and the champion that it was judged against the alias previous.

    Raises:
        DataError: the champion changed after the verdict.
        ServiceError, StorageError: as `settle`.
    """
    judged_against = verdict.champion
    while True:
        number = settle(ledger, version.model, run) if ledger else 0
        # If another process writes an entry after this check, the number is taken and `append` writes nothing.
        if not may_promote(version, judged_against) or not ledger:
            break
        move = Move(
            number=number + 1,
            version=version.version,
            previous=judged_against,
            weights_sha256=version.tags["weights_sha256"],
            verdict="promote",
            reason="; ".join(verdict.reasons),
            run=run.run_id,
            data_version=verdict.data_version,
            who=who(),
            time=now(),
        )
        if _record(ledger, version.model, move, run.client):
            break
    if not ledger or not _follow(ledger, version.model, run.client):
        _move_aliases(run.client, version.model, version.version, judged_against)
