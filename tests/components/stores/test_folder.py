import errno
import io
import os
from pathlib import Path

import pytest

from bebygan.errors import DataError, StorageError
from components.stores import check_writable, open_store


def test_a_folder_store_writes_ordinary_files(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert store.folder == tmp_path
    store.write("a/b", io.BytesIO(b"1"))
    assert store.write_if_absent("a/c", b"2")
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()} == {"b": 0o644, "c": 0o644}


def test_deleting_the_last_file_removes_its_folder_but_not_the_store(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.write("a/b/c", io.BytesIO(b"1"))
    store.delete("a/b/c")
    assert (tmp_path / "store").is_dir()
    assert not list((tmp_path / "store").iterdir())


def test_listing_follows_links_and_ends_on_circular_links(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"1")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store" / "broken").symlink_to(tmp_path / "nothing")
    broken, linked = open_store(str(tmp_path / "store")).files()
    assert (broken.name, linked.name) == ("broken", "link/a")
    assert linked.read() == b"1"
    with pytest.raises(FileNotFoundError):
        broken.read()
    assert broken.identity() == "unreadable"


@pytest.mark.parametrize("target", ["/etc", "/etc/hostname", "/proc/self/environ", "/dev"])
def test_a_link_into_a_folder_of_the_system_is_listed_and_never_followed(target: str, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "link").symlink_to(target)
    (tmp_path / "store" / "a").write_bytes(b"1")
    store = open_store(str(tmp_path / "store"))
    plain, link = store.files()
    assert (plain.name, link.name) == ("a", "link")
    with pytest.raises(OSError, match="it is a link into a folder of the system"):
        link.read()
    assert (plain.read(), link.identity()) == (b"1", "unreadable")


def test_reading_a_link_to_itself_raises_the_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    [found] = open_store(str(tmp_path)).files()
    assert found.identity() == "unreadable"
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        found.read()


def test_reading_a_pipe_raises_an_error_instead_of_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    [file] = open_store(str(tmp_path)).files()
    with pytest.raises(OSError, match="not a regular file"):
        file.read()


def test_listing_skips_a_file_that_another_process_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"1")
    walk = os.walk

    def walk_and_lose_one(*arguments: object, **options: object) -> object:
        for found in walk(*arguments, **options):  # type: ignore[call-overload]
            (tmp_path / "a").unlink()
            yield found

    monkeypatch.setattr(os, "walk", walk_and_lose_one)
    assert [file.name for file in open_store(str(tmp_path)).files()] == ["b"]


def test_the_error_names_a_file_that_should_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    store = open_store(str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot list .*file: Not a directory"):
        store.files()
    with pytest.raises(NotADirectoryError):
        store.check_readable()
    with pytest.raises(StorageError, match=r"cannot write .*a file is where a folder should be"):
        check_writable(store)


def test_a_missing_folder_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_store(str(tmp_path / "nothing")).check_readable()


def test_only_conditional_writes_reject_a_file_system_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    check_writable(store)
    with pytest.raises(StorageError, match="is on a file system without hard links"):
        check_writable(store, conditional=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_partial_file(small_disk: Path) -> None:
    store = open_store(str(small_disk))
    with pytest.raises(StorageError, match=r"cannot write .*large: the disk is full"):
        store.write("large", io.BytesIO(bytes(2**18)))
    assert not list(small_disk.iterdir())


def test_an_unknown_error_of_the_file_system_has_its_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=rf"{tmp_path} cannot be written \(Input/output error\): make room"):
        check_writable(open_store(str(tmp_path)))
