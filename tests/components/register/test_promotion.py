import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bebygan.errors import DataError
from bebygan.files import sha256_of
from components.artifacts import Registration
from components.config import RegisterParams
from components.register import promotion
from components.register.step import register
from components.tracking.client import mlflow_client
from components.tracking.ledger import HEAD, append, entries
from components.tracking.registry import champion
from components.tracking.runs import step_run
from tests.components.registered import aliases, versions

AUTOMATIC = RegisterParams(promotion="automatic", exports=())


def test_repeating_an_old_promotion_does_not_restore_the_old_champion(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path]
) -> None:
    one = generator_folder("one", 1)
    registered(one, "promote")
    registered(generator_folder("two", 2), "promote", champion="1")
    assert registered(one, "promote").champion == "2"
    assert aliases() == {"champion": "2", "challenger": "2", "previous": "1"}


def test_a_verdict_against_another_champion_promotes_nothing(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path]
) -> None:
    registered(generator_folder("one", 1), "promote")
    with pytest.raises(DataError, match="compares with no version, but now version 1 holds the alias champion"):
        registered(generator_folder("two", 2), "promote", champion=None)
    assert aliases()["champion"] == "1"


def test_a_verdict_of_an_earlier_version_replaces_no_champion_because_it_has_no_interval(
    registered: Callable[..., Registration],
    evaluated: Callable[..., Path],
    generator_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    registered(generator_folder("one", 1), "promote")
    two = generator_folder("two", 2)
    folder = evaluated(two, "promote", "1", gains=[])
    with (
        step_run("register", AUTOMATIC) as run,
        pytest.raises(
            DataError, match=r"promotes over version 1 without an interval of any gain.*: run evaluate again"
        ),
    ):
        register(two, folder, tmp_path / "out", params=AUTOMATIC, run=run)
    assert aliases()["champion"] == "1"


class Killed(BaseException):
    pass


@contextmanager
def killed_after(survived: int) -> Iterator[None]:
    """Raise `Killed` at the change of registry or ledger that follows `survived` others."""
    from mlflow import MlflowClient

    changes = 0

    def dying(original: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> Any:
            nonlocal changes
            if changes == survived:
                raise Killed
            changes += 1
            return original(*arguments, **options)

        return change

    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "set_registered_model_alias",
            "set_registered_model_tag",
            "set_model_version_tag",
            "_create_model_version",
        ):
            patch.setattr(MlflowClient, name, dying(getattr(MlflowClient, name)))
        patch.setattr(promotion, "append", dying(promotion.append))
        yield


@pytest.mark.parametrize("survived", range(5))
def test_after_a_kill_the_champion_is_valid_and_a_repeated_call_completes(
    survived: int,
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
) -> None:
    registered(generator_folder("one", 1), "promote")
    two = generator_folder("two", 2)
    with killed_after(survived), pytest.raises(Killed):
        registered(two, "promote", champion="1")
    assert aliases()["champion"] in ("1", "2")
    done = registered(two, "promote", champion="1")
    assert (done.version, done.champion, done.previous) == ("2", "2", "1")
    assert versions() == 2


@pytest.fixture
def ledger(registered: Callable[..., Registration], generator_folder: Callable[..., Path], tmp_path: Path) -> str:
    """Return the address of a ledger that holds the promotion of version 1."""
    address = str(tmp_path / "ledger")
    registered(generator_folder("one", 1), "promote", ledger=address)
    return address


def moves(ledger: str) -> list[tuple[str | None, str | None, str]]:
    return [(move.previous, move.version, move.verdict) for move in entries(ledger, "tests")]


def test_the_ledger_records_version_reason_data_and_user_of_each_promotion(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOGNAME", "ada")
    two = generator_folder("two", 2)
    registered(two, "keep", champion="1", ledger=ledger)
    for _ in range(2):
        registered(two, "promote", champion="1", ledger=ledger)
    assert moves(ledger) == [(None, "1", "promote"), ("1", "3", "promote")]
    entry, holder = entries(ledger, "tests")[-1], champion("tests")
    assert holder is not None
    assert (entry.number, entry.run, entry.data_version) == (2, holder.tags["register_run"], "0123.dir")
    assert entry.weights_sha256 == sha256_of(two / "generator.safetensors")
    assert (entry.reason, entry.who) == ("passed: lpips 0.0875, at most 0.1 asked", "ada")
    age = datetime.now(UTC) - datetime.fromisoformat(entry.time)
    assert 0 <= age.total_seconds() < 600


@pytest.mark.parametrize("survived", range(7))
def test_the_next_registration_completes_the_ledger_after_a_kill(
    survived: int,
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
) -> None:
    two = generator_folder("two", 2)
    with killed_after(survived), pytest.raises(Killed):
        registered(two, "promote", champion="1", ledger=ledger)
    entered = len(moves(ledger)) == 2
    assert entered == (survived > 2)
    # Another challenger, which is not promoted, finds the interrupted promotion and completes it.
    other = registered(generator_folder("three", 3), "keep", champion="1", ledger=ledger)
    assert other.champion == ("2" if entered else "1")
    assert aliases()["previous"] == ("1" if entered else None)
    if not entered:
        done = registered(two, "promote", champion="1", ledger=ledger)
        assert done.champion == done.version
    assert [verdict for *_, verdict in moves(ledger)] == ["promote", "promote"]
    # The registry remembers the newest entry, also if the process was killed before it could.
    assert mlflow_client().get_registered_model("tests").tags[HEAD].startswith("2 ")
    holder = champion("tests")
    assert holder is not None
    assert holder.tags["promoted"] == "true"


@pytest.mark.parametrize("name", ["set_registered_model_alias", "set_registered_model_tag", "set_model_version_tag"])
def test_a_row_that_another_process_inserted_meanwhile_is_updated(
    name: str,
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    original = getattr(MlflowClient, name)
    errors = [MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: model_version_tags.key")]

    def overtaken(*arguments: Any) -> Any:
        if moves(ledger)[1:] and errors:
            raise errors.pop()
        return original(*arguments)

    two = generator_folder("two", 2)
    monkeypatch.setattr(MlflowClient, name, overtaken)
    done = registered(two, "promote", champion="1", ledger=ledger)
    assert (done.champion, done.previous, errors) == ("2", "1", [])


def test_the_second_of_two_concurrent_promotions_is_refused_and_not_recorded(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two, three = generator_folder("two", 2), generator_folder("three", 3)
    real = promotion.append

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(promotion, "append", real)
        assert registered(three, "promote", champion="1", ledger=ledger).champion == "3"
        return real(*arguments)

    monkeypatch.setattr(promotion, "append", overtaken)
    with pytest.raises(DataError, match="compares with version 1, but now version 3 holds the alias champion"):
        registered(two, "promote", champion="1", ledger=ledger)
    assert aliases() == {"champion": "3", "challenger": "3", "previous": "1"}
    assert moves(ledger) == [(None, "1", "promote"), ("1", "3", "promote")]


def test_a_process_that_moves_the_aliases_late_restores_those_of_the_newest_entry(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mlflow import MlflowClient

    two, three = generator_folder("two", 2), generator_folder("three", 3)
    real = MlflowClient.set_registered_model_alias

    def late(client: MlflowClient, model: str, alias: str, version: str) -> None:
        if alias == "champion":
            monkeypatch.setattr(MlflowClient, "set_registered_model_alias", real)
            assert registered(three, "promote", champion="2", ledger=ledger).champion == "3"
        real(client, model, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", late)
    registered(two, "promote", champion="1", ledger=ledger)
    assert aliases() == {"champion": "3", "challenger": "3", "previous": "2"}
    assert moves(ledger) == [(None, "1", "promote"), ("1", "2", "promote"), ("2", "3", "promote")]


def test_a_champion_that_a_person_chose_is_recorded_and_kept(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str
) -> None:
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    mlflow_client().set_registered_model_alias("tests", "champion", "1")
    for _ in range(2):
        assert registered(generator_folder(f"more{_}", 3 + _), "keep", champion="1", ledger=ledger).champion == "1"
    assert moves(ledger)[2:] == [("2", "1", "by hand")]
    mlflow_client().delete_registered_model_alias("tests", "champion")
    assert registered(generator_folder("five", 5), "promote", champion=None, ledger=ledger).champion == "5"
    assert moves(ledger)[3:] == [("1", None, "by hand"), (None, "5", "promote")]


def test_a_champion_whose_alias_or_model_was_deleted_is_restored_by_registering_it_again(
    registered: Callable[..., Registration], challenger: Path, ledger: str
) -> None:
    mlflow_client().delete_registered_model_alias("tests", "champion")
    assert registered(challenger, "promote", ledger=ledger).champion == "1"
    assert moves(ledger)[1:] == [("1", None, "by hand"), (None, "1", "promote")]
    mlflow_client().delete_registered_model("tests")
    assert registered(challenger, "promote", ledger=ledger).champion == "1"
    assert moves(ledger)[3:] == [("1", None, "by hand"), (None, "1", "promote")]


def test_a_ledger_newer_than_a_restored_registry_promotes_no_other_model(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str
) -> None:
    """The registry assigns the number of a version that is missing from the backup again, to other weights."""
    lost = replace(entries(ledger, "tests")[0], number=2, version="2", previous="1", weights_sha256="f" * 64)
    append(ledger, "tests", lost)
    assert registered(generator_folder("two", 2), "keep", champion="1", ledger=ledger).champion == "1"
    append(ledger, "tests", replace(lost, number=4))
    assert registered(generator_folder("three", 3), "keep", champion="1", ledger=ledger).champion == "1"
    assert moves(ledger)[-1] == ("2", "1", "by hand")


def test_a_second_ledger_for_the_same_registry_is_refused_before_anything_moves(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str, tmp_path: Path
) -> None:
    """Two workspaces with one tracking server each wrote their own ledger, and one promotion was lost."""
    other = str(tmp_path / "other workspace" / "ledger")
    with pytest.raises(DataError, match=r"other workspace/ledger holds no entry 1 of tests, which the registry knows"):
        registered(generator_folder("two", 2), "promote", champion="1", ledger=other)
    assert aliases()["champion"] == "1"
    assert versions() == 1
    assert moves(ledger) == [(None, "1", "promote")]


def test_a_deleted_newest_entry_is_not_recorded_as_a_move_by_hand(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str
) -> None:
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    (Path(ledger) / "tests" / "000002.json").unlink()
    with pytest.raises(DataError, match="holds no entry 2 of tests"):
        registered(generator_folder("three", 3), "keep", champion="2", ledger=ledger)
    assert len(moves(ledger)) == 1


def test_a_changed_newest_entry_is_found_by_the_registry(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str
) -> None:
    path = Path(ledger) / "tests" / "000001.json"
    path.write_text(path.read_text().replace("0123.dir", "0124.dir"))
    with pytest.raises(DataError, match="holds a changed entry 1 of tests"):
        registered(generator_folder("two", 2), "keep", champion="1", ledger=ledger)


def test_a_ledger_of_the_previous_version_is_continued(
    registered: Callable[..., Registration], generator_folder: Callable[..., Path], ledger: str
) -> None:
    path = Path(ledger) / "tests" / "000001.json"
    old = json.loads(path.read_text())
    del old["before"]
    path.write_text(json.dumps(old))
    mlflow_client().delete_registered_model_tag("tests", HEAD)
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    assert moves(ledger) == [(None, "1", "promote"), ("1", "2", "promote")]


def test_weights_that_were_rolled_back_are_not_promoted_by_a_repeated_training(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    assert promotion.roll_back("tests", "faces look worse", ledger, mlflow_client()) == ("2", "1")
    again = registered(
        generator_folder("again", 2), "promote", champion="1", ledger=ledger, reasons=["passed: another verdict"]
    )
    assert (again.version, again.verdict, again.champion) == ("3", "promote", "1")
    told = capsys.readouterr().err
    assert "version 3 is not promoted: it has the weights of version 2, which was rolled back 20" in told
    assert "faces look worse; `bebygan promote 3` promotes it" in told
    assert moves(ledger) == [(None, "1", "promote"), ("1", "2", "promote"), ("2", "1", "rollback")]
    # Other weights from the same data are judged as ever.
    assert registered(generator_folder("four", 4), "promote", champion="1", ledger=ledger).champion == "4"


def test_an_alias_that_is_set_late_is_not_recorded_as_a_move_by_hand(
    registered: Callable[..., Registration],
    generator_folder: Callable[..., Path],
    ledger: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A process that another one overtook sets an old alias for a moment."""
    registered(generator_folder("two", 2), "promote", champion="1", ledger=ledger)
    client = mlflow_client()
    client.set_registered_model_alias("tests", "champion", "1")
    monkeypatch.setattr(promotion.time, "sleep", lambda _: client.set_registered_model_alias("tests", "champion", "2"))
    assert promotion.settle(ledger, "tests", client) == 2
    assert len(moves(ledger)) == 2
