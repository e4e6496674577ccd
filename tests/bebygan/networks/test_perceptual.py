from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bebygan.errors import WeightsError
from bebygan.networks.architecture import vgg_layers
from bebygan.networks.perceptual import AlexNet, Vgg, load_alexnet, load_vgg

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
DEVIATION = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


def whole_vgg(blocks: tuple[int, ...]) -> nn.Sequential:
    """The published layers one after the other, narrow ones after the first two blocks left out of the weights."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, outputs in zip(blocks, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def vgg16() -> nn.Sequential:
    return whole_vgg((2, 2, 3, 3, 3))


def saved(network: nn.Module, path: Path, **more: Tensor) -> Path:
    save_file({f"features.{key}": value for key, value in network.state_dict().items()} | more, path)
    return path


def test_features_are_those_of_the_whole_network_before_relu(vgg16: nn.Sequential, tmp_path: Path) -> None:
    path = saved(vgg16, tmp_path / "vgg16.safetensors", **{"classifier.0.weight": torch.zeros(3)})
    vgg = load_vgg(path)
    images = torch.rand(2, 3, 48, 32)
    taps = ("conv1_2", "conv3_3", "conv4_3", "conv5_3")
    found = vgg(images, taps)
    for tap in taps:
        expected = vgg16[: vgg_layers("vgg16")[tap] + 1]((images - MEAN) / DEVIATION)
        torch.testing.assert_close(found[tap], expected)
        assert (found[tap] < 0).any()


def test_layers_behind_the_last_tap_are_not_built(vgg16: nn.Sequential, tmp_path: Path) -> None:
    path = saved(vgg16, tmp_path / "vgg16.safetensors")
    short = load_vgg(path, "conv2_2")
    assert set(short.features) == {"0", "2", "5", "7"}
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(short(images, ["conv2_2"]), load_vgg(path)(images, ["conv2_2"]))


def test_the_file_tells_vgg19_from_vgg16(tmp_path: Path) -> None:
    with torch.device("meta"):
        whole = whole_vgg((2, 2, 4, 4, 4))
    kept = {
        f"features.{key}": value for key, value in whole.state_dict().items() if key.split(".")[0] in ("0", "2", "34")
    }
    path = tmp_path / "vgg.safetensors"
    save_file({key: torch.rand(value.shape) for key, value in kept.items()}, path)
    assert load_vgg(path, "conv1_2").network == "vgg19"


def test_the_networks_are_frozen_and_let_gradients_pass() -> None:
    vgg, images = Vgg("vgg16", "conv1_1"), torch.rand(1, 3, 8, 8, requires_grad=True)
    assert not any(parameter.requires_grad for parameter in (*vgg.parameters(), *AlexNet().parameters()))
    assert not vgg.training
    vgg(images, ["conv1_1"])["conv1_1"].sum().backward()
    assert images.grad is not None


def test_a_layer_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="vgg16 has no layer conv5_4; it has conv1_1, "):
        Vgg("vgg16", "conv5_4")
    with pytest.raises(ValueError, match=r"up to conv1_2 has no layer conv2_1"):
        Vgg("vgg16", "conv1_2")(torch.rand(1, 3, 8, 8), ["conv2_1"])


def test_alexnets_features_are_those_of_the_whole_network_after_relu(tmp_path: Path) -> None:
    whole = nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(),
    )  # fmt: skip
    alexnet = load_alexnet(saved(whole, tmp_path / "alexnet.safetensors", **{"classifier.1.weight": torch.zeros(3)}))
    images = torch.randn(2, 3, 64, 80)
    for found, last in zip(alexnet(images), (1, 4, 7, 9, 11), strict=True):
        torch.testing.assert_close(found, whole[: last + 1](images))


@pytest.mark.parametrize("load", [load_vgg, load_alexnet])
def test_weights_of_another_network_are_refused(load: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(2, 3, 3, 3)}, path)
    with pytest.raises(WeightsError, match=r"other\.safetensors: features\.0\.weight has shape \(2, 3, 3, 3\)"):
        load(path)
    with pytest.raises(WeightsError, match="no weights at"):
        load(tmp_path / "nowhere.safetensors")
