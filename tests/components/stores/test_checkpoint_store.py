import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bebygan.errors import ConfigError, DataError, Preempted, ServiceError, StorageError
from bebygan.settings import Retention
from bebygan.training.checkpoint import Checkpoints, checkpoints_in, name_of
from components.stores.checkpoint_store import folder_name, open_checkpoints
from tests.conftest import free_ports

JOB = {"step": "train", "params.iterations": "6", "code": "a" * 64}
TWO = Retention(newest=2, every=0, best=None)


def save(root: str, *iterations: int, keep: Retention = TWO, job: dict[str, str] = JOB) -> Path:
    with open_checkpoints(root, job, first=True) as (folder, saved), Checkpoints(folder, job, keep, saved) as files:
        for iteration in iterations:
            files.save(iteration, {"iteration": iteration, "history": [], "weights": torch.full((9,), iteration)})
    return folder


def age_files(folder: Path, seconds: float) -> None:
    """Set the modification times of the files of a folder to a time in the past."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)


def resumed_from(root: str) -> int | None:
    with open_checkpoints(root, JOB, first=True) as (folder, saved), Checkpoints(folder, JOB, TWO, saved) as files:
        found = files.load()
    return found and int(found["iteration"])


@pytest.fixture
def new_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give this process an empty temporary folder, like that of a new pod."""
    pods = iter(range(100))

    def begin() -> None:
        folder = tmp_path / f"pod {next(pods)}"
        folder.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(folder))

    begin()
    return begin


@pytest.fixture
def prefix(bucket: str) -> str:
    return f"s3://{bucket}/checkpoints"


@pytest.fixture
def stored(s3: Any, bucket: str) -> Callable[[], set[str]]:
    """Return a function that lists the keys of the bucket."""
    return lambda: {entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", ())}


def keys(*iterations: int) -> set[str]:
    return {f"checkpoints/{folder_name(JOB)}/{name_of(iteration)}" for iteration in iterations}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_folder_name_of_a_job_does_not_depend_on_the_order_of_its_keys() -> None:
    assert folder_name(JOB) == folder_name(dict(reversed(JOB.items())))
    assert re.fullmatch(r"train-[0-9a-f]{16}", folder_name(JOB))
    for name in JOB:
        assert folder_name(JOB | {name: "other"}) != folder_name(JOB)


def test_training_writes_directly_to_a_folder(tmp_path: Path) -> None:
    save(str(tmp_path / "volume"), 1, 2)
    assert list(checkpoints_in(tmp_path / "volume" / folder_name(JOB))) == [1, 2]
    assert resumed_from(str(tmp_path / "volume")) == 2


def test_the_folder_of_another_job_raises_an_error_with_the_differences(tmp_path: Path) -> None:
    folder = save(str(tmp_path), 1, job=JOB | {"params.iterations": "8"})
    with pytest.raises(ConfigError, match=r"belongs to another run: params\.iterations 8 -> 6; choose"):
        resumed_from(str(folder))
    assert resumed_from(str(save(str(tmp_path), 3))) == 3


def test_starting_from_the_beginning_logs_the_differences_from_the_newest_other_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for iterations, age in (("7", 100), ("8", 50)):
        folder = save(str(tmp_path), 1, job=JOB | {"params.iterations": iterations})
        age_files(folder, age)
    caplog.set_level(logging.INFO, logger="components.stores.checkpoint_store")
    # The second message appears only if a command line configured logging earlier in this process.
    caplog.clear()
    save(str(tmp_path), 1)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == f"train starts from the beginning; changed since the job in {folder}: params.iterations 8 -> 6"
    caplog.clear()
    save(str(tmp_path), 2)
    assert not caplog.records


ENDED = JOB | {"params.keep.every": "0", "params.keep.best": "None"}
OTHERS = {
    "ended": (6, ENDED),
    "running": (5, ENDED),
    "kept every thousandth": (6, ENDED | {"params.keep.every": "1000"}),
    "kept the best": (6, ENDED | {"params.keep.best": "validation.psnr_y"}),
    "of another step": (6, ENDED | {"step": "warmup"}),
}


def test_only_jobs_that_ended_long_ago_are_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="components.stores.checkpoint_store")
    others = {name: save(str(tmp_path), 4, last, job=job | {"name": name}) for name, (last, job) in OTHERS.items()}
    for folder in others.values():
        age_files(folder, 15 * 24 * 3600)
    others["ended lately"] = save(str(tmp_path), 6, job=ENDED | {"name": "ended lately"})
    others["damaged"] = tmp_path / "train-0123456789abcdef"
    others["damaged"].mkdir()
    (others["damaged"] / name_of(6)).write_bytes(b"damaged")
    age_files(others["damaged"], 15 * 24 * 3600)

    save(str(tmp_path), 6, job=ENDED)
    assert {name for name, folder in others.items() if not folder.exists()} == {"ended"}
    assert f"{others['ended']} is deleted: its training ended long ago" in caplog.text


