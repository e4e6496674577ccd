import pytest

from bebygan.networks.architecture import discriminator_stages, vgg_layers


@pytest.mark.parametrize(("size", "stages"), [(128, 5), (192, 6), (256, 6), (96, 5)])
def test_known_sizes_are_halved_as_often_as_the_published_discriminators(size: int, stages: int) -> None:
    assert discriminator_stages(size) == stages


def test_the_names_of_vgg19s_layers_are_at_torchvisions_places() -> None:
    layers = vgg_layers("vgg19")
    assert (layers["conv3_4"], layers["conv4_4"], layers["conv5_4"]) == (16, 25, 34)
    layers = vgg_layers("vgg16")
    assert (layers["conv3_3"], layers["conv4_3"], layers["conv5_3"]) == (14, 21, 28)
