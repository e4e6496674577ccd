from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bebygan.losses.perceptual import perceptual_loss
from bebygan.networks.perceptual import Vgg, load_vgg


@pytest.fixture
def vgg(tmp_path: Path) -> Vgg:
    network = Vgg("vgg16", "conv2_2")
    path = tmp_path / "vgg16.safetensors"
    save_file(network.state_dict(), path)
    return load_vgg(path, "conv2_2")


def test_it_is_the_weighted_sum_of_mean_absolute_differences(vgg: Vgg) -> None:
    sr, hr = torch.rand(2, 2, 3, 16, 16)
    mine, theirs = vgg(sr, ["conv1_2", "conv2_2"]), vgg(hr, ["conv1_2", "conv2_2"])
    expected = sum(
        weight * (mine[tap] - theirs[tap]).abs().mean() for tap, weight in (("conv1_2", 0.25), ("conv2_2", 0.5))
    )
    torch.testing.assert_close(perceptual_loss(sr, hr, vgg, {"conv1_2": 0.25, "conv2_2": 0.5}), expected)


def test_equal_images_cost_nothing(vgg: Vgg) -> None:
    hr = torch.rand(1, 3, 16, 16)
    assert perceptual_loss(hr, hr, vgg, {"conv2_1": 1.0}) == 0


def test_the_gradient_reaches_sr_alone(vgg: Vgg) -> None:
    sr, hr = torch.rand(1, 3, 16, 16, requires_grad=True), torch.rand(1, 3, 16, 16, requires_grad=True)
    perceptual_loss(sr, hr, vgg, {"conv2_2": 1.0}).backward()
    assert sr.grad is not None
    assert sr.grad.abs().sum() > 0
    assert hr.grad is None
    assert all(parameter.grad is None for parameter in vgg.parameters())


def test_it_is_float32_under_autocast(vgg: Vgg) -> None:
    sr, hr = torch.rand(2, 1, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = perceptual_loss(sr, hr, vgg, {"conv2_2": 1.0})
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, perceptual_loss(sr, hr, vgg, {"conv2_2": 1.0}), rtol=0.05, atol=0)


def test_no_tap_or_an_unknown_one_is_refused(vgg: Vgg) -> None:
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ValueError, match="at least one tap"):
        perceptual_loss(images, images, vgg, {})
    with pytest.raises(ValueError, match="has no layer conv5_4"):
        perceptual_loss(images, images, vgg, {"conv5_4": 1.0})
