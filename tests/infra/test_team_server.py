"""What infra/compose.yaml and the scripts beside it promise, as far as that shows without the servers."""

import fcntl
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from boto3.session import Session
from botocore.exceptions import ClientError

from components.stores import check_writable, open_store
from components.tracking.ledger import append, entries
from tests.components.moves import FIRST
from tests.infra.attacks import attack_ledger
from tests.servers import INFRA, SCRIPTS, STRANGER, listening, new_secrets, open_to_strangers, seaweedfs, services

SECRETS = new_secrets()
SERVERS = ("postgres", "seaweedfs", "mlflow", "pipeline", "serve")


@pytest.fixture(scope="module")
def described() -> dict[str, dict[str, Any]]:
    return services(SECRETS)


def test_every_password_is_long_random_and_its_own() -> None:
    passwords = [value for name, value in SECRETS.items() if name != "COMPOSE_PROJECT_NAME"]
    assert len(passwords) == 13
    assert all(re.fullmatch(r"[A-Za-z0-9]{32}", password) for password in passwords)
    assert len({*passwords, *new_secrets().values()}) == 27


def test_no_password_has_a_default_or_is_written_in_the_file() -> None:
    text = (INFRA / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    assert asked == SECRETS.keys() - {"COMPOSE_PROJECT_NAME"}
    assert not re.search(r"(?i)(password|_key|secret\w*): (?!\$\{)\S", text)
    assert not subprocess.run(["git", "check-ignore", "-q", INFRA / ".env"], check=False).returncode


def test_docker_compose_accepts_the_file_and_names_a_missing_password(tmp_path: Path) -> None:
    compose = shutil.which("docker-compose")
    if not compose:
        pytest.skip("docker-compose is not installed")
    shutil.copy(INFRA / "compose.yaml", tmp_path)
    missing = subprocess.run([compose, "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert missing.returncode
    assert "run team-server/secrets.sh" in missing.stderr
    lines = [f"{name}={value}\n" for name, value in SECRETS.items()]
    (tmp_path / ".env").write_text("".join(lines))
    accepted = subprocess.run([compose, "config"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert accepted.returncode == 0, accepted.stderr
    assert yaml.safe_load(accepted.stdout)["services"].keys() == services(SECRETS).keys()


def test_nothing_runs_as_root_or_writes_to_its_image(described: dict[str, dict[str, Any]]) -> None:
    for name, service in described.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not service.get("privileged")
        assert (service["user"] == "0:0") == (name == "volumes")
        assert service.get("cap_add", []) == (["CHOWN"] if name == "volumes" else [])
    assert described["volumes"]["network_mode"] == "none"
    assert "docker.sock" not in (INFRA / "compose.yaml").read_text()


def test_servers_restart_and_have_health_checks_and_limits(described: dict[str, dict[str, Any]]) -> None:
    for name, service in described.items():
        assert (service.get("restart") == "unless-stopped") == (name in SERVERS)
        assert ("healthcheck" in service) == (name in SERVERS)
        assert name == "volumes" or service["mem_limit"]


def test_ports_are_published_on_loopback_only(described: dict[str, dict[str, Any]]) -> None:
    published = {name: service["ports"] for name, service in described.items() if "ports" in service}
    ports = {"seaweedfs": 8333, "mlflow": 5000, "serve": 8080}
    assert published == {name: [f"127.0.0.1:{port}:{port}"] for name, port in ports.items()}


def test_every_mounted_file_exists(described: dict[str, dict[str, Any]]) -> None:
    for service in described.values():
        for mount in service.get("volumes", ()):
            if isinstance(mount, dict):
                assert mount["volume"] == {"nocopy": True}
                continue
            source, target, *mode = mount.split(":")
            assert target.startswith("/")
            if source.startswith("."):
                assert (INFRA / source).exists()
                assert mode == ["ro"]


def test_each_server_has_only_its_own_keys(described: dict[str, dict[str, Any]]) -> None:
    expected = {"mlflow": "MLFLOW", "setup": "ADMIN", "pipeline": "PIPELINE"}
    for name, keys in expected.items():
        variables = described[name]["environment"]
        assert variables["AWS_ACCESS_KEY_ID"] == SECRETS[f"{keys}_KEY_ID"]
        assert variables["AWS_SECRET_ACCESS_KEY"] == SECRETS[f"{keys}_KEY"]
    assert set(described["serve"]["environment"].values()) & set(SECRETS.values()) == {SECRETS["SERVE_PASSWORD"]}
    assert SECRETS["MLFLOW_ADMIN_PASSWORD"] not in described["pipeline"]["environment"].values()
    assert SECRETS["POSTGRES_PASSWORD"] not in described["pipeline"]["environment"].values()


@pytest.fixture
def timer(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """Starts timer.sh, whose hour is a hundredth of a second, with a command of the shell; LAST_RUN is `last`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sleep").write_text('#!/bin/sh\necho "$1" >> "$PAUSES"\nexec /bin/sleep 0.01\n')
    (tmp_path / "bin" / "sleep").chmod(0o755)

    def start(command: str) -> subprocess.Popen[str]:
        variables = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PAUSES": str(tmp_path / "pauses"),
            "INTERVAL": "3600",
            "LAST_RUN": str(tmp_path / "last"),
        }
        return subprocess.Popen(
            ["sh", SCRIPTS / "timer.sh", "sh", "-c", command],
            cwd=tmp_path, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pauses(folder: Path) -> list[int]:
    """Return for how long the timer has slept, in seconds of its own."""
    return [int(line) for line in (folder / "pauses").read_text().split()] if (folder / "pauses").exists() else []


def healthy(described: dict[str, dict[str, Any]], last: Path) -> bool:
    _, *test = described["pipeline"]["healthcheck"]["test"]
    return not subprocess.run(test, env={"PATH": os.environ["PATH"], "LAST_RUN": str(last)}, check=False).returncode


def test_the_timer_repeats_the_run_reports_failures_and_ends_on_request(
    timer: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = timer('n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count; [ "$n" -ne 1 ] || exit 3')
    until(lambda: len(pauses(tmp_path)) >= 4)
    process.terminate()
    _, told = process.communicate(timeout=10)
    assert process.returncode == 0
    assert set(pauses(tmp_path)) == {3600}
    line = r"timer: the run of \S+ ended with exit code 3; the next starts in 3600 s"
    assert re.fullmatch(line, told.splitlines()[0])
    assert told.count("timer: ") == 1


def test_after_an_unreachable_server_the_timer_retries_soon_with_growing_pauses(
    timer: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = timer('n=$(cat count 2>/dev/null || echo 0); echo $((n + 1)) > count; [ "$n" -eq 9 ] || exit 4')
    until(lambda: len(pauses(tmp_path)) >= 12)
    process.terminate()
    process.communicate(timeout=10)
    assert pauses(tmp_path)[:12] == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 30, 60]


def test_the_container_is_unhealthy_from_a_failed_run_until_a_good_one(
    timer: Callable[[str], subprocess.Popen[str]], tmp_path: Path, described: dict[str, dict[str, Any]]
) -> None:
    last = tmp_path / "last"
    assert healthy(described, last)
    for code in (4, 0, 75):
        process = timer(f"exit {code}")
        until(lambda code=code: last.exists() and last.read_text().startswith(f"{code} "))  # type: ignore[misc]
        assert healthy(described, last) == (code == 0)
        process.terminate()
        process.communicate(timeout=10)
        assert process.returncode == 0


def test_a_stop_request_reaches_the_run_and_waits_for_it(
    timer: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = timer(
        "trap '/bin/sleep 0.5; echo saved > state; exit 75' TERM; touch running; while :; do /bin/sleep 0.05; done"
    )
    until((tmp_path / "running").exists)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert (tmp_path / "state").read_text() == "saved\n"


@pytest.fixture
def buckets(s3: Any, bucket: str, s3_environment: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    """Runs buckets.py on a fresh bucket with a few objects."""
    for key in ("a", "b/a", "sub/c d%+.png", "b/\u00fcber/"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode() * 1000)
    s3.put_object(Bucket=bucket, Key="same", Body=b"a" * 1000)
    s3.put_object(Bucket=bucket, Key="large", Body=bytes(20_000_000))

    def run(what: str, time: str, into: str = bucket) -> subprocess.CompletedProcess[str]:
        (tmp_path / time).mkdir(exist_ok=True)
        command = [
            sys.executable,
            str(SCRIPTS / "buckets.py"),
            what,
            str(tmp_path),
            str(tmp_path / time / "objects.jsonl"),
        ]
        environment = {"PATH": os.environ["PATH"], **s3_environment, "BUCKETS": into}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def emptied(s3: Any, bucket: str) -> dict[str, bytes]:
    """Return a bucket's objects and take them away."""
    found = {each["Key"] for each in s3.list_objects_v2(Bucket=bucket)["Contents"]}
    contents = {key: s3.get_object(Bucket=bucket, Key=key)["Body"].read() for key in found}
    for key in found:
        s3.delete_object(Bucket=bucket, Key=key)
    return contents


def test_a_saved_bucket_is_restored_byte_for_byte_and_each_content_is_stored_once(
    buckets: Callable[..., Any], s3: Any, bucket: str, tmp_path: Path
) -> None:
    first = buckets("save", "1")
    assert first.stdout == "6 objects saved, 6 of them fetched\n", first.stderr
    s3.put_object(Bucket=bucket, Key="new", Body=b"new")
    assert buckets("save", "2").stdout == "7 objects saved, 1 of them fetched\n"
    assert contents(tmp_path) == 6
    before = emptied(s3, bucket)
    assert buckets("restore", "1").stdout == "6 objects restored\n"
    assert emptied(s3, bucket) == {key: value for key, value in before.items() if key != "new"}
    assert buckets("restore", "2").stdout == "7 objects restored\n"
    assert emptied(s3, bucket) == before


def contents(folder: Path) -> int:
    """Return how many contents a folder of backups holds."""
    return len([path for path in (folder / "objects").rglob("*") if path.is_file()])


def test_a_bucket_with_other_objects_is_not_restored(buckets: Callable[..., Any], s3: Any, bucket: str) -> None:
    buckets("save", "1")
    for key, body in (("new", b"new"), ("a", b"of another size")):
        s3.put_object(Bucket=bucket, Key=key, Body=body)
        refused = buckets("restore", "1")
        assert refused.returncode == 1
        expected = f"restore: {bucket}/{key} is not part of this backup: empty or delete the bucket first\n"
        assert refused.stderr == expected
        s3.delete_object(Bucket=bucket, Key=key)


@pytest.mark.parametrize("damage", ["damaged", "missing"])
def test_a_damaged_backup_is_rejected_and_an_interrupted_restore_can_be_completed(
    damage: str, buckets: Callable[..., Any], s3: Any, bucket: str, tmp_path: Path
) -> None:
    buckets("save", "1")
    before = emptied(s3, bucket)
    entries = [json.loads(line) for line in (tmp_path / "1" / "objects.jsonl").read_text().splitlines()]
    [digest] = [entry["sha256"] for entry in entries if entry["key"] == "b/a"]
    path = tmp_path / "objects" / digest[:2] / digest
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content.replace(b"b/a", b"b/c", 1))
    refused = buckets("restore", "1")
    assert refused.returncode == 1
    assert refused.stderr == f"restore: {path} is {damage}: {bucket}/b/a cannot be restored\n"
    path.write_bytes(content)
    assert buckets("restore", "1").stdout == "6 objects restored\n"
    assert emptied(s3, bucket) == before


def test_the_next_backup_deletes_contents_that_no_backup_lists(
    buckets: Callable[..., Any], s3: Any, bucket: str, tmp_path: Path
) -> None:
    buckets("save", "1")
    s3.delete_object(Bucket=bucket, Key="large")
    buckets("save", "2")
    assert contents(tmp_path) == 5
    (tmp_path / "objects" / "left-by-a-killed-one").touch()
    listing = tmp_path / "1" / "objects.jsonl"
    whole = listing.read_bytes()
    listing.write_bytes(whole[:-9])
    warned = buckets("save", "3")
    assert (warned.returncode, contents(tmp_path)) == (0, 6)
    assert re.fullmatch(rf"save: {listing} is damaged .*; no contents are deleted until then\n", warned.stderr)
    listing.write_bytes(whole)
    assert buckets("save", "4").stdout == "5 objects saved, 0 of them fetched\n"
    assert contents(tmp_path) == 5
    shutil.rmtree(tmp_path / "1")
    buckets("save", "5")
    assert contents(tmp_path) == 4
    assert buckets("restore", "2").returncode == 0


def loaded(name: str) -> Any:
    """Import a script of infra/team-server."""
    script = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert script
    assert script.loader
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    return module


def test_an_object_that_is_deleted_while_buckets_are_saved_is_left_out(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = loaded("buckets")
    for key in ("kept", "gone"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    download = s3.download_fileobj

    def delete_and_download(name: str, key: str, file: Any) -> None:
        if key == "gone":
            s3.delete_object(Bucket=name, Key=key)
        download(name, key, file)

    monkeypatch.setattr(s3, "download_fileobj", delete_and_download)
    (tmp_path / "1").mkdir()
    module.save(s3, [bucket], tmp_path, tmp_path / "1" / "objects.jsonl")
    [line] = (tmp_path / "1" / "objects.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "kept"


def test_objects_of_equal_content_may_be_stored_at_the_same_time(
    s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = loaded("buckets")
    for key in ("one", "two"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"the same")
    link, both = os.link, threading.Barrier(2)

    def link_at_once(source: str, target: Path) -> None:
        both.wait(60)
        link(source, target)

    monkeypatch.setattr(module.os, "link", link_at_once)
    (tmp_path / "1").mkdir()
    module.save(s3, [bucket], tmp_path, tmp_path / "1" / "objects.jsonl")
    assert len((tmp_path / "1" / "objects.jsonl").read_text().splitlines()) == 2
    assert contents(tmp_path) == 1


def test_saving_a_missing_bucket_writes_no_listing(buckets: Callable[..., Any], tmp_path: Path) -> None:
    refused = buckets("save", "1", into="no-such-bucket")
    assert refused.returncode == 1
    assert "NoSuchBucket" in refused.stderr
    assert not (tmp_path / "1" / "objects.jsonl").exists()


def test_a_second_concurrent_backup_into_a_folder_is_rejected(tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    second = subprocess.run(["sh", SCRIPTS / "backup.sh", tmp_path], capture_output=True, text=True, check=False)
    os.close(folder)
    assert second.returncode == 1
    assert second.stderr == f"backup: another backup into {tmp_path} is still running\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", ["backup.sh", "restore.sh"])
def test_a_script_without_its_folder_prints_its_usage(script: str, tmp_path: Path) -> None:
    done = subprocess.run(["sh", SCRIPTS / script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"usage: {script} FOLDER")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    # where.sh is checked with those that source it.
    scripts = [path for path in SCRIPTS.glob("*.sh") if path.name != "where.sh"]
    done = subprocess.run([shellcheck, "-x", *scripts], cwd=SCRIPTS, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.slow
def test_the_address_of_the_store_answers_nothing_but_s3_without_a_login(
    described: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    # An address of its own, on which nothing else on this machine listens: the one that other containers reach.
    with seaweedfs(described["seaweedfs"], tmp_path / "seaweedfs", "127.0.0.2") as store:
        s3 = Session(**STRANGER, region_name="us-east-1").client("s3", endpoint_url=store)
        assert len(listening("127.0.0.2")) == 2, "S3 and its gRPC port"
        assert open_to_strangers(store) == []
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            s3.list_buckets()


def test_the_store_does_not_start_without_a_key_for_its_administration(tmp_path: Path) -> None:
    (tmp_path / "tr").write_text("#!/bin/sh\n")
    (tmp_path / "tr").chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(tmp_path), **SECRETS}
    started = subprocess.run(
        ["sh", SCRIPTS / "seaweedfs.sh"], env=environment, capture_output=True, text=True, check=False
    )
    assert started.returncode
    assert "no random key" in started.stderr


@pytest.mark.slow
def test_the_pipeline_may_add_entries_to_the_ledger_and_neither_alter_nor_delete_them(
    described: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seaweedfs(described["seaweedfs"], tmp_path / "seaweedfs") as store:
        for name, value in {**described["setup"]["environment"], "AWS_ENDPOINT_URL": store}.items():
            monkeypatch.setenv(name, value)
        setup = loaded("setup")
        for bucket in ("bebygan", "ledger"):
            setup.make_bucket(bucket)
        # A ledger of an earlier version.
        append("s3://bebygan/ledger", "bebygan", FIRST)
        for _ in range(2):
            setup.keep_ledger("ledger")
            setup.move_ledger("bebygan", "ledger/", "ledger")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", SECRETS["PIPELINE_KEY_ID"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRETS["PIPELINE_KEY"])
        check_writable(open_store("s3://ledger"), conditional=True)
        second = replace(FIRST, number=2, reason="second")
        append("s3://ledger", "bebygan", second)
        written = entries("s3://ledger", "bebygan")
        assert written == [FIRST, second]
        attack_ledger(Session().client("s3"), "ledger")
        assert entries("s3://ledger", "bebygan") == written
        assert append("s3://ledger", "bebygan", replace(second, reason="forged")) is None
