from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import correlate
from torch import Tensor

from bebygan.errors import WeightsError
from bebygan.metrics import dists
from bebygan.networks import Dists, Vgg, load_dists
from bebygan.networks.dists import DistsWeights
from bebygan.pretrained import weights_file

STAGES = ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))


@pytest.fixture(scope="module")
def network() -> Dists:
    """DISTS with random weights, scaled so that features neither vanish nor explode."""
    torch.manual_seed(0)
    vgg, weights = Vgg("vgg16", "conv5_3"), DistsWeights()
    for convolution in vgg.features.values():
        torch.nn.init.kaiming_normal_(convolution.weight)  # type: ignore[arg-type]
    for tensor in (weights.alpha, weights.beta):
        tensor.uniform_(0, 1)
    return Dists(vgg, weights)


def picture(seed: int, height: int = 40, width: int = 36) -> np.ndarray:
    """Blocks of colour under noise, the same everywhere."""
    random = np.random.default_rng(seed)
    coarse = random.random((height // 8 + 1, width // 8 + 1, 3))
    blocks = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return ((0.7 * blocks + 0.3 * random.random((height, width, 3))) * 255).astype(np.uint8)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return np.einsum("chwij,ocij->ohw", windows, weight, optimize=True) + bias[:, None, None]


def plain(first: np.ndarray, second: np.ndarray, network: Dists) -> float:
    """DISTS of arXiv 2004.07728 (formulas 1, 2, 5, 6 and 7) in numpy and float64."""
    state = {name: tensor.double().numpy() for name, tensor in network.vgg.state_dict().items()}
    alpha, beta = (tensor.double().flatten().numpy() for tensor in (network.weights.alpha, network.weights.beta))

    def features(image: np.ndarray) -> list[np.ndarray]:
        x = image.transpose(2, 0, 1) / 255
        found = [x]
        x = (x - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[:, None, None]
        index = 0
        for block, count in STAGES:
            if block > 1:
                hann = np.outer([0.5, 1, 0.5], [0.5, 1, 0.5])[None] / 4
                x = np.sqrt(correlate(x**2, hann, mode="constant")[:, ::2, ::2] + 1e-12)
                index += 1
            for _ in range(count):
                x = np.maximum(convolved(x, state[f"features.{index}.weight"], state[f"features.{index}.bias"]), 0)
                index += 2
            found.append(x)
        return found

    score, channel = 0.0, 0
    for a, b in zip(features(first), features(second), strict=True):
        for x, y in zip(a, b, strict=True):
            means = (2 * x.mean() * y.mean() + 1e-6) / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
            covariance = np.mean((x - x.mean()) * (y - y.mean()))
            score += alpha[channel] * means + beta[channel] * (2 * covariance + 1e-6) / (x.var() + y.var() + 1e-6)
            channel += 1
    return 1 - score / (alpha.sum() + beta.sum())


def test_it_is_the_published_formula(network: Dists) -> None:
    first, second = picture(1), picture(2)
    expected = plain(first, second, network)
    assert 0.01 < expected < 1
    assert dists(first, second, network) == pytest.approx(expected, rel=1e-4)


def test_equal_images_are_at_no_distance_and_the_order_does_not_matter(network: Dists) -> None:
    first, second = picture(1), picture(2)
    assert dists(first, first, network) == pytest.approx(0, abs=1e-6)
    assert dists(first, second, network) == pytest.approx(dists(second, first, network), rel=1e-5)


def test_autocast_does_not_coarsen_the_metric(network: Dists) -> None:
    first, second = picture(1), picture(2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = dists(first, second, network)
    assert inside == dists(first, second, network)


def test_its_gradient_is_that_of_finite_differences(network: Dists) -> None:
    first, second = (torch.from_numpy(picture(seed, 16, 16)).permute(2, 0, 1)[None] / 255 for seed in (1, 2))
    double = Dists(network.vgg.double(), network.weights.double())
    try:
        leaf = first.double().requires_grad_()
        # Pixels rarely lie on the bend of a ReLU; a random direction tests them all at once.
        assert torch.autograd.gradcheck(lambda image: double(image, second.double()), leaf, fast_mode=True)
    finally:
        network.float()


def test_small_images_have_finite_gradients(network: Dists) -> None:
    leaf = torch.zeros(1, 3, 4, 4, requires_grad=True)
    torch.autograd.backward(network(leaf, torch.rand(1, 3, 4, 4)).sum())
    assert isinstance(leaf.grad, Tensor)
    assert leaf.grad.isfinite().all()


def test_images_of_two_shapes_and_other_networks_are_refused(network: Dists, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="images of one shape"):
        dists(picture(1), picture(1, 44), network)
    with pytest.raises(ValueError, match="takes VGG16 up to conv5_3, got vgg16 up to conv1_2"):
        Dists(Vgg("vgg16", "conv1_2"), DistsWeights())
    save_file({"alpha": torch.ones(1, 1472, 1, 1), "beta": torch.ones(1, 1475, 1, 1)}, tmp_path / "dists.safetensors")
    with pytest.raises(WeightsError, match=r"dists\.safetensors: alpha has shape"):
        load_dists(tmp_path / "vgg16.safetensors", tmp_path / "dists.safetensors")


@pytest.mark.slow
def test_with_the_published_weights_it_gives_the_numbers_of_the_package_dists_pytorch() -> None:
    """The numbers are those of DISTS_pytorch 0.1 with torchvision's VGG16, on the same pictures."""
    network = load_dists(weights_file("vgg16"), weights_file("dists"))
    for seeds, height, width, other, blurred in (
        ((1, 2), 64, 80, 0.2405202, 0.1266282),
        ((3, 4), 97, 51, 0.2191542, 0.1222314),
    ):
        first, second = (picture(seed, height, width) for seed in seeds)
        blur = (first.astype(float) * 0.5 + np.roll(first, 1, 1) * 0.5).astype(np.uint8)
        assert dists(first, second, network) == pytest.approx(other, abs=1e-6)
        assert dists(first, blur, network) == pytest.approx(blurred, abs=1e-6)
