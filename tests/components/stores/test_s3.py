import subprocess
import sys
from typing import Any

import pytest

from bebygan.errors import ConfigError, ServiceError
from components.stores.s3 import is_bucket, open_prefix
from tests.conftest import free_ports


def test_files_are_listed_by_name_without_folder_markers_and_neighbours(s3: Any, bucket: str) -> None:
    for key in ("photos/b.png", "photos/sub/a.png", "photos/", "photos-old/c.png", "d.png"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    prefix = open_prefix(f"s3://{bucket}/photos")
    assert [file.name for file in prefix.files()] == ["b.png", "sub/a.png"]
    assert [file.size for file in prefix.files()] == [12, 16]
    assert prefix.read("sub/a.png") == b"photos/sub/a.png"


def test_a_whole_bucket_and_a_trailing_slash_are_prefixes_too(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b.png", Body=b"1")
    assert [file.name for file in open_prefix(f"s3://{bucket}").files()] == ["a/b.png"]
    assert [file.name for file in open_prefix(f"s3://{bucket}/a/").files()] == ["b.png"]


def test_more_files_than_one_page_are_listed(s3: Any, bucket: str) -> None:
    for index in range(1005):
        s3.put_object(Bucket=bucket, Key=f"{index:04}", Body=b"")
    assert len(open_prefix(f"s3://{bucket}").files()) == 1005


def test_a_file_that_changes_gets_another_mark(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    [before] = open_prefix(f"s3://{bucket}").files()
    s3.put_object(Bucket=bucket, Key="a", Body=b"2")
    [after] = open_prefix(f"s3://{bucket}").files()
    assert after.etag != before.etag
    assert after.written >= before.written


def test_the_start_of_a_file_is_read_alone(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b", Body=b"start and end")
    prefix = open_prefix(f"s3://{bucket}").below("a")
    assert prefix.read_start("b", 5) == b"start"
    assert prefix.read_start("b", 500) == b"start and end"
    with pytest.raises(ServiceError, match="fails on"):
        prefix.read_start("c", 5)


def test_a_missing_file_is_told_from_a_missing_bucket(bucket: str) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_prefix(f"s3://{bucket}").read("nothing")


def test_a_missing_bucket_is_named(s3_environment: dict[str, str]) -> None:
    with pytest.raises(
        ServiceError, match=f"no bucket no-such-bucket at {s3_environment['AWS_ENDPOINT_URL']}: create it"
    ):
        open_prefix("s3://no-such-bucket/photos")


def test_a_wrong_secret_is_called_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServiceError, match=r"refuses access to s3://.* check AWS_ACCESS_KEY_ID"):
        open_prefix(f"s3://{bucket}")


def test_missing_credentials_are_asked_for(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ServiceError, match="no credentials for s3://"):
        open_prefix(f"s3://{bucket}")


@pytest.mark.timeout(30)
def test_a_server_that_is_away_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(ServiceError, match=f"{endpoint} does not answer for s3://bucket: start it"):
        open_prefix("s3://bucket")


@pytest.mark.parametrize("address", ["s3://", "s3:///photos", "photos"])
def test_an_address_without_a_bucket_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="names no bucket"):
        open_prefix(address)


@pytest.mark.usefixtures("s3_environment")
def test_an_impossible_bucket_name_is_one_line() -> None:
    with pytest.raises(ServiceError) as error:
        open_prefix("s3://No Bucket/photos")
    assert "No Bucket" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("s3_environment")
def test_an_endpoint_without_a_scheme_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost-without-scheme")
    with pytest.raises(ServiceError, match="AWS_ENDPOINT_URL is no address"):
        open_prefix("s3://bucket")


def test_folders_need_no_boto3() -> None:
    assert not is_bucket("photos")
    code = "import sys, components.stores.s3; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
