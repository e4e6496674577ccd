import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from tenacity import wait_fixed

from components.stores.retries import IN_BACKGROUND
from components.tracking.delivery import Delivery

SOON = IN_BACKGROUND.copy(wait=wait_fixed(0.05))
RUN = "a" * 32


class Client:
    """Replacement of MLflow's client that records calls and can be unreachable."""

    def __init__(self) -> None:
        self.reachable = True
        self.hangs: threading.Event | None = None
        self.tries = 0
        self.calls: list[str] = []

    def _call(self, what: str) -> None:
        self.tries += 1
        if self.hangs is not None:
            self.hangs.wait(60)
        if not self.reachable:
            raise MlflowException("unreachable")
        self.calls.append(what)

    def log_batch(self, run_id: str, metrics: list[Metric]) -> None:
        self._call(f"{run_id[0]}: {metrics[0].key} {metrics[0].step} to {metrics[-1].step}")

    def log_artifact(self, run_id: str, path: str, under: str) -> None:
        assert Path(path).read_bytes().startswith(b"\x89PNG")
        self._call(f"{run_id[0]}: {under}/{Path(path).name}")

    def set_terminated(self, run_id: str, status: str, end_time: int | None = None) -> None:
        self._call(f"{run_id[0]}: {status} {end_time}")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def spools(tmp_path: Path) -> Path:
    return tmp_path / "untracked"


def delivery(client: Any, spools: Path) -> Delivery:
    return Delivery(client, RUN, spools, SOON)


def values(first: int, last: int | None = None) -> list[Metric]:
    return [Metric("loss", float(step), 7, step) for step in range(first, (last or first) + 1)]


def line(step: int, **more: object) -> str:
    return json.dumps({"run_id": "b" * 32, "name": "loss", "value": 1.0, "step": step, "time": 7, **more}) + "\n"


def wait_for(what: Callable[[], object]) -> None:
    deadline = threading.Event()
    for _ in range(600):
        if what():
            return
        deadline.wait(0.05)
    raise AssertionError


def test_values_are_sent_in_order_in_requests_of_a_thousand_before_the_status(client: Client, spools: Path) -> None:
    sender = delivery(client, spools)
    sender.put(values(1, 2500))
    sender.put_picture("samples.png", np.zeros((4, 4, 3), np.uint8))
    sender.close("FINISHED", 60)
    batches = [f"a: loss {first} to {min(first + 999, 2500)}" for first in (1, 1001, 2001)]
    assert client.calls == [*batches, "a: pictures/samples.png", "a: FINISHED None"]
    assert not list(spools.glob("*"))


def test_unsent_values_stay_in_the_spool_with_one_warning(
    client: Client, spools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client.reachable = False
    sender = delivery(client, spools)
    sender.put(values(1))
    sender.put_picture("samples.png", np.zeros((4, 4, 3), np.uint8))
    wait_for(lambda: client.tries > 3)
    sender.put(values(2))
    wait_for(lambda: [len(path.read_text().splitlines()) for path in spools.glob("*.jsonl")] == [2])
    assert [path.name for path in spools.glob("*.pictures/*")] == ["samples.png"]
    client.reachable = True
    wait_for(lambda: not list(spools.iterdir()))
    sender.put(values(3))
    sender.close("FINISHED", 60)
    assert client.calls[-2:] == ["a: loss 3 to 3", "a: FINISHED None"]
    assert "a: pictures/samples.png" in client.calls
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in messages] == ["warning", "MLflow has all values again"]


