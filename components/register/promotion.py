"""Move the alias champion and record each move in the ledger.

MLflow moves an alias unconditionally and keeps no history. A process therefore first writes the ledger's next entry,
which only one process can do, and then moves the aliases. If it is killed in between, the next run completes the move.
"""

import re
import time
from collections.abc import Callable, Sequence
from functools import partial

from bebygan.errors import DataError, ServiceError, WeightsError
from components.artifacts import Verdict
from components.tracking.client import MlflowClient, MlflowException, service_errors
from components.tracking.ledger import (
    BY_COMMAND,
    BY_HAND,
    HEAD,
    ROLLBACK,
    Move,
    append,
    champions,
    entries,
    head_of,
    last,
    now,
    who,
    withdrawn,
)
from components.tracking.registry import (
    PROMOTED,
    ROLLED_BACK,
    ModelVersion,
    aliases_of,
    all_versions,
    as_version,
    champion,
    check_ledger,
    find_version,
    verify,
)
from components.tracking.runs import StepRun

_ENTRY = "ledger_entry"
"""Tag of a version: number of the newest entry that made it champion and whose aliases were set."""
_SECONDS_TO_SET_ALIASES = 1.0
_INSERTED_BY_ANOTHER = re.compile("IntegrityError|UniqueViolation|Duplicate entry")
"""In the errors of SQLite, PostgreSQL and MySQL."""


def _unless_another_inserts(change: Callable[[], None]) -> None:
    """Change the registry; try again if another process inserts the same row between MLflow's look and its insert.

    Args:
        change: sets tags and aliases, which a repetition overwrites.
    """
    for left in (2, 1, 0):
        try:
            change()
            break
        except ServiceError as error:
            if not left or not _INSERTED_BY_ANOTHER.search(str(error)):
                raise


def previous_champion(moves: Sequence[Move]) -> str | None:
    """Return the version that a rollback returns to, or None if the ledger knows none."""
    found = champions(moves)
    return found[-2].version if len(found) > 1 else found[0].previous if found else None


def _move_aliases(client: MlflowClient, model: str, version: str, previous: str | None) -> None:
    with service_errors(f"making models:/{model}/{version} champion"):
        if previous and previous != version:
            client.set_registered_model_alias(model, "previous", previous)
        client.set_registered_model_alias(model, "champion", version)
        client.set_model_version_tag(model, version, PROMOTED, "true")


def _set_aliases(client: MlflowClient, model: str, moves: Sequence[Move]) -> None:
    """Set aliases and tags to what the entries of the ledger say; the newest one must have a version."""
    newest, before, gone = moves[-1], previous_champion(moves), withdrawn(moves)
    version, known = newest.version or "", all_versions(model)
    if before not in {each.version for each in known}:
        before = None
    _move_aliases(client, model, version, before)
    with service_errors(f"tagging the versions of {model}"):
        if before is None:
            client.delete_registered_model_alias(model, "previous")
        for each in known:
            rollback = gone.get(each.version)
            told = f"{rollback.time} by {rollback.who}: {rollback.reason}" if rollback else None
            if told and each.tags.get(ROLLED_BACK) != told:
                client.set_model_version_tag(model, each.version, ROLLED_BACK, told)
            elif not told and ROLLED_BACK in each.tags:
                client.delete_model_version_tag(model, each.version, ROLLED_BACK)
        client.set_model_version_tag(model, version, _ENTRY, str(newest.number))
        # A process that was killed wrote the entry, and perhaps not this.
        client.set_registered_model_tag(model, HEAD, head_of(newest))


def _record(ledger: str, model: str, move: Move, client: MlflowClient) -> bool:
    """Append an entry unless its number is taken, and tell the registry which entry is the newest."""
    head = append(ledger, model, move)
    if head is None:
        return False

    def tag() -> None:
        with service_errors(f"recording the newest entry of the ledger of {model}"):
            # The registered model may have been deleted since the last entry.
            if not client.search_registered_models(f"name='{model}'"):
                client.create_registered_model(model)
            client.set_registered_model_tag(model, HEAD, head)

    _unless_another_inserts(tag)
    return True


def _interrupted(move: Move, holds: str | None, model: str, client: MlflowClient) -> bool:
    """Return whether a process wrote an entry and did not move its aliases."""
    if move.verdict == BY_HAND or not move.version or move.previous != holds:
        return False
    with service_errors(f"asking for version {move.version} of {model}"):
        try:
            tags = as_version(client.get_model_version(model, move.version)).tags
        except MlflowException as error:
            # MLflow restored from a backup may not have all versions of the ledger.
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
    # Earlier versions of this project set PROMOTED only.
    completed = tags[_ENTRY] == str(move.number) if _ENTRY in tags else PROMOTED in tags and move.verdict == "promote"
    return not completed and tags.get("weights_sha256") == move.weights_sha256


def _follow(ledger: str, model: str, client: MlflowClient) -> bool:
    """Set the aliases to those of the newest entry, until no newer one appears; return False without an entry."""
    seen, moves = 0, entries(ledger, model)
    while moves and moves[-1].version and moves[-1].number != seen:
        _unless_another_inserts(partial(_set_aliases, client, model, moves))
        seen, moves = moves[-1].number, entries(ledger, model)
    return bool(moves)


