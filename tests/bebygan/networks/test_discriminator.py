import pytest
import torch

from bebygan.networks.discriminator import Discriminator


def test_the_official_one_has_5_291_913_parameters_and_names() -> None:
    with torch.device("meta"):
        discriminator = Discriminator(192, 32)
    assert sum(parameter.numel() for parameter in discriminator.parameters()) == 5_291_913
    names = {name.rpartition(".")[0] for name in discriminator.state_dict()}
    convolutions = {f"conv{stage}_{half}" for stage in range(6) for half in (0, 1)}
    norms = {f"bn{stage}_{half}" for stage in range(6) for half in (0, 1)} - {"bn0_0"}
    assert names == convolutions | norms | {"linear1", "linear2"}
    assert discriminator.linear1.in_features == 256 * 3 * 3


@pytest.mark.parametrize("size", [16, 32, 48, 64, 80, 96, 112, 128])
def test_each_crop_size_gets_stages_down_to_a_small_map(size: int) -> None:
    discriminator = Discriminator(size, 2)
    assert 3 <= size >> discriminator.stages <= 7
    logits = discriminator(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 1)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())


@pytest.mark.parametrize("size", [100, 7, 33, 72, 2])
def test_sizes_that_end_on_a_large_map_are_refused_with_those_that_fit(size: int) -> None:
    with pytest.raises(ValueError, match=rf"96, 128, 160, 192.*got {size}"):
        Discriminator(size, 4)


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 32x32 crops"):
        Discriminator(32, 2)(torch.rand(2, 3, 64, 64))


def test_the_first_layers_see_each_pixel() -> None:
    discriminator = Discriminator(32, 4).double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    discriminator(images)[0].sum().backward()
    assert images.grad is not None
    assert (images.grad[0].abs().sum(0) > 0).all()
