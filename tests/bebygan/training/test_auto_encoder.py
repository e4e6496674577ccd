from pathlib import Path

import pytest
import torch
from torch import Tensor

from bebygan.imaging.shards import Patches, read_patches
from bebygan.networks import AutoEncoder, Generator, save_generator
from bebygan.networks.weights import load_exactly, read_state
from bebygan.settings import GeneratorShape
from bebygan.training import auto_encoder
from bebygan.training.sampling import batch
from tests.bebygan.training.test_loop import make_patches

SHAPE = GeneratorShape(blocks=1, features=8, growth=4)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(auto_encoder, "_CROP", 48)
    torch.manual_seed(1)
    save_generator(Generator(SHAPE), tmp_path / "decoder.safetensors")
    (tmp_path / "patches").mkdir()
    make_patches(tmp_path / "patches")
    return tmp_path


def pair(patches: Patches) -> tuple[Tensor, Tensor]:
    return batch(patches, 2, 0, 4, crop=48, device=torch.device("cpu"))


def test_training_restores_more_and_keeps_the_shrunk_image_like_lr(folder: Path) -> None:
    train = read_patches(folder / "patches", "train")
    decoder = folder / "decoder.safetensors"
    networks = (auto_encoder.train_auto_encoder(decoder, train, iterations) for iterations in (1, 150))
    before, after = ([loss.item() for loss in auto_encoder.losses(network, *pair(train))] for network in networks)
    assert after[0] < 0.8 * before[0]
    assert after[1] < 0.05


def test_both_losses_are_l1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    network, (lr, hr) = AutoEncoder(SHAPE), pair(read_patches(folder / "patches", "train"))
    torch.nn.init.normal_(network.last[-1].weight, std=0.1)
    restored, shrunk = auto_encoder.losses(network, lr, hr)
    torch.testing.assert_close(restored, (network(hr) - hr).abs().mean())
    torch.testing.assert_close(shrunk, (network.encode(hr) - lr).abs().mean())


def test_the_command_writes_the_average_in_half_precision(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = folder / "weights.safetensors"
    arguments = ["--patches", str(folder / "patches"), "--decoder", str(folder / "decoder.safetensors")]
    auto_encoder.main([*arguments, "--iterations", "2", "--output", str(output)])
    found = read_state(output)
    load_exactly(AutoEncoder(SHAPE), found, output)
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert "validation patches: L1 of HR 0." in capsys.readouterr().out
