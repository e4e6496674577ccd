import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bebygan.errors import ServiceError
from components.stores import check_writable, open_store
from tests.conftest import free_ports


def test_listing_is_ordered_and_skips_folder_markers_and_neighbouring_prefixes(s3: Any, bucket: str) -> None:
    for key in ("photos/b.png", "photos/sub/a.png", "photos/", "photos-old/c.png", "d.png"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    store = open_store(f"s3://{bucket}/photos")
    assert [file.name for file in store.files()] == ["b.png", "sub/a.png"]
    assert [file.size for file in store.files()] == [12, 16]
    assert store.read("sub/a.png") == b"photos/sub/a.png"


def test_addresses_without_a_prefix_or_with_a_trailing_slash_are_valid(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a/b.png", Body=b"1")
    assert [file.name for file in open_store(f"s3://{bucket}").files()] == ["a/b.png"]
    assert [file.name for file in open_store(f"s3://{bucket}/a/").files()] == ["b.png"]


def test_listing_reads_all_pages(s3: Any, bucket: str) -> None:
    for index in range(1005):
        s3.put_object(Bucket=bucket, Key=f"{index:04}", Body=b"")
    assert len(open_store(f"s3://{bucket}").files()) == 1005


def test_the_identity_of_an_object_changes_with_its_content(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"1")
    [before] = open_store(f"s3://{bucket}").files()
    s3.put_object(Bucket=bucket, Key="a", Body=b"2")
    [after] = open_store(f"s3://{bucket}").files()
    assert after.identity() != before.identity()
    assert after.written >= before.written


def test_the_error_names_a_missing_bucket(s3_environment: dict[str, str]) -> None:
    with pytest.raises(
        ServiceError, match=f"no bucket no-such-bucket at {s3_environment['AWS_ENDPOINT_URL']}: create it"
    ):
        open_store("s3://no-such-bucket/photos").check_readable()


def test_a_wrong_secret_raises_an_error_about_access(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(ServiceError, match=r"refuses access to s3://.* check AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{bucket}").check_readable()


def test_missing_credentials_raise_an_error_with_the_variables_to_set(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(ServiceError, match="no credentials for s3://"):
        open_store(f"s3://{bucket}").check_readable()


@pytest.fixture
def in_folder(tmp_path: Path, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    """The working folder of this test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "config", "said"),
    [
        ({"AWS_PROFILE": "nope"}, "", "profile (nope) could not be found): correct AWS_PROFILE, or name the file"),
        (
            {"AWS_CONFIG_FILE": "config"},
            "[default\nx",
            "config): correct the file, or name another one in ",
        ),
        (
            {"AWS_PROFILE": "mine", "AWS_DEFAULT_REGION": "", "AWS_CONFIG_FILE": "config"},
            "[profile mine]\nregion = eu west\n",
            "'eu west' doesn't match a supported format.): correct AWS_DEFAULT_REGION, or the region of the profile",
        ),
        ({"AWS_RETRY_MODE": "quick"}, "", "'adaptive')): correct the AWS_* variables or the profile"),
        (
            {"AWS_SECRET_ACCESS_KEY": ""},
            "",
            "missing: AWS_SECRET_ACCESS_KEY): set both AWS_ACCESS_KEY_ID and AWS_SECRET",
        ),
        (
            {
                "AWS_ACCESS_KEY_ID": "",
                "AWS_SECRET_ACCESS_KEY": "",
                "AWS_ROLE_ARN": "arn:aws:iam::1:role/r",
                "AWS_WEB_IDENTITY_TOKEN_FILE": "/nonexistent",
            },
            "",
            "No such file or directory: '/nonexistent'): correct the file that an AWS_* variable names",
        ),
    ],
)
def test_an_unusable_configuration_raises_a_one_line_error_with_its_cure(
    variables: dict[str, str], config: str, said: str, in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_folder / "config").write_text(config)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in variables.items():
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    with pytest.raises(ServiceError) as caught:
        open_store("s3://bucket").check_readable()
    assert str(caught.value).startswith("the AWS configuration cannot be used (")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["AWS_DEFAULT_REGION", "AWS_REGION", "AWS_ENDPOINT_URL", "AWS_SECRET_ACCESS_KEY"])
@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_a_blank_in_a_variable_raises_an_error_with_its_name_and_not_its_value(
    name: str, blank: str, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"{os.environ.get(name, 'us-east-1')}{blank}")
    with pytest.raises(ServiceError, match=f"^{name} contains a blank or a line break: remove it$"):
        open_store(f"s3://{bucket}").check_readable()


def test_a_missing_file_of_certificates_raises_an_error_that_names_the_variable(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:"))
    monkeypatch.setenv("AWS_CA_BUNDLE", "/nonexistent")
    with pytest.raises(ServiceError, match=r"No such file or directory.*authority in AWS_CA_BUNDLE"):
        open_store(f"s3://{bucket}").check_readable()


@pytest.mark.timeout(30)
def test_an_unreachable_server_raises_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(ServiceError, match=f"{endpoint} does not answer for s3://bucket: start it"):
        open_store("s3://bucket").check_readable()


@pytest.mark.usefixtures("s3_environment")
def test_an_invalid_bucket_name_raises_a_one_line_error() -> None:
    with pytest.raises(ServiceError) as error:
        open_store("s3://No Bucket/photos").check_readable()
    assert "No Bucket" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("s3_environment")
def test_an_endpoint_without_a_scheme_raises_an_error_with_an_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost-without-scheme")
    with pytest.raises(ServiceError, match="AWS_ENDPOINT_URL is not a URL"):
        open_store("s3://bucket").check_readable()


class _IgnoresConditions(BaseHTTPRequestHandler):
    """An S3 server that treats each conditional write as an ordinary one."""

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
def test_check_writable_rejects_a_server_that_ignores_conditional_writes(monkeypatch: pytest.MonkeyPatch) -> None:
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


class _BreaksOnce(_IgnoresConditions):
    """An S3 server that breaks the first connection in the middle of an object."""

    answers: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        if "list-type" in self.path:
            entry = "<Key>a</Key><Size>4</Size><ETag>1</ETag><LastModified>2026-01-01T00:00:00Z</LastModified>"
            self.answer(content=f"<ListBucketResult><Contents>{entry}</Contents></ListBucketResult>".encode())
            return
        self.answers.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.send_header("ETag", "1")
        self.end_headers()
        self.wfile.write(b"1234"[: 2 * len(self.answers)])
        self.close_connection = True


@pytest.mark.usefixtures("s3_environment")
def test_an_object_is_read_again_as_listed_if_the_connection_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _BreaksOnce) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        [file] = open_store("s3://bucket", patient=False).files()
        assert file.read_as_listed() == b"1234"
        server.shutdown()
    assert len(_BreaksOnce.answers) == 2
