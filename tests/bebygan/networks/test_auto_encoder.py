from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from bebygan.errors import WeightsError
from bebygan.imaging.bicubic import resize
from bebygan.networks import AutoEncoder, load_auto_encoder
from bebygan.settings import GeneratorShape
from benchmarks import plain

SHAPE = GeneratorShape(blocks=1, features=6, growth=3)


def trained() -> AutoEncoder:
    """An auto-encoder whose layers all matter, also the last, which is zero before training."""
    network = AutoEncoder(SHAPE).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


def test_before_training_it_enlarges_the_bicubically_shrunk_image() -> None:
    network, images = AutoEncoder(SHAPE), torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(network.encode(images), resize(images, 4, 6), rtol=0, atol=0)
    torch.testing.assert_close(network(images), plain.generate(network.decoder, resize(images, 4, 6)))


def test_the_layers_see_all_pixels_and_add_what_bicubic_shrinking_lacks() -> None:
    network, images = trained(), torch.rand(2, 3, 12, 8, dtype=torch.float64)
    thin = network.first(images)
    gathered = torch.stack([thin[:, c, y::4, x::4] for c in range(4) for y in range(4) for x in range(4)], 1)
    features = gathered
    for block in network.body:
        features = block(features)
    expected = resize(images, 3, 2) + network.last(features)
    torch.testing.assert_close(network.encode(images), expected)


def test_with_and_without_gradients_the_result_is_the_same() -> None:
    network, images = AutoEncoder(SHAPE), torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = network(images)
    assert torch.equal(network(images), expected)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(AutoEncoder(SHAPE).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"other\.safetensors: .* has shape"):
        load_auto_encoder(tmp_path / "other.safetensors")


def test_loaded_weights_are_frozen_and_let_gradients_through(tmp_path: Path) -> None:
    save_file(AutoEncoder().state_dict(), tmp_path / "weights.safetensors")
    network, images = load_auto_encoder(tmp_path / "weights.safetensors"), torch.rand(1, 3, 8, 8, requires_grad=True)
    torch.autograd.backward(F.mse_loss(network(images), torch.zeros_like(images)))
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())
