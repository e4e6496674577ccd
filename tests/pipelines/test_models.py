"""`bebygan models`, `promote`, `rollback` on a real MLflow database and a ledger in a folder."""

import json
import multiprocessing
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from components.preflight.step import _registry
from components.register import promotion
from components.tracking.client import mlflow_client
from components.tracking.ledger import HEAD, check_complete, entries
from components.tracking.registry import aliases_of, all_versions
from pipelines import cli
from tests.pipelines.conftest import MODEL, ROOT

Command = Callable[..., tuple[int, str]]


def moves(workspace: Path) -> list[tuple[str | None, str | None, str, str]]:
    """Return from where to where each entry moves the champion, its verdict, and its reason."""
    found = entries(str(workspace / "ledger"), MODEL)
    return [(move.previous, move.version, move.verdict, move.reason) for move in found]


def check_sound(workspace: Path) -> None:
    """Check the ledger as preflight does."""
    assert f"allows changes of {MODEL}" in _registry(MODEL, str(workspace / "ledger"))


@pytest.fixture
def three(version: Callable[..., str], command: Command) -> None:
    """Three versions, each champion in its turn."""
    for number in ("1", "2", "3"):
        assert version() == number
        assert command("promote", number, "--reason", f"try {number}")[0] == 0


def test_a_promotion_is_recorded_with_who_and_why(
    version: Callable[..., str], command: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    version()
    assert command("promote", "1", "--reason", "the first") == (0, f"champion: {MODEL} version 1, before none")
    [entry] = entries(str(workspace / "ledger"), MODEL)
    assert (entry.version, entry.verdict, entry.reason, entry.who) == ("1", "by command", "the first", "ada")
    assert entry.weights_sha256 == all_versions(MODEL)[0].tags["weights_sha256"]
    assert aliases_of(MODEL) == {"champion": "1"}
    check_sound(workspace)


def test_the_promotion_of_the_champion_has_nothing_to_do(
    version: Callable[..., str], command: Command, workspace: Path
) -> None:
    version()
    command("promote", "1", "--reason", "the first")
    code, told = command("promote", "champion", "--reason", "again")
    assert (code, told) == (0, f"nothing to do: version 1 of {MODEL} is the champion already")
    assert len(moves(workspace)) == 1


@pytest.mark.usefixtures("three")
def test_each_rollback_goes_back_by_one_champion(command: Command, workspace: Path) -> None:
    told = f"champion: {MODEL} version 2, rolled back from version 3"
    assert command("rollback", "--reason", "faces look worse") == (0, told)
    assert aliases_of(MODEL) == {"champion": "2", "previous": "1"}
    assert command("rollback", "--reason", "this one too")[0] == 0
    assert aliases_of(MODEL) == {"champion": "1"}
    assert moves(workspace)[3:] == [
        ("3", "2", "rollback", "faces look worse"),
        ("2", "1", "rollback", "this one too"),
    ]
    code, told = command("rollback", "--reason", "and further")
    assert (code, told) == (
        5,
        f"error: version 1 of {MODEL} has no previous champion to return to: name the version that is to be champion "
        "by `bebygan promote`",
    )
    assert len(moves(workspace)) == 5
    check_sound(workspace)


@pytest.mark.usefixtures("three")
def test_a_version_that_was_rolled_back_says_so_until_it_is_champion_again(command: Command) -> None:
    command("rollback", "--reason", "faces look worse")
    *_, third = all_versions(MODEL)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.+ by .+: faces look worse", third.tags["rolled_back"])
    assert "rolled back" in command("models")[1].splitlines()[1]
    command("promote", "3", "--reason", "it was the photographs")
    *_, third = all_versions(MODEL)
    assert "rolled_back" not in third.tags
    assert aliases_of(MODEL) == {"champion": "3", "previous": "2"}


def test_without_a_ledger_a_rollback_follows_the_alias_previous(
    version: Callable[..., str], command: Command, workspace: Path
) -> None:
    """Runs with `--ledger ''` set aliases only."""
    version(), version()
    for alias, number in (("previous", "1"), ("champion", "2")):
        mlflow_client().set_registered_model_alias(MODEL, alias, number)
    assert command("rollback", "--reason", "worse")[0] == 0
    assert aliases_of(MODEL) == {"champion": "1"}
    assert moves(workspace) == [("2", "1", "rollback", "worse")]
    assert command("rollback", "--reason", "worse")[0] == 5


@pytest.mark.usefixtures("three")
def test_a_champion_that_a_person_set_back_is_recorded_before_the_rollback(command: Command, workspace: Path) -> None:
    mlflow_client().set_registered_model_alias(MODEL, "champion", "2")
    assert command("rollback", "--reason", "further")[0] == 0
    assert [move[:3] for move in moves(workspace)[3:]] == [("3", "2", "by hand"), ("2", "1", "rollback")]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["promote", "7", "--reason", "x"], 5, f"the model {MODEL} has no version 7 in this registry"),
        (["promote", "best", "--reason", "x"], 5, f"the model {MODEL} has no best in this registry"),
        (["promote", "9" * 30, "--reason", "x"], 5, f"the model {MODEL} has no version {'9' * 30} in this registry"),
        (["promote", "", "--reason", "x"], 5, f"the model {MODEL} has no version without a name in this registry"),
        (["why", "7"], 5, f"the model {MODEL} has no version 7 in this registry: name one that `bebygan models` shows"),
        (["lineage", "v1"], 5, f"the model {MODEL} has no v1 in this registry"),
        (["verify", "champion"], 5, f"the model {MODEL} has no champion in this registry"),
        (["promote", "1", "--reason", " "], 2, "--reason is empty"),
        (["rollback", "--reason", ""], 2, "--reason is empty"),
        (["rollback", "--reason", "x"], 5, f"{MODEL} has no champion to roll back: name one by `bebygan promote`"),
        (["rollback", "--reason", "x", "--ledger", ""], 2, "--ledger is empty"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], code: int, told: str, version: Callable[..., str], command: Command
) -> None:
    version()
    found, said = command(*words)
    assert (found, said.count("\n")) == (code, 0)
    assert said.startswith(f"error: {told}")


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["models"], 0, f"there are no versions of {MODEL} yet"),
        (["promote", "1", "--reason", "x"], 5, f"error: the model {MODEL} has no version 1"),
        (["rollback", "--reason", "x"], 5, f"error: {MODEL} has no champion to roll back"),
        (["why", "champion"], 5, f"error: the model {MODEL} has no champion"),
        (["lineage", "1"], 5, f"error: the model {MODEL} has no version 1"),
        (["verify", "latest"], 5, f"error: the model {MODEL} has no latest"),
    ],
)
def test_an_empty_registry_is_told_in_one_line(words: list[str], code: int, told: str, command: Command) -> None:
    found, said = command(*words)
    assert (found, said.count("\n")) == (code, 0)
    assert said.startswith(told)


