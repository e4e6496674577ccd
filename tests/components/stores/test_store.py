"""Tests of every store: a folder, and a bucket of a real server."""

import io
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bebygan.errors import ConfigError
from components.stores import Store, absolute, check_writable, folder_of, open_store


@pytest.fixture(params=["folder", "bucket"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "some" / "store")
    return f"s3://{request.getfixturevalue('bucket')}/some/store"


@pytest.fixture
def store(address: str) -> Store:
    return open_store(address)


def write(store: Store, *names: str) -> None:
    for name in names:
        store.write(name, io.BytesIO(name.encode()))


def names_in(store: Store, start: str = "") -> list[str]:
    return [file.name for file in store.files(start)]


def test_an_empty_store_has_no_files(store: Store, address: str) -> None:
    assert store.address == address
    assert store.files() == []
    assert store.files("a") == []


def test_files_are_listed_by_name_with_size_content_and_time(store: Store) -> None:
    write(store, "b.png", "a/c.png", "a.png", "ü d/é.png", "a/b/c/d")
    files = store.files()
    assert [file.name for file in files] == sorted(["b.png", "a/c.png", "a.png", "ü d/é.png", "a/b/c/d"])
    assert [file.size for file in files] == [len(file.name.encode()) for file in files]
    assert [file.read() for file in files] == [file.name.encode() for file in files]
    assert max(file.written for file in files) - min(file.written for file in files) < 60


def test_listing_can_be_limited_to_a_start_of_names(store: Store) -> None:
    write(store, "train-1/a", "train-1/train-2", "train", "warmup-1/train-1", "train-2")
    assert names_in(store, "train-") == ["train-1/a", "train-1/train-2", "train-2"]
    assert names_in(store, "warmup-") == ["warmup-1/train-1"]


def test_a_store_excludes_neighbours_with_the_same_start_of_name(store: Store) -> None:
    write(store, "photos/a.png", "photos-old/b.png", "c.png")
    assert names_in(store.below("photos")) == ["a.png"]
    assert store.below("photos").below("x").address == f"{store.address}/photos/x"
    assert names_in(open_store(f"{store.address}/photos/")) == ["a.png"]


def test_the_identity_of_a_file_depends_only_on_its_content(store: Store) -> None:
    def identity() -> str:
        [file] = store.files()
        return file.identity()

    store.write("a", io.BytesIO(b"1"))
    first = identity()
    store.write("a", io.BytesIO(b"1"))
    assert identity() == first
    store.write("a", io.BytesIO(b"2"))
    assert identity() != first


def test_read_can_return_only_the_first_bytes(store: Store) -> None:
    store.write("a/b", io.BytesIO(b"start and end"))
    assert store.read("a/b") == b"start and end"
    assert store.read("a/b", first=5) == b"start"
    assert store.read("a/b", first=500) == b"start and end"


def test_reading_a_missing_file_raises_file_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        store.read("nothing")
    with pytest.raises(FileNotFoundError, match="nothing"):
        store.read("nothing", first=5)
    with pytest.raises(FileNotFoundError, match="nothing"):
        store.download("nothing", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_files_are_written_and_read_without_changes(store: Store, tmp_path: Path) -> None:
    content = bytes(range(256)) * 50_000
    (tmp_path / "original").write_bytes(content)
    with (tmp_path / "original").open("rb") as file:
        store.write("a/large", file)
    store.download("a/large", tmp_path / "new folder" / "copy")
    assert (tmp_path / "new folder" / "copy").read_bytes() == content


def test_write_if_absent_never_replaces_a_file(store: Store) -> None:
    assert store.write_if_absent("a/1", b"first")
    assert not store.write_if_absent("a/1", b"second")
    assert store.write_if_absent("a/1", b"first")
    assert store.read("a/1") == b"first"
    assert names_in(store) == ["a/1"]


def test_one_of_eight_concurrent_writers_succeeds(store: Store) -> None:
    together = threading.Barrier(8)
    won: list[bytes] = []

    def run(content: bytes) -> None:
        together.wait()
        if store.write_if_absent("name", content):
            won.append(content)

    threads = [threading.Thread(target=run, args=(b"%d" % number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won == [store.read("name")]


def test_deleting_a_missing_file_does_nothing(store: Store) -> None:
    write(store, "a/b/c", "a/d")
    store.delete("a/b/c")
    store.delete("a/b/c")
    assert names_in(store) == ["a/d"]
    store.delete("a/d")
    store.delete("never/there")
    assert store.files() == []


def test_check_writable_leaves_no_file(store: Store) -> None:
    check_writable(store)
    check_writable(store, conditional=True)
    assert store.files() == []
    store.check_readable()


@pytest.mark.parametrize("address", ["gs://bucket/photos", "file:///photos", "a://s3://b"])
def test_an_unknown_scheme_raises_an_error(address: str) -> None:
    for asked in (folder_of, absolute, open_store):
        with pytest.raises(ConfigError, match=f"{re.escape(address)} is neither a folder nor s3://bucket/prefix"):
            asked(address)


def test_an_empty_address_raises_an_error() -> None:
    assert folder_of("") is None
    assert absolute("") == ""
    with pytest.raises(ConfigError, match="the address is empty"):
        open_store("")


@pytest.mark.parametrize("address", ["s3://", "s3:///photos"])
def test_an_address_without_a_bucket_raises_an_error(address: str) -> None:
    with pytest.raises(ConfigError, match=f"{address} names no bucket"):
        open_store(address)


def test_a_relative_folder_becomes_absolute_and_nothing_else_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/../b") == str(tmp_path / "b")
    assert absolute("s3://bucket/a") == "s3://bucket/a"
    assert folder_of("s3://bucket/a") is None
    assert folder_of("a") == Path("a")


def test_a_folder_needs_no_boto3() -> None:
    code = "import components.stores as s, sys; s.open_store('a').files(); sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
