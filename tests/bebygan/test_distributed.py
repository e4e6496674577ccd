import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from bebygan.distributed import (
    GPUS,
    any_process,
    joined,
    mean_over_processes,
    processes,
    rank,
    share_of,
    sum_over_processes,
)
from bebygan.errors import ConfigError, ServiceError
from bebygan.imaging.shards import read_patches
from bebygan.training.checkpoint import checkpoints_in
from bebygan.training.sampling import Loader, batch
from tests.bebygan.training.process import TRAINED, WHOLE, gradients, train
from tests.bebygan.training.test_loop import SETTINGS, assert_equal, make_patches
from tests.conftest import free_ports

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "training" / "process.py"
ROOT = Path(__file__).parents[2]
Pair = Callable[..., list[tuple[int, str]]]


def environment(**changes: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "patches").mkdir()
    make_patches(tmp_path / "patches")
    return tmp_path


@pytest.fixture
def two(folder: Path) -> Pair:
    """Starts two processes of a training; gives the exit code and standard error of each."""

    def start(what: str) -> list[tuple[int, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        started = [
            subprocess.Popen(
                [sys.executable, str(PROGRAM), what, str(folder)], stderr=subprocess.PIPE, text=True,
                env=environment(WORLD_SIZE="2", RANK=str(number), LOCAL_WORLD_SIZE="2", MASTER_PORT=port),
            )
            for number in range(2)
        ]  # fmt: skip
        errors = [process.communicate(timeout=300)[1] for process in started]
        return [(process.returncode, error) for process, error in zip(started, errors, strict=True)]

    return start


def test_two_processes_compute_the_losses_and_gradients_of_one_with_the_double_batch(two: Pair, folder: Path) -> None:
    assert [code for code, _ in two("equal")] == [0, 0]
    both = [torch.load(folder / f"gradients-{number}.pt") for number in range(2)]
    expected = gradients(TRAINED)

    for name, value in expected.items():
        if name.startswith("0."):
            # Of a process's losses the mean is that of the batch; norms are of what is averaged already.
            of_one = [both[number][f"{number}.{name[2:]}"] for number in range(2)]
            found = sum(of_one) / 2
            torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10, msg=name)
        else:
            for found in (both[0][name], both[1][name]):
                torch.testing.assert_close(found, value, rtol=1e-10, atol=1e-10, msg=name)
    assert any(name.endswith("running_var") for name in expected)
    assert any(name.startswith("discriminator.bn") for name in expected)

    local = torch.load(folder / "local-0.pt")
    assert not torch.allclose(local["discriminator.linear2.weight"], expected["discriminator.linear2.weight"])


def test_torchrun_trains_in_two_processes_as_in_one(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(PROGRAM), "train", str(folder)], env=environment(), check=True, capture_output=True, text=True
    )
    first, second = (torch.load(folder / f"state-{number}.pt") for number in range(2))

    assert_equal(first, second)
    assert [entry["iteration"] for entry in first["history"] if "validation.psnr_y" in entry] == [0, 2, 4, 6]
    assert done.stdout.split() == [str(iteration) for iteration in range(TRAINED.iterations + 1)]
    assert set(checkpoints_in(folder / "checkpoints")) == {4, 6}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "patches").symlink_to(folder / "patches")
    alone = train(tmp_path / "alone", TRAINED).state_dict()
    assert first["generator"].keys() == alone["generator"].keys()
    for entry, expected in zip(first["history"], alone["history"], strict=True):
        assert entry == pytest.approx(expected, rel=2e-3, abs=1e-4)
    for kind in ("generator", "average", "discriminator"):
        for name, value in alone[kind].items():
            torch.testing.assert_close(first[kind][name], value, rtol=1e-2, atol=2e-3, msg=name)


def test_a_stop_request_to_one_process_stops_all_after_the_same_iteration(two: Pair, folder: Path) -> None:
    ended = two("one-stops")
    assert [code for code, _ in ended] == [75, 75], ended
    assert all("stopped on request after iteration 10;" in error for _, error in ended)
    assert set(checkpoints_in(folder / "checkpoints")) == {10}


def test_a_process_that_dies_ends_the_others_within_a_minute_and_in_one_line(two: Pair) -> None:
    started = time.monotonic()
    (code, error), (killed, _) = two("one-dies")
    assert time.monotonic() - started < 60
    assert killed < 0
    assert code == 75
    assert "error: another process of the training ended or lost its network" in error
    assert "Traceback" not in error


def test_a_process_that_hangs_does_not_hold_the_others_for_ever(two: Pair) -> None:
    (code, error), _ = two("one-hangs")
    assert code == 75
    assert re.search(r"^error: another process .* lost its network \(.*Timed out waiting 1000ms", error, re.M), error


def test_fewer_gpus_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="4 processes were requested on a machine with 2 GPUs"), joined():
        pass


def test_a_machine_that_should_have_gpus_and_has_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv(GPUS, "1")
    with pytest.raises(ConfigError, match="1 GPUs were requested and 0 are visible"), joined():
        pass


def test_an_interface_that_a_machine_lacks_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    names = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    for name, value in (names | {"GLOO_SOCKET_IFNAME": "nowhere0"}).items():
        monkeypatch.setenv(name, value)
    other = threading.Thread(target=lambda: distributed.TCPStore("127.0.0.1", port, 2, is_master=False))
    other.start()
    with pytest.raises(ServiceError, match=r"cannot connect at .*Unable to find address for: nowhere0"), joined():
        pass
    other.join(60)


def test_a_port_in_use_is_told_in_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            [sys.executable, str(PROGRAM), "train", str(folder)], capture_output=True, text=True, check=False,
            env=environment(WORLD_SIZE="2", RANK="0", LOCAL_WORLD_SIZE="2", MASTER_PORT=port),
        )  # fmt: skip
    assert ended.returncode == 4
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert f"cannot connect at 127.0.0.1:{port}" in line


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert share_of(WHOLE, 2) == WHOLE
    monkeypatch.setattr("bebygan.distributed.processes", lambda: 3)
    with pytest.raises(ConfigError, match="a batch of 8 cannot be divided among 3 processes in 1 parts each"):
        share_of(8, 1)
    with pytest.raises(ConfigError, match="choose a multiple of 6"):
        share_of(9, 2)


def test_the_shares_of_two_processes_are_the_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches, settings, cpu = read_patches(folder / "patches", "train"), replace(SETTINGS, batch=4), torch.device("cpu")
    expected = batch(patches, settings.seed, 3 * 4, 4, crop=settings.crop, device=cpu)
    shares = []
    for number in range(2):
        monkeypatch.setattr("bebygan.training.sampling.rank", lambda number=number: number)
        with Loader(patches, settings, 2, cpu) as loader:
            for iteration in (0, 1, 3):
                found = loader.load(iteration)
            shares.append(found)
    for ours, whole in zip(zip(*shares, strict=True), expected, strict=True):
        assert torch.equal(torch.cat(ours), whole)


def test_a_process_alone_is_the_first_of_one() -> None:
    with joined():
        assert (processes(), rank(), any_process(True), any_process(False)) == (1, 0, True, False)
        values = torch.rand(3, requires_grad=True)
        assert sum_over_processes(values) is values
        assert mean_over_processes(values) == values.mean()