def test_a_job_that_stopped_itself_long_ago_is_deleted_too(tmp_path: Path) -> None:
    folder = save(str(tmp_path), 2, job=ENDED | {"name": "stopped itself"})
    with Checkpoints(folder, ENDED | {"name": "stopped itself"}, Retention(newest=2, every=0, best=None)) as saver:
        saver.save(4, {"history": []}, stopped=True)
    age_files(folder, 15 * 24 * 3600)
    save(str(tmp_path), 6, job=ENDED)
    assert not folder.exists()


@pytest.mark.usefixtures("new_pod")
def test_jobs_that_ended_long_ago_are_deleted_from_the_bucket_and_the_local_folder(
    prefix: str, stored: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: save(prefix, 4, last, job=job | {"name": name}) for name, (last, job) in OTHERS.items()}
    assert len(stored()) == 10
    monkeypatch.setattr("components.stores.checkpoint_store._SECONDS_AFTER_THE_END", -3600.0)
    save(prefix, 4)
    gone = folder_name(ENDED | {"name": "ended"})
    assert {key.split("/")[1] for key in stored()} == {folder.name for folder in folders.values()} - {gone} | {
        folder_name(JOB)
    }
    assert {name for name, folder in folders.items() if not folder.exists()} == {"ended"}


@pytest.mark.usefixtures("new_pod")
def test_starting_from_the_beginning_in_a_bucket_logs_the_differences(
    prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = JOB | {"params.iterations": "8"}
    save(prefix, 1, job=other)
    caplog.set_level(logging.INFO, logger="components.stores.checkpoint_store")
    caplog.clear()
    save(prefix, 1)
    save(prefix, 2)
    [line] = [record.getMessage() for record in caplog.records]
    assert line == (
        f"train starts from the beginning; changed since the job in {prefix}/{folder_name(other)}: "
        "params.iterations 8 -> 6"
    )


@pytest.mark.usefixtures("new_pod")
def test_the_prefix_of_another_job_raises_an_error_with_the_differences(
    prefix: str, stored: Callable[[], set[str]]
) -> None:
    folder = save(prefix, 1, job=JOB | {"params.iterations": "8"})
    before = stored()
    with pytest.raises(ConfigError, match=r"belongs to another run: params\.iterations 8 -> 6; choose"):
        resumed_from(f"{prefix}/{folder.name}")
    assert stored() == before
    assert resumed_from(prefix) is None
    assert resumed_from(f"{prefix}/{save(prefix, 3).name}") == 3


@pytest.mark.usefixtures("new_pod")
@pytest.mark.parametrize("first", [True, False])
def test_files_on_a_divergence_are_copied_to_the_bucket(
    prefix: str, first: bool, stored: Callable[[], set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    name = "not-finite-00000005-process-0.safetensors"
    with pytest.raises(DataError), open_checkpoints(prefix, JOB, first=first) as (folder, _):  # noqa: PT012
        folder.mkdir(parents=True)
        (folder / name).write_bytes(b"lr and hr")
        raise DataError("training diverged")
    assert stored() == {f"checkpoints/{folder_name(JOB)}/{name}"}
    assert not warnings(caplog)


@pytest.mark.usefixtures("new_pod")
def test_the_bucket_has_the_checkpoints_that_are_kept(prefix: str, stored: Callable[[], set[str]]) -> None:
    save(prefix, 1, 2, 3)
    assert stored() == keys(2, 3)
    save(prefix, 4, 5, 6, keep=Retention(newest=2, every=3, best=None))
    assert stored() == keys(3, 5, 6)


def test_a_new_pod_resumes_from_the_bucket(
    prefix: str, stored: Callable[[], set[str]], new_pod: Callable[[], None]
) -> None:
    save(prefix, 1, 2, 3)
    new_pod()
    assert resumed_from(prefix) == 3
    new_pod()
    save(prefix, 4)
    # Checkpoints that exist only in the bucket count and are kept.
    assert stored() == keys(3, 4)


def test_newer_local_checkpoints_are_not_replaced_by_the_bucket(
    prefix: str, s3: Any, bucket: str, new_pod: Callable[[], None]
) -> None:
    folder = save(prefix, 1, 2)
    (folder / name_of(2)).rename(folder / name_of(3))
    new_pod()
    save(prefix, 9)
    for number in (1, 9):
        s3.delete_object(Bucket=bucket, Key=next(iter(keys(number))))
    assert resumed_from(prefix) == 9


def test_training_resumes_from_the_previous_checkpoint_if_the_newest_is_damaged(
    prefix: str, s3: Any, bucket: str, new_pod: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    save(prefix, 1, 2)
    s3.put_object(Bucket=bucket, Key=next(iter(keys(2))), Body=b"damaged")
    new_pod()
    assert resumed_from(prefix) == 1
    assert "is damaged" in caplog.text


@pytest.mark.usefixtures("new_pod")
def test_a_truncated_local_checkpoint_is_downloaded_again(prefix: str) -> None:
    folder = save(prefix, 1, 2)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert resumed_from(prefix) == 2


@pytest.mark.usefixtures("new_pod")
def test_only_the_first_process_contacts_the_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with open_checkpoints("s3://bucket/checkpoints", JOB, first=False) as (_, saved):
        assert saved is None


@pytest.mark.usefixtures("new_pod")
def test_an_unreachable_bucket_at_the_start_raises_an_error(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(ServiceError, match="does not answer"), open_checkpoints(f"s3://{bucket}/c", JOB, first=True):
        pass


class Relay:
    """Relay between a client and the S3 server; a test can interrupt it."""

    def __init__(self, endpoint: str) -> None:
        [self.port] = free_ports(1)
        self._target = endpoint.rpartition(":")[2]
        self._process: subprocess.Popen[bytes] | None = None
        self.open()

    def open(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", RELAY, str(self.port), self._target], stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"open\n"

    def cut(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


RELAY = """
import asyncio
import sys

async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()

async def relay(reader, writer):
    upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    await asyncio.gather(copy(reader, upstream_writer), copy(upstream_reader, writer))

async def main():
    async with await asyncio.start_server(relay, "127.0.0.1", int(sys.argv[1])) as server:
        print("open", flush=True)
        await server.serve_forever()

asyncio.run(main())
"""


@pytest.fixture
def relay(s3_endpoint: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:  # noqa: ARG001
    relay = Relay(s3_endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{relay.port}")
    yield relay
    relay.cut()


@pytest.mark.slow
@pytest.mark.usefixtures("new_pod")
def test_an_outage_of_the_bucket_does_not_delay_training_and_copies_follow_later(
    prefix: str, relay: Relay, stored: Callable[[], set[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="components.stores.checkpoint_store")
    keep = Retention(newest=2, every=4, best=None)
    with open_checkpoints(prefix, JOB, first=True) as (folder, saved), Checkpoints(folder, JOB, keep, saved) as files:

        def one(iteration: int) -> None:
            files.save(iteration, {"iteration": iteration, "history": []})
            files.wait()

        one(1)
        deadline = time.monotonic() + 60
        while stored() != keys(1):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        relay.cut()
        started = time.monotonic()
        for iteration in (2, 3, 4, 5):
            one(iteration)
        assert time.monotonic() - started < 2
        while not warnings(caplog):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        relay.open()
        one(6)
    assert stored() == keys(4, 5, 6)
    assert len(warnings(caplog)) == 1
    assert f"{prefix}/{folder_name(JOB)} has all checkpoints again" in caplog.text
    assert re.search(
        r"is only on this machine: .* does not answer for .* Training continues; the copy is retried",
        warnings(caplog)[0],
    )


@pytest.mark.slow
@pytest.mark.usefixtures("new_pod")
def test_a_stopped_process_waits_only_seconds_for_an_unreachable_bucket(
    prefix: str, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    started = 0.0
    with pytest.raises(Preempted), open_checkpoints(prefix, JOB, first=True) as (folder, saved):  # noqa: PT012
        with Checkpoints(folder, JOB, TWO, saved) as files:
            relay.cut()
            files.save(1, {"iteration": 1, "history": []})
        started = time.monotonic()
        raise Preempted("stopped")
    assert time.monotonic() - started < 15
    assert warnings(caplog)
    assert list(checkpoints_in(folder)) == [1]


@pytest.mark.parametrize("planted", ["by another user", "with a link", "open to others"])
def test_a_checkpoint_that_another_user_may_have_planted_is_not_resumed(
    planted: str, prefix: str, new_pod: Callable[[], None], tmp_path: Path
) -> None:
    forged = save(str(tmp_path / "forged"), 5)
    new_pod()
    ours = Path(tempfile.gettempdir()) / f"bebygan-{os.getuid()}"
    folder = tmp_path / "elsewhere" if planted == "with a link" else ours
    shutil.copytree(forged.parent, folder / "checkpoints")
    if planted == "with a link":
        ours.symlink_to(folder)
    elif planted == "open to others":
        folder.chmod(0o770)
    elif os.geteuid():
        pytest.skip("giving a folder to another user takes root")
    else:
        os.chown(folder, 12345, 12345)

    with pytest.raises(
        StorageError, match=rf"^{re.escape(str(ours))} is a link, belongs to another user, or others may"
    ):
        resumed_from(prefix)


def test_the_local_folder_of_a_bucket_s_checkpoints_is_private(prefix: str, new_pod: Callable[[], None]) -> None:
    del new_pod
    earlier = Path(tempfile.gettempdir()) / f"bebygan-{os.getuid()}"
    earlier.mkdir(mode=0o755)
    save(prefix, 2)
    assert stat.S_IMODE(earlier.stat().st_mode) == 0o700
    assert resumed_from(prefix) == 2
