import numpy as np
import pytest
import torch
from torch import nn

from bebygan.losses import auto_encoded_loss
from bebygan.networks import AutoEncoder
from bebygan.settings import GeneratorShape


@pytest.fixture
def network() -> AutoEncoder:
    torch.manual_seed(3)
    found = AutoEncoder(GeneratorShape(blocks=1, features=4, growth=2)).double()
    for parameter in found.parameters():
        nn.init.normal_(parameter, std=0.2)
    return found.requires_grad_(False)


def test_it_is_the_mean_absolute_difference_of_both_results(network: AutoEncoder) -> None:
    sr, hr = torch.rand(2, 2, 3, 16, 16, dtype=torch.float64)
    expected = np.abs(network(sr).numpy() - network(hr).numpy()).mean()
    assert auto_encoded_loss(sr, hr, network).item() == pytest.approx(expected)


def test_equal_images_have_no_loss_whatever_the_precision(network: AutoEncoder) -> None:
    hr = torch.rand(1, 3, 16, 16)
    assert auto_encoded_loss(hr.clone().requires_grad_(), hr, network.float()) == 0


def test_its_gradient_goes_to_sr_alone_and_is_that_of_finite_differences(network: AutoEncoder) -> None:
    sr, hr = (each.requires_grad_() for each in torch.rand(2, 1, 3, 8, 8, dtype=torch.float64))
    torch.autograd.backward(auto_encoded_loss(sr, hr, network))
    assert sr.grad is not None
    assert hr.grad is None
    constant = hr.detach()
    assert torch.autograd.gradcheck(lambda image: auto_encoded_loss(image, constant, network), sr, fast_mode=True)


def test_half_precision_is_raised_before_the_difference(network: AutoEncoder) -> None:
    sr, hr = torch.rand(2, 1, 3, 16, 16)
    network.float()
    with torch.autocast("cpu", torch.bfloat16):
        found = auto_encoded_loss(sr, hr, network)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(auto_encoded_loss(sr, hr, network).item(), rel=0.05)
