import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.errors import ConfigError, DataError, ServiceError, StorageError
from components.stores import open_store
from components.stores.data_version import check_complete, data_version, fetch, push


def dvc(*arguments: str, cwd: Path) -> None:
    site = {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(cwd / ".dvc" / "site")}
    command = [sys.executable, "-m", "dvc", *arguments]
    done = subprocess.run(command, cwd=cwd, env=os.environ | site, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def object_of(remote: Path, digest: str) -> Path:
    return remote / "files" / "md5" / digest[:2] / digest[2:]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files that are difficult to list."""
    folder = tmp_path / "dataset"
    for name in ("b.txt", "a/c.bin", "a/d e.txt", "a-b/ü.txt", "Z"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 1000)
    (folder / "copy of Z").write_bytes((folder / "Z").read_bytes())
    (folder / "empty file").touch()
    (folder / "empty folder").mkdir()
    return folder


def repository(path: Path) -> Path:
    path.mkdir()
    dvc("init", "--no-scm", "--quiet", cwd=path)
    return path


def pointer(version: str, repository: Path) -> None:
    """Write the .dvc file of a data version."""
    (repository / "data.dvc").write_text(f"outs:\n- md5: {version}\n  hash: md5\n  path: data\n")


def test_the_version_equals_that_of_dvc_add(folder: Path, tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    shutil.copytree(folder, repo / "data")
    dvc("add", "data", cwd=repo)
    assert data_version(folder) == yaml.safe_load((repo / "data.dvc").read_text())["outs"][0]["md5"]


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(st.sampled_from("abcdefgh"), st.binary(max_size=20), min_size=1))
def test_the_version_depends_only_on_names_and_contents(
    files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def made(files: dict[str, bytes]) -> Path:
        folder = tmp_path_factory.mktemp("folder")
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return folder

    version = data_version(made(files))
    assert version == data_version(made(dict(reversed(files.items()))))
    name, content = next(iter(files.items()))
    assert version != data_version(made(files | {name: content + b"1"}))
    assert version != data_version(made(files | {"new": b""}))


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_without_files_has_no_version(made: bool, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    if made:
        folder.mkdir()
    with pytest.raises(DataError, match=r"dataset holds no files.*check the path"):
        data_version(folder)


def test_push_and_fetch_restore_a_folder_through_a_local_remote(folder: Path, tmp_path: Path) -> None:
    version = push(folder, str(tmp_path / "remote"))
    assert version == data_version(folder)
    fetch(version, str(tmp_path / "remote"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_push_and_fetch_restore_a_folder_through_a_bucket(folder: Path, bucket: str, tmp_path: Path) -> None:
    remote = f"s3://{bucket}/dvc"
    version = push(folder, remote)
    fetch(version, remote, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert push(folder, remote) == version


@pytest.mark.parametrize("remote", ["folder", "bucket"])
def test_dvc_can_pull_a_pushed_version(
    remote: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    repo = repository(tmp_path / "repo")
    address = str(tmp_path / "remote") if remote == "folder" else f"s3://{request.getfixturevalue('bucket')}/dvc"
    pointer(push(folder, address), repo)
    dvc("remote", "add", "--default", "storage", address, cwd=repo)
    if remote == "bucket":
        endpoint = request.getfixturevalue("s3_environment")["AWS_ENDPOINT_URL"]
        dvc("remote", "modify", "storage", "endpointurl", endpoint, cwd=repo)
    dvc("pull", cwd=repo)
    assert contents(repo / "data") == contents(folder)


def test_push_sends_only_missing_and_truncated_objects(folder: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    version = push(folder, str(remote))
    kept, cut = [object_of(remote, entry["md5"]) for entry in json.loads(object_of(remote, version).read_bytes())][:2]
    before = kept.stat().st_ino
    cut.write_bytes(b"cut")
    push(folder, str(remote))
    assert kept.stat().st_ino == before
    fetch(version, str(remote), tmp_path / "back")


def test_fetch_reads_a_version_that_dvc_pushed(folder: Path, tmp_path: Path) -> None:
    repo = repository(tmp_path / "repo")
    shutil.copytree(folder, repo / "data")
    dvc("remote", "add", "--default", "storage", str(tmp_path / "remote"), cwd=repo)
    dvc("add", "data", cwd=repo)
    dvc("push", cwd=repo)
    fetch(data_version(folder), str(tmp_path / "remote"), tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_remote_that_lost_a_file_or_the_listing_of_a_version_is_named(
    place: str, folder: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    remote = f"s3://{request.getfixturevalue('bucket')}/dvc" if place == "bucket" else str(tmp_path / "remote")
    version = push(folder, remote)
    check_complete(version, remote)
    store = open_store(remote)
    digest = hashlib.md5((folder / "b.txt").read_bytes(), usedforsecurity=False).hexdigest()
    store.delete(f"files/md5/{digest[:2]}/{digest[2:]}")
    with pytest.raises(DataError, match=r"lost 1 of 7 files of the data version [0-9a-f]{32}\.dir: .*--force"):
        check_complete(version, remote)
    store.delete(f"files/md5/{version[:2]}/{version[2:]}")
    with pytest.raises(DataError, match="has no object"):
        check_complete(version, remote)


def test_push_does_not_change_the_folder_or_its_neighbours(folder: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mode for path in folder.rglob("*")}
    push(folder, str(tmp_path / "remote"))
    assert {path: path.stat().st_mode for path in folder.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"dataset", "remote"}


def test_the_remote_has_copies_and_no_links(folder: Path, tmp_path: Path) -> None:
    version = push(folder, str(tmp_path / "remote"))
    expected = contents(folder)
    (folder / "b.txt").write_bytes(b"overwritten in place")
    fetch(version, str(tmp_path / "remote"), tmp_path / "back")
    assert contents(tmp_path / "back") == expected


def test_the_path_of_a_remote_may_have_unusual_characters(folder: Path, tmp_path: Path) -> None:
    remote = str(tmp_path / "re, mote #1")
    fetch(push(folder, remote), remote, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)


def test_a_damaged_object_raises_an_error_and_keeps_the_old_folder(folder: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    version = push(folder, str(remote))
    damaged = object_of(remote, json.loads(object_of(remote, version).read_bytes())[0]["md5"])
    damaged.chmod(0o644)
    damaged.write_bytes(b"other bytes")
    (tmp_path / "back").mkdir()
    (tmp_path / "back" / "old").write_bytes(b"old")
    with pytest.raises(DataError, match=r"files/md5/.* is damaged: delete it there and push"):
        fetch(version, str(remote), tmp_path / "back")
    assert contents(tmp_path / "back") == {"old": b"old"}
    assert not list(tmp_path.glob(".back*"))


def test_a_damaged_listing_raises_an_error(folder: Path, tmp_path: Path) -> None:
    version = push(folder, str(tmp_path / "remote"))
    listing = object_of(tmp_path / "remote", version)
    listing.chmod(0o644)
    listing.write_bytes(listing.read_bytes().replace(b"b.txt", b"c.txt"))
    with pytest.raises(DataError, match="damaged"):
        fetch(version, str(tmp_path / "remote"), tmp_path / "back")


def test_the_error_names_a_missing_object(folder: Path, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    version = push(folder, str(remote))
    lost = json.loads(object_of(remote, version).read_bytes())[0]["md5"]
    object_of(remote, lost).unlink()
    with pytest.raises(DataError, match=f"has no object {lost}: push the data version there"):
        fetch(version, str(remote), tmp_path / "back")


def test_the_error_names_an_unknown_version(bucket: str, tmp_path: Path) -> None:
    version = f"{'0' * 32}.dir"
    for remote in (str(tmp_path), f"s3://{bucket}"):
        with pytest.raises(DataError, match=f"has no object {version}"):
            fetch(version, remote, tmp_path / "back")


@pytest.mark.parametrize("version", ["", "latest", "0" * 32, f"../{'0' * 29}.dir", f"{'0' * 32}.dir\n"])
def test_an_invalid_version_raises_an_error(version: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a data version"):
        fetch(version, str(tmp_path), tmp_path / "back")


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_a_listing_with_files_outside_the_folder_raises_an_error(name: str, tmp_path: Path) -> None:
    def md5(content: bytes) -> str:
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    remote = tmp_path / "remote"
    content = md5(b"1")
    listing = json.dumps([{"md5": content, "relpath": name}]).encode()
    version = f"{md5(listing)}.dir"
    for digest, stored in ((content, b"1"), (version, listing)):
        object_of(remote, digest).parent.mkdir(parents=True, exist_ok=True)
        object_of(remote, digest).write_bytes(stored)
    with pytest.raises(DataError, match="outside its folder"):
        fetch(version, str(remote), tmp_path / "deep" / "back")
    assert not list(tmp_path.rglob("outside"))


def test_fetch_does_not_change_a_folder_that_has_the_version(folder: Path, tmp_path: Path) -> None:
    version = push(folder, str(tmp_path / "remote"))
    shutil.rmtree(tmp_path / "remote")
    before = folder.stat().st_ino
    fetch(version, str(tmp_path / "remote"), folder)
    assert folder.stat().st_ino == before


def test_pushing_to_a_missing_bucket_raises_an_error(folder: Path, s3_environment: dict[str, str]) -> None:
    with pytest.raises(ServiceError, match=f"no bucket nowhere at {s3_environment['AWS_ENDPOINT_URL']}"):
        push(folder, "s3://nowhere/dvc")


def test_pushing_with_a_wrong_secret_raises_an_error(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServiceError, match="check AWS_ACCESS_KEY_ID"):
        push(folder, f"s3://{bucket}/dvc")


def test_a_full_disk_of_the_remote_raises_an_error(folder: Path, small_disk: Path) -> None:
    (folder / "large").write_bytes(os.urandom(2**18))
    with pytest.raises(StorageError, match=r"cannot write .*remote/files/md5/.*: the disk is full"):
        push(folder, str(small_disk / "remote"))


def test_fetching_to_a_full_disk_leaves_no_files(folder: Path, tmp_path: Path, small_disk: Path) -> None:
    (folder / "large").write_bytes(os.urandom(2**18))
    version = push(folder, str(tmp_path / "remote"))
    with pytest.raises(StorageError, match=r"cannot write .*back: the disk is full"):
        fetch(version, str(tmp_path / "remote"), small_disk / "back")
    assert not list(small_disk.iterdir())


def test_computing_a_version_imports_neither_dvc_nor_boto3() -> None:
    code = "import sys, components.stores.data_version; sys.exit(bool({'dvc', 'boto3', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
