import errno
import io
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bebygan.errors import ConfigError, DataError, StorageError
from bebygan.settings import Retention
from bebygan.training import checkpoint
from bebygan.training.checkpoint import Checkpoints, Saved, checkpoints_in, identity_in, iteration_of, kept
from tests.conftest import free_ports

ROOT = Path(__file__).parents[3]
JOB = {"step": "train", "params.iterations": "6", "code": "a" * 64}
TWO = Retention(newest=2, every=0, best=None)


def state(number: float = 1, **more: Any) -> dict[str, Any]:
    return {"weights": torch.full((3, 4), float(number)), "history": [], "iteration": int(number), **more}


def save(folder: Path, *iterations: int, keep: Retention = TWO, history: list[dict[str, float]] | None = None) -> None:
    with Checkpoints(folder, JOB, keep) as checkpoints:
        for iteration in iterations:
            checkpoints.save(iteration, state(iteration, history=history or []))


def load(folder: Path, job: dict[str, str] = JOB) -> dict[str, Any] | None:
    with Checkpoints(folder, job, TWO) as checkpoints:
        return checkpoints.load()


def loaded_iteration(folder: Path) -> int:
    found = load(folder)
    assert found is not None
    return int(found["iteration"])


def names(folder: Path) -> list[int]:
    return [number for path in folder.iterdir() if (number := iteration_of(path.name)) is not None]


# What stays.


@pytest.mark.parametrize(
    ("keep", "stay"),
    [
        (Retention(newest=2, every=0, best=None), {50, 60}),
        (Retention(newest=3, every=0, best=None), {40, 50, 60}),
        (Retention(newest=2, every=20, best=None), {20, 40, 50, 60}),
        (Retention(newest=2, every=0, best="validation.psnr_y"), {30, 50, 60}),
        (Retention(newest=2, every=0, best="validation.l1"), {20, 50, 60}),
        (Retention(newest=2, every=25, best="validation.l1"), {20, 50, 60}),
    ],
)
def test_checkpoints_stay_by_number_by_interval_and_by_a_logged_value(keep: Retention, stay: set[int]) -> None:
    values = {12: 2.0, 20: 1.0, 30: 5.0, 40: 4.0, 55: 3.0}
    history = [{"iteration": float(at), "loss": 0.0} for at in range(60)]
    for at, value in values.items():
        history.append({"iteration": float(at), "validation.psnr_y": value, "validation.l1": value})
    assert kept([10, 20, 30, 40, 50, 60], keep, history, 60) == stay


def test_before_the_first_validation_there_is_no_best_checkpoint() -> None:
    assert kept([10, 20, 30], Retention(newest=2, every=0, best="validation.l1"), [{"iteration": 30.0}], 30) == {20, 30}


def test_later_checkpoints_than_the_one_just_written_do_not_stay() -> None:
    assert kept([10, 20, 30, 40], TWO, [], 30) == {20, 30}


def test_what_need_not_stay_is_removed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3, 4, 5, keep=Retention(newest=2, every=3, best=None))
    assert list(checkpoints_in(tmp_path)) == [3, 4, 5]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"iteration-0000000{number}.checkpoint" for number in (3, 4, 5)
    }


def test_only_the_names_of_checkpoints_are_taken_for_some() -> None:
    assert iteration_of("iteration-00000012.checkpoint") == 12
    assert iteration_of("iteration-123456789.checkpoint") == 123456789
    for name in ("iteration-12.checkpoint", "iteration-.checkpoint", "iteration-00000012.checkpoint.part", "other"):
        assert iteration_of(name) is None


# What is in it.


def test_a_state_comes_back_as_it_was_in_values_types_and_memory_order(tmp_path: Path) -> None:
    tensors = {
        "flat": torch.rand(3),
        "bfloat16": torch.rand(2, 2).bfloat16(),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "count": torch.tensor(7),
    }
    history = [{"iteration": 1, "loss": 0.5}]
    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        checkpoints.save(1, {"inner": {"list": [tensors], 0: (1, "text", None, True)}, "history": history})
    found = load(tmp_path)
    assert found is not None
    assert found["history"] == history
    assert found["inner"][0] == (1, "text", None, True)
    for name, tensor in tensors.items():
        back = found["inner"]["list"][0][name]
        assert (back.dtype, back.stride()) == (tensor.dtype, tensor.stride())
        assert torch.equal(back, tensor)


