import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bebygan.errors import ConfigError, DataError
from components.stores.source import is_not_picture, list_source, source_version


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize(
    "name",
    [
        "ATTRIBUTION.md",
        "notes.TXT",
        "a/b/labels.json",
        ".DS_Store",
        ".git/a.png",
        "a/.hidden.png",
        "Thumbs.db",
        "__MACOSX/a.png",
    ],
)
def test_documents_and_hidden_files_are_not_pictures(name: str) -> None:
    assert is_not_picture(name)


@pytest.mark.parametrize(
    "name", ["a.png", "A.JPG", "raw.heic", "no suffix", "photographs.zip", "a.md/b.png", "clip.mp4"]
)
def test_other_files_may_be_photographs(name: str) -> None:
    assert not is_not_picture(name)


def test_a_source_lists_nested_folders_in_order(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a/c.png", "a.png", "readme.md", "a/.x")
    files, skipped = list_source(str(tmp_path))
    assert [file.name for file in files] == ["a.png", "a/c.png", "b.png"]
    assert [file.read() for file in files] == [b"a.png", b"a/c.png", b"b.png"]
    assert [file.size for file in files] == [5, 7, 5]
    assert skipped == 2


def test_a_bucket_and_a_folder_have_the_same_listing(tmp_path: Path, s3: Any, bucket: str) -> None:
    names = ("b.png", "a/c.png", "a.png", "readme.md", "a/.x", "ü d.png")
    fill(tmp_path, *names)
    for name in names:
        s3.put_object(Bucket=bucket, Key=f"deep/{name}", Body=name.encode())
    here, there = list_source(str(tmp_path)), list_source(f"s3://{bucket}/deep")
    assert [(file.name, file.size, file.read()) for file in here[0]] == [
        (file.name, file.size, file.read()) for file in there[0]
    ]
    assert here[1] == there[1] == 2


def test_a_source_follows_linked_folders_and_ends_on_circular_links(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", "a.png")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "source")
    assert [file.name for file in list_source(str(tmp_path / "source"))[0]] == ["link/a.png"]


def test_broken_links_and_pipes_are_listed_and_fail_when_read(tmp_path: Path) -> None:
    (tmp_path / "broken.png").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.png")
    files, _ = list_source(str(tmp_path))
    for file in files:
        with pytest.raises(OSError, match=r"No such file|not a regular file"):
            file.read()


def test_a_name_with_invalid_utf_8_becomes_valid_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"1")
    files, _ = list_source(str(tmp_path))
    assert files[0].name == r"caf\xe9.png"
    assert files[0].read() == b"1"


def test_missing_empty_and_unusable_sources_raise_different_errors(tmp_path: Path) -> None:
    fill(tmp_path / "documents", "a.txt", "b.md")
    (tmp_path / "empty").mkdir()
    for name, expected in {
        "missing": "missing does not exist",
        "documents/a.txt": "a.txt is a file, not a folder",
        "empty": "empty holds no files: put photographs there",
        "documents": "documents holds only 2 files that are not pictures",
    }.items():
        with pytest.raises(DataError, match=expected):
            list_source(str(tmp_path / name))
    with pytest.raises(ConfigError, match=r"gs://bucket is neither a folder nor s3://"):
        list_source("gs://bucket")
    with pytest.raises(ConfigError, match="the address is empty: name a folder"):
        list_source("")


def test_an_empty_prefix_raises_an_error(bucket: str) -> None:
    with pytest.raises(DataError, match="holds no files"):
        list_source(f"s3://{bucket}/nothing/here")


def test_the_source_version_depends_only_on_names_and_contents(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    before = source_version(str(tmp_path))
    os.utime(tmp_path / "a.png", (0, 0))
    fill(tmp_path, "readme.md")
    assert source_version(str(tmp_path)) == before
    (tmp_path / "a.png").write_bytes(b"other")
    changed = source_version(str(tmp_path))
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    assert len({before, changed, source_version(str(tmp_path))}) == 3


def test_the_source_version_of_a_bucket_changes_with_its_files(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a.png", Body=b"1")
    before = source_version(f"s3://{bucket}")
    assert before == source_version(f"s3://{bucket}")
    s3.put_object(Bucket=bucket, Key="a.png", Body=b"2")
    assert source_version(f"s3://{bucket}") != before


def test_the_error_names_a_folder_without_permission_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "open/a.png", "shut/a.png")
    scandir = os.scandir

    def refuse_one(path: str) -> Any:
        if str(path).endswith("shut"):
            # Permission bits do not apply to root.
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_one)
    with pytest.raises(DataError, match=r"cannot list .*shut: Permission denied"):
        list_source(str(tmp_path))
