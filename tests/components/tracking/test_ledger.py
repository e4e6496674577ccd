import json
import os
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bebygan.errors import DataError, ServiceError, StorageError
from components.stores import open_store
from components.tracking.ledger import append, check_complete, entries, last, who
from tests.components.moves import FIRST


@pytest.fixture(params=["folder", "bucket"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a ledger: a missing folder, or a prefix of a bucket."""
    if request.param == "folder":
        return str(tmp_path / "some" / "ledger")
    return f"s3://{request.getfixturevalue('bucket')}/some/ledger"


def test_entries_returns_the_moves_in_order(ledger: str) -> None:
    assert entries(ledger, "model") == []
    assert last(ledger, "model") is None
    moves = [replace(FIRST, number=number, version=str(number)) for number in range(1, 12)]
    assert all(append(ledger, "model", move) for move in moves)
    assert entries(ledger, "model") == moves
    assert last(ledger, "model") == moves[-1]
    assert entries(ledger, "mod") == []


def test_append_never_replaces_an_entry(ledger: str) -> None:
    assert append(ledger, "model", FIRST)
    assert not append(ledger, "model", replace(FIRST, version="4"))
    assert entries(ledger, "model") == [FIRST]


def test_each_model_has_its_own_numbers(ledger: str) -> None:
    assert append(ledger, "one", FIRST)
    assert append(ledger, "two", replace(FIRST, version="4"))
    assert last(ledger, "one") == FIRST


def test_one_of_sixteen_concurrent_writers_gets_each_number(ledger: str) -> None:
    together = threading.Barrier(16)
    won: list[list[str]] = [[] for _ in range(4)]

    def write(writer: int) -> None:
        for number, winners in enumerate(won, start=1):
            together.wait()
            if append(ledger, "model", replace(FIRST, number=number, who=str(writer))):
                winners.append(str(writer))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(winners) for winners in won] == [1, 1, 1, 1]
    assert [[move.who] for move in entries(ledger, "model")] == won


def test_appending_the_same_entry_again_succeeds(ledger: str) -> None:
    assert append(ledger, "model", FIRST)
    assert append(ledger, "model", FIRST)


def test_other_files_are_not_entries(tmp_path: Path) -> None:
    append(str(tmp_path), "model", FIRST)
    for name in (".000002.json.x", "000002.json~", "notes.txt", "2.json"):
        (tmp_path / "model" / name).write_text("{")
    assert entries(str(tmp_path), "model") == [FIRST]


@pytest.mark.parametrize("content", ["", '{"version": "3"}', "[]", '{"surplus": 1}'])
def test_the_error_names_a_damaged_entry(content: str, tmp_path: Path) -> None:
    append(str(tmp_path), "model", FIRST)
    (tmp_path / "model" / "000001.json").write_text(content)
    with pytest.raises(DataError, match=r"/model/000001\.json is not a ledger entry .*: restore it from a backup"):
        last(str(tmp_path), "model")


def test_a_full_disk_leaves_no_partial_entry(small_disk: Path) -> None:
    (small_disk / "fill").write_bytes(bytes(126 * 1024))
    with pytest.raises(StorageError, match=r"cannot write .*000001\.json: the disk is full"):
        append(str(small_disk), "model", replace(FIRST, reason="x" * 5000))
    (small_disk / "fill").unlink()
    assert entries(str(small_disk), "model") == []


def test_a_file_system_without_conditional_writes_raises_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError, match="without hard links"):
        append(str(tmp_path), "model", FIRST)


@pytest.mark.usefixtures("s3_environment")
def test_a_missing_bucket_raises_a_one_line_error() -> None:
    with pytest.raises(ServiceError, match="there is no bucket no-such-bucket"):
        append("s3://no-such-bucket/ledger", "model", FIRST)


def test_an_entry_is_plain_json(bucket: str, s3: Any) -> None:
    append(f"s3://{bucket}", "model", FIRST)
    stored = json.loads(s3.get_object(Bucket=bucket, Key="model/000001.json")["Body"].read())
    assert stored["version"] == "3"
    assert stored["time"] == "2026-01-02T03:04:05+00:00"


def test_who_is_the_kubeflow_run_or_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    monkeypatch.setenv("LOGNAME", "ada")
    assert who() == "ada"
    monkeypatch.setenv("KFP_RUN_ID", "42")
    assert who() == "kubeflow run 42"


def test_who_is_a_number_for_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_RUN_ID", raising=False)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    assert who() == "user 2147483641"


def test_an_entry_that_was_changed_removed_or_replaced_is_named(ledger: str) -> None:
    heads = [append(ledger, "model", replace(FIRST, number=number)) for number in (1, 2, 3)]
    assert all(heads)
    head = heads[-1] or ""
    check_complete(ledger, "model", head)
    store = open_store(f"{ledger}/model")
    kept = store.read("000002.json")
    for changed in (kept.replace(b'"someone"', b'"nobody"'), kept.replace(b"01-02T", b"01-03T")):
        store.write("000002.json", BytesIO(changed))
        with pytest.raises(DataError, match=r"model/000002\.json changed after 000003\.json was written"):
            entries(ledger, "model")
    store.delete("000002.json")
    with pytest.raises(DataError, match=r"model/000002\.json is missing"):
        last(ledger, "model")
    store.write("000002.json", BytesIO(kept))
    store.delete("000003.json")
    with pytest.raises(DataError, match="holds no entry 3 of model, which the registry knows"):
        check_complete(ledger, "model", head)
    assert append(ledger, "model", replace(FIRST, number=3, who="another"))
    with pytest.raises(DataError, match="holds a changed entry 3 of model"):
        check_complete(ledger, "model", head)