def test_every_random_generator_goes_on_where_it_stood(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.normal()), float(torch.rand(1))  # noqa: S311

    draw()  # Of each pair of normal numbers numpy keeps one for the next time.
    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        checkpoints.save(1, state())
    expected = [draw() for _ in range(3)]
    assert load(tmp_path) is not None
    assert [draw() for _ in range(3)] == expected


def test_the_job_can_be_read_without_the_state(tmp_path: Path) -> None:
    save(tmp_path, 1)
    content = (tmp_path / "iteration-00000001.checkpoint").read_bytes()
    assert identity_in(io.BytesIO(content[:1000])) == JOB
    for other in (b"", b"\xff\n\xff\n", content[:80], b"\n{}\n"):
        assert identity_in(io.BytesIO(other)) is None


# What is refused.


def test_another_job_is_refused_with_names_and_values(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = {"step": "train", "params.iterations": "8", "code": "b" * 64, "params.new": "1"}
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, other)
    assert str(caught.value) == (
        f"{tmp_path / 'iteration-00000001.checkpoint'} belongs to another run: "
        "code aaaaaaaaaaaa -> bbbbbbbbbbbb, params.iterations 6 -> 8, params.new unset -> 1; choose another folder"
    )


def test_a_newer_format_is_refused_with_both_numbers_and_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    current = checkpoint.FORMAT
    monkeypatch.setattr(checkpoint, "FORMAT", current + 1)
    save(tmp_path, 2)
    monkeypatch.undo()
    with pytest.raises(DataError, match=rf"2\.checkpoint has format {current + 1}, this version .* reads {current}: "):
        load(tmp_path)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",  # noqa: ARG005
    "digest": lambda content: b"0" + content[1:] if content[:1] != b"0" else b"1" + content[1:],
    "header": lambda content: content.replace(b'"train"', b'"trian"', 1),
    "body": lambda content: content[:-300] + bytes([content[-300] ^ 1]) + content[-299:],
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b"0",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_newest_falls_back_to_the_one_before_loudly(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    newest = tmp_path / "iteration-00000002.checkpoint"
    newest.write_bytes(DAMAGE[damage](newest.read_bytes()))
    assert loaded_iteration(tmp_path) == 1
    assert f"{newest} is damaged: its checksum does not match; falling back to the one before" in caplog.text


def test_after_a_fall_back_the_damaged_one_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    save(tmp_path, 10, 20)
    (tmp_path / "iteration-00000020.checkpoint").write_bytes(b"damaged")
    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        assert checkpoints.load() is not None
        checkpoints.save(15, state(15))
    assert list(checkpoints_in(tmp_path)) == [10, 15]


def test_where_all_are_damaged_nothing_is_begun_anew_by_itself(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(
        DataError, match=rf"every checkpoint in {tmp_path} is damaged: remove them to start from the beginning"
    ):
        load(tmp_path)


def test_without_a_folder_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    assert load(tmp_path / "new" / "folder") is None


# While training goes on.


class Gate:
    """Holds the writer up until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()
        write = torch.save

        def wait_and_write(*arguments: Any) -> None:
            self.reached.set()
            assert self.opened.wait(30)
            write(*arguments)

        monkeypatch.setattr(torch, "save", wait_and_write)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.opened.set()


def test_saving_returns_before_anything_is_written_and_training_may_change_the_state(
    tmp_path: Path, gate: Gate
) -> None:
    tensors = state(1)
    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        checkpoints.save(1, tensors)
        assert gate.reached.wait(30)
        tensors["weights"].fill_(99)
        tensors["history"].append({"iteration": 2})
        assert not names(tmp_path)
        gate.opened.set()
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found["weights"], torch.ones(3, 4))
    assert found["history"] == []


def test_the_next_save_waits_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        checkpoints.save(1, state(1))
        assert gate.reached.wait(30)
        second = threading.Thread(target=checkpoints.save, args=(2, state(2)))
        second.start()
        second.join(0.2)
        assert second.is_alive()
        gate.opened.set()
        second.join(30)
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found["weights"], torch.full((3, 4), 2.0))
    (tmp_path / "iteration-00000002.checkpoint").unlink()
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found["weights"], torch.ones(3, 4))


def test_each_checkpoint_is_told_once_it_is_there(tmp_path: Path) -> None:
    told: list[tuple[str, bool, set[int]]] = []
    saved: Saved = lambda path, keep: told.append((path.name, path.is_file(), keep([1, 2, 3, 4])))  # noqa: E731
    with Checkpoints(tmp_path, JOB, TWO, saved) as checkpoints:
        for iteration in (3, 4):
            checkpoints.save(iteration, state(iteration))
    assert told == [
        ("iteration-00000003.checkpoint", True, {2, 3}),
        ("iteration-00000004.checkpoint", True, {3, 4}),
    ]


def test_a_bug_in_writing_is_not_swallowed(tmp_path: Path) -> None:
    with pytest.raises((TypeError, AttributeError)), Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        checkpoints.save(1, state(1, lock=threading.Lock()))


# Where the disk refuses.


def test_a_full_disk_stops_nothing_and_room_that_is_made_is_used(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ballast = small_disk / "ballast"
    large = torch.rand(10_000)
    with Checkpoints(small_disk / "job", JOB, TWO) as checkpoints:
        assert checkpoints.load() is None
        checkpoints.save(1, state(1, large=large))
        checkpoints.wait()
        ballast.write_bytes(bytes(50_000))
        checkpoints.save(2, state(2, large=large))
        with pytest.raises(StorageError, match=r"cannot write .*: the disk is full"):
            checkpoints.wait()
        assert "warning: no checkpoint of iteration 2: cannot write" in caplog.text
        assert "Training continues" in caplog.text
        assert names(small_disk / "job") == [1]
        ballast.unlink()
        checkpoints.save(3, state(3, large=large))
        checkpoints.wait()
    assert loaded_iteration(small_disk / "job") == 3
    assert not list((small_disk / "job").glob(".*"))


def test_a_read_only_folder_is_known_before_training(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match=r"cannot write .*: the file system is read-only"):
        load(small_disk / "job")


def test_a_fault_of_the_disk_itself_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with Checkpoints(tmp_path, JOB, TWO) as checkpoints:
        monkeypatch.setattr(os, "fsync", fails)
        checkpoints.save(1, state())
        with pytest.raises(StorageError, match=r"cannot write .*Input/output error"):
            checkpoints.wait()
    assert not names(tmp_path)


# Several processes.

RANK = """
import sys
import torch
from pathlib import Path
from torch import distributed
from tests.bebygan.training.test_checkpoint import JOB, TWO, state
from bebygan.errors import BebyganError
from bebygan.training.checkpoint import Checkpoints

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(rank)
# Only the first has the folder at all: nodes need not share one.
folder = Path(sys.argv[3]) if rank == 0 else Path("/nonexistent")
with Checkpoints(folder, JOB, TWO) as checkpoints:
    assert checkpoints.load() is None
    checkpoints.save(5, state(5))
    drawn = torch.rand(2)
with Checkpoints(folder, JOB, TWO) as checkpoints:
    found = checkpoints.load()
    assert found["iteration"] == 5
    assert torch.equal(torch.rand(2), drawn)
with Checkpoints(folder, {"step": "other"}, TWO) as checkpoints:
    try:
        checkpoints.load()
    except BebyganError as error:
        print(*drawn.tolist(), error)
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_the_first_of_several_processes_reads_and_writes_for_all(tmp_path: Path) -> None:
    [port] = free_ports(1)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(port), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0]
    assert outputs[0] != outputs[1]
    for output in outputs:
        assert "belongs to another run: code aaaaaaaaaaaa -> unset" in output
    assert names(tmp_path) == [5]
