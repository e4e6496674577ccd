import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from bebygan.metrics.perceptual import Heads
from bebygan.networks.generator import Generator
from bebygan.networks.perceptual import AlexNet, Vgg
from bebygan.settings import GeneratorShape
from benchmarks import gpu, gpu_checks
from benchmarks.gpu_bundle import pack, unpack

ROOT = Path(__file__).parents[2]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Weights of a tiny generator, and of as few layers of the frozen networks as work."""
    torch.manual_seed(0)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2))
    networks = {
        "realsr-df2k-x4": generator, "vgg16": Vgg("vgg16", "conv1_2"), "alexnet": AlexNet(), "lpips-alex": Heads(),
    }  # fmt: skip
    pack({name: network.state_dict() for name, network in networks.items()}, tmp_path / "weights.npz")
    return tmp_path / "weights.npz"


@pytest.fixture
def four(tmp_path: Path, picture: Callable[..., Image.Image]) -> Path:
    folder = tmp_path / "four"
    folder.mkdir()
    for seed in range(4):
        picture(seed, 96, 96).save(folder / f"{seed}.png")
    return folder


def test_the_bundle_returns_weights_rounded_to_float16_and_biases_as_they_were(bundle: Path) -> None:
    torch.manual_seed(0)
    wanted = Generator(GeneratorShape(blocks=1, features=4, growth=2)).state_dict()
    found = unpack(bundle)["realsr-df2k-x4"]
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value if key.endswith("bias") else value.half().float())


@pytest.mark.slow
def test_the_door_runs_every_part_in_small_on_a_cpu(bundle: Path, four: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [ROOT / "benchmarks/gpu.sh", "run", "--small", "--weights", bundle, "--photographs", four]
    # Compiling takes minutes; tests/bebygan/test_precision.py compiles.
    environment = os.environ | {
        "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1",
    }  # fmt: skip
    done = subprocess.run(
        [*map(str, command), "--output", str(output)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((output / "figures.json").read_text())
    assert {f"check {check.__name__}" for check in gpu_checks.CHECKS} <= found.keys()
    assert found["check resumed"] == "bit for bit"
    assert found["speed"]["flops_of_an_iteration"] > 1e8
    assert {"plain fp32", "fp32", "tf32", "bf16", "bf16 compiled"} <= found["speed"].keys()
    assert found["adaptation"]["iterations"] == 3
    assert found["metrics"]["photographs"] == 1
    assert found["metrics"]["start"].keys() == found["metrics"]["bicubic"].keys() == {"psnr_y", "lpips", "lr_psnr"}
    content = b"".join((output / name).read_bytes() for name in found["weights"]["pieces"])
    assert hashlib.sha256(content).hexdigest() == found["weights"]["sha256"]
    assert load(content).keys() == unpack(bundle)["realsr-df2k-x4"].keys()


def test_a_check_that_fails_is_reported_and_the_other_parts_still_run(
    bundle: Path, four: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> str:
        raise gpu_checks.WrongError("not so")

    monkeypatch.setattr(gpu, "CHECKS", (broken,))
    monkeypatch.setattr(gpu, "speed", lambda *_: {})
    arguments = [
        "run",
        "--small",
        "--weights",
        str(bundle),
        "--photographs",
        str(four),
        "--output",
        str(tmp_path / "o"),
    ]
    assert gpu.main(arguments) == 1
    found = json.loads((tmp_path / "o/figures.json").read_text())
    assert found["check broken"] == {"failed": "WrongError: not so"}
    assert "metrics" in found
    assert "not so" in capsys.readouterr().out


def test_missing_weights_are_reported_with_the_command_that_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["run", "--weights", str(tmp_path / "none.npz")]) == 5
    assert "benchmarks/gpu.sh pack" in capsys.readouterr().err


def test_the_largest_crop_and_batch_that_fit_are_used(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def too_large(settings: gpu.GanSettings, *_: object) -> Callable[[], object]:
        def work() -> None:
            tried.append((settings.crop, settings.batch))
            if settings.batch > 2:
                raise torch.OutOfMemoryError

        return work

    monkeypatch.setattr(gpu, "_plain", too_large)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    states = unpack(bundle)
    device = torch.device("cpu")
    bench = gpu_checks.Bench(device=device, folder=tmp_path, settings=gpu.SMALL.checks, perceptual=None)
    found = gpu.largest(gpu.PAPER, states, gpu.perceptual_of(states, {"conv1_2": 1.0}, device), bench)
    assert tried == [(192, 8), (192, 4), (192, 2)]
    assert (found.crop, found.batch) == (192, 2)