@pytest.mark.usefixtures("three")
def test_an_alias_of_a_version_that_does_not_exist_is_told_and_repaired(command: Command, workspace: Path) -> None:
    with closing(sqlite3.connect(workspace / "mlflow.db")) as database, database:
        database.execute("UPDATE registered_model_aliases SET version = 9 WHERE alias = 'champion'")
    for words in (["why"], ["lineage"], ["verify"], ["promote", "--reason", "x"]):
        code, told = command(words[0], "champion", *words[1:])
        assert (code, told.partition(": name one")[0]) == (
            5,
            f"error: the model {MODEL} has the alias champion on version 9, which does not exist",
        )
    assert command("promote", "1", "--reason", "the one that is left")[0] == 0
    assert aliases_of(MODEL)["champion"] == "1"
    assert [move[:3] for move in moves(workspace)[3:]] == [("3", None, "by hand"), (None, "1", "by command")]
    check_sound(workspace)


def test_a_workspace_without_models_is_not_filled(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, told = command("models", "--workspace", str(tmp_path / "none"))
    assert (code, told.partition(":")[2].partition(":")[0]) == (5, f" {tmp_path}/none has no models yet")
    assert not (tmp_path / "none").exists()


def test_an_unreachable_registry_is_reported(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    code, told = command("rollback", "--reason", "x")
    assert (code, told.count("\n")) == (4, 0)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("words", [["rollback"], ["promote", "2"]], ids=" ".join)
def test_weights_that_were_changed_never_become_champion(words: list[str], command: Command, workspace: Path) -> None:
    weights = workspace / "stored" / "1" / "artifacts" / "generator.safetensors"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    code, told = command(*words, "--reason", "x")
    assert code == 5
    assert f"models:/{MODEL}/2 is damaged: its weights have SHA-256" in told
    assert aliases_of(MODEL)["champion"] == "3"
    assert len(moves(workspace)) == 3


@pytest.mark.usefixtures("three")
def test_a_previous_champion_with_other_digests_than_the_ledgers_is_refused(command: Command) -> None:
    """Weights and tag were changed together, or a restored registry gave the number to another model."""
    mlflow_client().set_model_version_tag(MODEL, "2", "weights_sha256", "0" * 64)
    code, told = command("rollback", "--reason", "x")
    assert code == 5
    assert told.startswith(f"error: version 2 of {MODEL} has other weights than when it was champion")


@pytest.mark.usefixtures("three")
def test_a_deleted_champion_or_predecessor_is_named(command: Command, workspace: Path) -> None:
    mlflow_client().delete_model_version(MODEL, "2")
    code, told = command("rollback", "--reason", "x")
    assert (code, told.partition(":")[2].partition(":")[0]) == (
        5,
        f" version 2 of {MODEL}, the champion before 3, was deleted",
    )
    mlflow_client().delete_model_version(MODEL, "3")
    code, told = command("rollback", "--reason", "x")
    assert (code, told) == (5, f"error: {MODEL} has no champion to roll back: name one by `bebygan promote`")
    assert command("promote", "1", "--reason", "the last one left")[0] == 0
    assert [move[:3] for move in moves(workspace)[3:]] == [("3", None, "by hand"), (None, "1", "by command")]
    check_sound(workspace)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("words", [["rollback"], ["promote", "1"]], ids=" ".join)
def test_an_interrupted_command_is_completed_by_the_next_one(
    words: list[str], command: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(promotion, "_follow", die)
        with pytest.raises(Killed):
            command(*words, "--reason", "x")
    assert aliases_of(MODEL)["champion"] == "3"
    expected = moves(workspace)[-1][1]
    assert command("promote", str(expected), "--reason", "y")[1].startswith("nothing to do")
    assert aliases_of(MODEL)["champion"] == expected
    assert len(moves(workspace)) == 4
    assert "rolled_back" in all_versions(MODEL)[2].tags or words != ["rollback"]


def test_the_table_shows_each_version_newest_first(version: Callable[..., str], command: Command) -> None:
    assert command("models") == (0, f"there are no versions of {MODEL} yet: train one with `bebygan run`")
    version(verdict="promote", **{"metric.lpips": "0.21781", "metric.psnr_y": "27.5"})
    version(verdict="keep")
    command("promote", "1", "--reason", "x")
    headings, second, first = command("models")[1].splitlines()
    assert headings.split()[:3] == ["version", "aliases", "made"]
    assert re.fullmatch(r" +2 +\d{4}-\d\d-\d\d \d\d:\d\d +keep +01234567", second)
    assert re.fullmatch(r" +1 +champion +\d{4}-\d\d-\d\d \d\d:\d\d +promote +27\.50 +0\.2178 +01234567", first)
    _, newest = json.loads(command("models", "--json")[1])
    assert newest["aliases"] == ["champion"]
    assert newest["metrics"] == {"lpips": 0.21781, "psnr_y": 27.5}


def _call(words: Sequence[str]) -> int:
    return cli.main([*words, "--params", str(ROOT / "params.yaml")])


def _at_once(commands: list[list[str]]) -> list[int]:
    """Return the exit codes of commands that 16 processes run at the same time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.models"])
    with context.Pool(16) as pool:
        return pool.map(_call, commands, chunksize=1)


def test_sixteen_commands_at_once_lose_no_entry_and_leave_the_aliases_of_the_newest(
    version: Callable[..., str], workspace: Path
) -> None:
    numbers = [version() for _ in range(16)]
    assert _at_once([["promote", number, "--reason", f"try {number}"] for number in numbers]) == [0] * 16
    promoted = moves(workspace)
    assert sorted(str(move[1]) for move in promoted) == sorted(numbers)
    assert [move[0] for move in promoted] == [None, *(move[1] for move in promoted[:-1])]
    assert aliases_of(MODEL) == {"champion": promoted[-1][1], "previous": promoted[-2][1]}
    assert set(_at_once([["rollback", "--reason", "worse"]] * 16)) <= {0, 5}
    found = moves(workspace)
    assert [move[0] for move in found] == [None, *(move[1] for move in found[:-1])]
    assert {move[2] for move in found[16:]} == {"rollback"}
    assert aliases_of(MODEL)["champion"] == found[-1][1]
    head = mlflow_client().get_registered_model(MODEL).tags[HEAD]
    check_complete(str(workspace / "ledger"), MODEL, head)
    check_sound(workspace)
