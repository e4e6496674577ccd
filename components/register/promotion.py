"""Moving the alias champion, so that it always names a sound version and, with a ledger, every move is on record.

MLflow moves an alias unconditionally and keeps no history. The ledger's next number is therefore taken first: who gets
it moves the aliases, and who dies in between has left on record what is to be completed.
"""

from collections.abc import Mapping
from typing import Any

from bebygan.errors import DataError
from components.tracking.client import MlflowClient, MlflowException, service_errors
from components.tracking.ledger import Move, append, last, now, who
from components.tracking.registry import ModelVersion, as_version, champion
from components.tracking.runs import StepRun

PROMOTED = "promoted"
"""Tag of a version whose promotion is complete; it is not made champion again by repeating an old registration."""


def _named(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def _move_aliases(client: MlflowClient, model: str, version: str, previous: str | None) -> None:
    with service_errors(f"making models:/{model}/{version} champion"):
        if previous and previous != version:
            client.set_registered_model_alias(model, "previous", previous)
        client.set_registered_model_alias(model, "champion", version)
        client.set_model_version_tag(model, version, PROMOTED, "true")


def _interrupted(move: Move, holds: str | None, model: str, client: MlflowClient) -> bool:
    """Whether the writer of an entry died, or still is, between the entry and the aliases."""
    if move.verdict != "promote" or not move.version or move.previous != holds:
        return False
    with service_errors(f"asking for version {move.version} of {model}"):
        try:
            tags = as_version(client.get_model_version(model, move.version)).tags
        except MlflowException as error:
            # The tracker's database is older than the ledger: it was restored from a backup.
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    return PROMOTED not in tags and tags.get("weights_sha256") == move.weights_sha256


def _follow(ledger: str, model: str, client: MlflowClient) -> bool:
    """Set the aliases as the newest entry says, again when a newer one came meanwhile; False without an entry."""
    seen, newest = None, last(ledger, model)
    while newest and newest.version and newest != seen:
        _move_aliases(client, model, newest.version, newest.previous)
        seen, newest = newest, last(ledger, model)
    return newest is not None


def settle(ledger: str, model: str, run: StepRun) -> int:
    """Make aliases and ledger agree, and return the newest entry's number, 0 without one.

    A promotion that was interrupted is completed; a champion that was chosen outside the pipeline is entered.

    Raises:
        DataError: the newest entry is damaged.
        ServiceError: registry or bucket is away or refuses.
        StorageError: the ledger's folder cannot be written.
    """
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
            reason="the alias was found to have been moved outside the pipeline",
            run=run.run_id,
            data_version=current.tags.get("data_version") if current else None,
            who="unknown",
            time=now(),
        )
        if append(ledger, model, by_hand):
            return by_hand.number


def may_promote(version: ModelVersion, judged_against: str | None) -> bool:
    """Whether the champion is the one that the challenger was judged against; False when the challenger is it already.

    Raises:
        DataError: it is another one.
        ServiceError: the registry is away or refuses.
    """
    current = champion(version.model)
    holds = current.version if current else None
    if holds not in (version.version, judged_against):
        raise DataError(
            f"the verdict compares with {_named(judged_against)}, but now {_named(holds)} holds the alias champion of "
            f"{version.model}: run evaluate again"
        )
    return holds != version.version


def promote(version: ModelVersion, verdict: Mapping[str, Any], run: StepRun, ledger: str) -> None:
    """Make a challenger champion, and the champion that it was judged against `previous`.

    Args:
        version: the challenger.
        verdict: what evaluate said of it: "champion" is the version that it was judged against.
        run: of the step.
        ledger: folder or s3://bucket/prefix; empty for none.

    Raises:
        DataError: another champion has come since the verdict.
        ServiceError, StorageError: as `settle`.
    """
    judged_against: str | None = verdict["champion"]
    while True:
        number = settle(ledger, version.model, run) if ledger else 0
        # An entry that comes after this look takes the number, so that ours cannot be written.
        if not may_promote(version, judged_against) or not ledger:
            break
        move = Move(
            number=number + 1,
            version=version.version,
            previous=judged_against,
            weights_sha256=version.tags["weights_sha256"],
            verdict="promote",
            reason="; ".join(verdict["reasons"]),
            run=run.run_id,
            data_version=verdict["provenance"]["data_version"],
            who=who(),
            time=now(),
        )
        if append(ledger, version.model, move):
            break
    if not ledger or not _follow(ledger, version.model, run.client):
        _move_aliases(run.client, version.model, version.version, judged_against)
