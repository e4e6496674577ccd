import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from bebygan.errors import ServiceError
from components.stores import check_writable, open_store
from tests.conftest import free_ports


def test_files_are_listed_by_name_without_folder_markers_and_neighbours(s3: Any, bucket: str) -> None:
    for key in ("photos/b.png", "photos/sub/a.png", "photos/", "photos-old/c.png", "d.png"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    store = open_store(f"s3://{bucket}/photos")
    assert [file.name for file in store.files()] == ["b.png", "sub/a.png"]
    assert [file.size for file in store.files()] == [12, 16]
    assert store.read("sub/a.png") == b"photos/sub/a.png"


def test_a_whole_bucket_and_a_trailing_slash_are_prefixes_too(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b.png", Body=b"1")
    assert [file.name for file in open_store(f"s3://{bucket}").files()] == ["a/b.png"]
    assert [file.name for file in open_store(f"s3://{bucket}/a/").files()] == ["b.png"]


def test_more_files_than_one_page_are_listed(s3: Any, bucket: str) -> None:
    for index in range(1005):
        s3.put_object(Bucket=bucket, Key=f"{index:04}", Body=b"")
    assert len(open_store(f"s3://{bucket}").files()) == 1005


def test_a_file_that_changes_gets_another_mark(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    [before] = open_store(f"s3://{bucket}").files()
    s3.put_object(Bucket=bucket, Key="a", Body=b"2")
    [after] = open_store(f"s3://{bucket}").files()
    assert after.identity() != before.identity()
    assert after.written >= before.written


def test_a_missing_bucket_is_named(s3_environment: dict[str, str]) -> None:
    with pytest.raises(
        ServiceError, match=f"no bucket no-such-bucket at {s3_environment['AWS_ENDPOINT_URL']}: create it"
    ):
        open_store("s3://no-such-bucket/photos").check_readable()


def test_a_wrong_secret_is_called_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServiceError, match=r"refuses access to s3://.* check AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}").check_readable()


def test_missing_credentials_are_asked_for(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ServiceError, match="no credentials for s3://"):
        open_store(f"s3://{bucket}").check_readable()


@pytest.mark.timeout(30)
def test_an_unreachable_server_is_reported_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(ServiceError, match=f"{endpoint} does not answer for s3://bucket: start it"):
        open_store("s3://bucket").check_readable()


@pytest.mark.usefixtures("s3_environment")
def test_an_impossible_bucket_name_is_one_line() -> None:
    with pytest.raises(ServiceError) as error:
        open_store("s3://No Bucket/photos").check_readable()
    assert "No Bucket" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("s3_environment")
def test_an_endpoint_without_a_scheme_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost-without-scheme")
    with pytest.raises(ServiceError, match="AWS_ENDPOINT_URL is not a URL"):
        open_store("s3://bucket").check_readable()


class _IgnoresConditions(BaseHTTPRequestHandler):
    """The few S3 calls of the check, answered by a server that takes each conditional write as an ordinary one."""

    objects: ClassVar[dict[str, bytes]] = {}

    def answer(self, status: int = 200, content: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.answer(content=b"<ListBucketResult/>")

    def do_PUT(self) -> None:
        self.objects[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def do_DELETE(self) -> None:
        del self.objects[self.path]
        self.answer(204)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.usefixtures("s3_environment")
def test_a_server_that_ignores_conditional_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _IgnoresConditions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        store = open_store("s3://bucket/ledger", patient=False)
        check_writable(store)
        with pytest.raises(
            ServiceError, match=r"s3://bucket/ledger ignores conditional writes .*: update the S3 server, or name"
        ):
            check_writable(store, conditional=True)
        server.shutdown()
    assert not _IgnoresConditions.objects
