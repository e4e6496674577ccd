from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from bebygan.errors import DataError, WeightsError
from bebygan.metrics.perceptual import Lpips, load_lpips, lpips
from bebygan.networks.perceptual import AlexNet, load_alexnet

CHANNELS = (64, 192, 384, 256, 256)


@pytest.fixture
def alexnet_file(tmp_path: Path) -> Path:
    path = tmp_path / "alexnet.safetensors"
    save_file(AlexNet().state_dict(), path)
    return path


@pytest.fixture
def heads() -> dict[str, Tensor]:
    return {f"lin{level}.model.1.weight": torch.rand(1, count, 1, 1) for level, count in enumerate(CHANNELS)}


@pytest.fixture
def network(alexnet_file: Path, heads: dict[str, Tensor]) -> Lpips:
    save_file(heads, alexnet_file.with_name("heads.safetensors"))
    return load_lpips(alexnet_file, alexnet_file.with_name("heads.safetensors"))


def picture(height: int = 40, width: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_it_is_the_published_formula(network: Lpips, alexnet_file: Path, heads: dict[str, Tensor]) -> None:
    trunk = load_alexnet(alexnet_file)
    first, second = picture(seed=1), picture(seed=2)

    def features(image: np.ndarray) -> list[Tensor]:
        scaled = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float() / 127.5 - 1
        shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
        return trunk((scaled - shift) / torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))

    expected = 0.0
    for level, (a, b) in enumerate(zip(features(first), features(second), strict=True)):
        difference = a / (a.norm(dim=1, keepdim=True) + 1e-10) - b / (b.norm(dim=1, keepdim=True) + 1e-10)
        weighted = torch.nn.functional.conv2d(difference**2, heads[f"lin{level}.model.1.weight"])
        expected += weighted.mean().item()
    assert lpips(first, second, network) == pytest.approx(expected, rel=1e-5)


def test_equal_images_are_at_no_distance_and_the_order_does_not_matter(network: Lpips) -> None:
    first, second = picture(seed=1), picture(seed=2)
    assert lpips(first, first, network) == 0
    assert lpips(first, second, network) == pytest.approx(lpips(second, first, network), rel=1e-6)
    assert lpips(first, second, network) > 0


def test_a_batch_gives_a_distance_for_each_pair(network: Lpips) -> None:
    first, second = torch.rand(2, 3, 3, 32, 32)
    found = network(first, second)
    assert found.shape == (3,)
    torch.testing.assert_close(found[1:2], network(first[1:2], second[1:2]))


def test_autocast_does_not_coarsen_it(network: Lpips) -> None:
    first, second = picture(seed=1), picture(seed=2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = lpips(first, second, network)
    assert inside == lpips(first, second, network)


def test_small_or_unequal_images_are_refused(network: Lpips) -> None:
    assert lpips(picture(31, 31, 1), picture(31, 31, 2), network) > 0
    with pytest.raises(DataError, match="30x50 is too small for LPIPS: 31"):
        lpips(picture(30, 50), picture(30, 50), network)
    with pytest.raises(ValueError, match="one shape"):
        lpips(picture(40, 50), picture(40, 51), network)


def test_heads_of_another_network_are_refused(alexnet_file: Path, heads: dict[str, Tensor]) -> None:
    heads["lin1.model.1.weight"] = torch.rand(1, 128, 1, 1)
    path = alexnet_file.with_name("vgg.safetensors")
    save_file(heads, path)
    with pytest.raises(WeightsError, match=r"vgg\.safetensors: lin1\.model\.1\.weight has shape \(1, 128, 1, 1\)"):
        load_lpips(alexnet_file, path)