def test_the_next_process_sends_the_values_of_a_run_whose_server_hung_at_its_end(client: Client, spools: Path) -> None:
    client.hangs = threading.Event()
    sender = delivery(client, spools)
    sender.put(values(1))
    wait_for(lambda: client.tries)
    sender.put(values(2))
    sender.close("KILLED", 0.2)
    [spool] = spools.glob("*.jsonl")
    kept = [json.loads(text) for text in spool.read_text().splitlines()]
    assert [entry.get("step") or entry["status"] for entry in kept] == [1, 2, "KILLED"]
    client.hangs.set()
    wait_for(lambda: not sender._thread.is_alive())
    assert spool.exists()
    other = Client()
    Delivery(other, "c" * 32, spools, SOON).close("FINISHED", 60)  # type: ignore[arg-type]
    assert other.calls == ["a: loss 1 to 2", f"a: KILLED {kept[2]['time']}", "c: FINISHED None"]
    assert not list(spools.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        b"\xff\xfe\x00 not UTF-8\n", b"not JSON\n", b"[1, 2]\n", b'"text"\n', b"null\n", b'{"run_id": "b"}\n',
        b"[" * 9999 + b"\n", line(9, value="much").encode(), line(9, time=None).encode(), line(9, time=1e400).encode(),
    ],
)  # fmt: skip
def test_valid_lines_of_a_damaged_spool_are_sent_and_the_spool_is_renamed(
    damage: bytes, client: Client, spools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spools.mkdir()
    (spools / "b.1.jsonl").write_bytes(line(1).encode() + damage + line(2).encode())
    (spools / "b.2.jsonl").write_text(line(3))
    for _ in range(2):
        sender = delivery(client, spools)
        sender.put(values(5))
        sender.close("FINISHED", 60)
    sent = ["a: loss 5 to 5", "a: FINISHED None"]
    assert client.calls == ["b: loss 1 to 2", "b: loss 3 to 3", *sent, *sent]
    assert [path.name for path in spools.iterdir()] == ["b.1.damaged"]
    assert damage in (spools / "b.1.damaged").read_bytes()
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said == [f"warning: 1 lines that an earlier run left are damaged. They stay in {spools / 'b.1.damaged'}"]


def test_a_line_that_differs_from_its_digest_is_not_sent(client: Client, spools: Path) -> None:
    client.reachable = False
    sender = delivery(client, spools)
    sender.put([*values(1), *values(2)])
    wait_for(lambda: client.tries)
    sender.close("FINISHED", 0.2)
    [spool] = spools.glob("*.jsonl")
    content = spool.read_text()
    spool.write_text(content.replace('"step": 2', '"step": 3'))
    assert spool.read_text() != content
    other = Client()
    Delivery(other, "c" * 32, spools, SOON).close("FINISHED", 60)  # type: ignore[arg-type]
    assert other.calls[0] == "a: loss 1 to 1"
    assert [path.suffix for path in spools.iterdir()] == [".damaged"]


@pytest.mark.parametrize("cut", [b'{"run_id": "b', b"\xff", line(2).encode()[:-1]])
def test_an_incomplete_last_line_does_not_count_as_damage(cut: bytes, client: Client, spools: Path) -> None:
    spools.mkdir()
    (spools / "b.1.jsonl").write_bytes(line(1).encode() + cut)
    delivery(client, spools).close("FINISHED", 60)
    assert client.calls[0] in ("b: loss 1 to 1", "b: loss 1 to 2")
    assert not list(spools.iterdir())


def test_pictures_of_a_killed_process_are_sent(client: Client, spools: Path) -> None:
    name = "b" * 32
    (spools / f"{name}.1.pictures").mkdir(parents=True)
    (spools / f"{name}.1.pictures" / "samples.png").write_bytes(b"\x89PNG")
    (spools / f"{name}.1.pictures" / "part").write_bytes(b"\x89P")
    (spools / f"{name}.1.jsonl").touch()
    delivery(client, spools).close("FINISHED", 60)
    assert client.calls == ["b: pictures/samples.png", "a: FINISHED None"]
    assert not list(spools.iterdir())


def test_a_disk_that_fills_up_does_not_fail_the_end_of_a_step(
    client: Client, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"0" * 4096)
    client.reachable = False
    sender = delivery(client, small_disk)
    sender.put(values(1))
    wait_for(lambda: client.tries)
    sender.close("FINISHED", 0.2)
    assert f"values cannot be kept in {small_disk}" in caplog.text


def test_a_full_disk_loses_values_and_does_not_fail_the_step(
    client: Client, spools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spools.parent.mkdir(exist_ok=True)
    spools.write_text("a file is where the folder should be")
    client.reachable = False
    sender = delivery(client, spools)
    sender.put(values(1))
    sender.put_picture("samples.png", np.zeros((4, 4, 3), np.uint8))
    wait_for(lambda: "values cannot be kept in" in caplog.text and "the picture samples.png cannot" in caplog.text)
    client.reachable = True
    sender.close("FINISHED", 60)
    assert client.calls == ["a: loss 1 to 1", "a: FINISHED None"]