def settle(ledger: str, model: str, client: MlflowClient, run_id: str = "") -> int:
    """Complete an interrupted promotion, and record a champion that was chosen outside the pipeline.

    Args:
        ledger: folder or s3:// prefix.
        model: registered model.
        client: of the registry.
        run_id: run of the step that calls; empty for a command.

    Returns:
        Number of the newest entry; 0 without entries, which leaves all as it is.

    Raises:
        DataError: an entry is damaged or missing.
        ServiceError: the registry or the bucket is unreachable or refuses access.
        StorageError: the ledger's folder cannot be written.
    """
    check_ledger(ledger, model)
    found_before: object = None
    while True:
        newest, current = last(ledger, model), champion(model)
        if newest is None:
            return 0
        holds = current.version if current else None
        weights = current.tags.get("weights_sha256") if current else None
        if (newest.version, newest.weights_sha256) == (holds, weights):
            if current and PROMOTED not in current.tags and newest.verdict != BY_HAND:
                # A process was killed between moving the alias and tagging the version.
                _follow(ledger, model, client)
            return newest.number
        if _interrupted(newest, holds, model, client):
            _follow(ledger, model, client)
            continue
        if found_before != (newest, holds):
            # A process that was overtaken may have set an alias late, and corrects that at once.
            found_before = newest, holds
            time.sleep(_SECONDS_TO_SET_ALIASES)
            continue
        by_hand = Move(
            number=newest.number + 1,
            version=holds,
            previous=newest.version,
            weights_sha256=weights,
            verdict=BY_HAND,
            reason="the alias was moved outside the pipeline",
            run=run_id,
            data_version=current.tags.get("data_version") if current else None,
            who="unknown",
            time=now(),
        )
        if _record(ledger, model, by_hand, client):
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
        DataError: the champion changed after the verdict, or the verdict has no evidence for replacing it.
        ServiceError, StorageError: as `settle`.
    """
    judged_against = verdict.champion
    if judged_against and not any(gain.opponent == "champion" and gain.interval for gain in verdict.gains):
        raise DataError(
            f"the verdict promotes over version {judged_against} without an interval of any gain, as verdicts of "
            "earlier versions do: run evaluate again"
        )
    while True:
        number = settle(ledger, version.model, run.client, run.run_id) if ledger else 0
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


def _by_command(version: ModelVersion, leaves: str | None, verdict: str, reason: str, number: int) -> Move:
    return Move(
        number=number,
        version=version.version,
        previous=leaves,
        weights_sha256=version.tags.get("weights_sha256"),
        verdict=verdict,
        reason=reason,
        run="",
        data_version=version.tags.get("data_version"),
        who=who(),
        time=now(),
    )


def promote_by_command(version: ModelVersion, reason: str, ledger: str, client: MlflowClient) -> str | None:
    """Make a version champion because a person decided so.

    Returns:
        The version that was champion before, None without one; the version itself if it is champion already, which
        changes nothing.

    Raises:
        WeightsError: the version's files are not those that were registered.
        DataError, ServiceError, StorageError: as `settle`.
    """
    verify(version)
    while True:
        number, current = settle(ledger, version.model, client), champion(version.model)
        leaves = current.version if current else None
        if leaves == version.version:
            return leaves
        move = _by_command(version, leaves, BY_COMMAND, reason, number + 1)
        if _record(ledger, version.model, move, client):
            _follow(ledger, version.model, client)
            return leaves


def _returns_to(model: str, leaves: str, ledger: str) -> ModelVersion:
    """Return the version that a rollback makes champion, whose files are those that were registered.

    Raises:
        WeightsError: the champion has no predecessor, or the predecessor was deleted or changed.
    """
    moves, cure = entries(ledger, model), "name the version that is to be champion by `bebygan promote`"
    # A ledger without entries was begun after the promotions.
    before = previous_champion(moves) if moves else aliases_of(model).get("previous")
    if before is None or before == leaves:
        raise WeightsError(f"version {leaves} of {model} has no previous champion to return to: {cure}")
    try:
        version = find_version(before, model)
    except WeightsError as error:
        raise WeightsError(f"version {before} of {model}, the champion before {leaves}, was deleted: {cure}") from error
    held = next((move for move in reversed(moves) if move.version == before), None)
    if held and held.weights_sha256 != version.tags.get("weights_sha256"):
        raise WeightsError(f"version {before} of {model} has other weights than when it was champion: {cure}")
    verify(version)
    return version


def roll_back(model: str, reason: str, ledger: str, client: MlflowClient) -> tuple[str, str]:
    """Return to the champion before the present one.

    Returns:
        The version that was champion, and the one that is now. Another process may have replaced the first one in the
        meantime; then nothing else is changed.

    Raises:
        WeightsError: there is no champion, or no previous one, or its files are not those that were registered.
        DataError, ServiceError, StorageError: as `settle`.
    """
    leaves = None
    while True:
        number, current = settle(ledger, model, client), champion(model)
        if current is None:
            raise WeightsError(f"{model} has no champion to roll back: name one by `bebygan promote`")
        leaves = leaves or current.version
        if current.version != leaves:
            return leaves, current.version
        version = _returns_to(model, leaves, ledger)
        move = _by_command(version, leaves, ROLLBACK, reason, number + 1)
        if _record(ledger, model, move, client):
            _follow(ledger, model, client)
            return leaves, version.version
