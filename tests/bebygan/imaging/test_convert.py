import numpy as np
import pytest
import torch

from bebygan.imaging.convert import to_image, to_tensor


@pytest.mark.official("tensor2img")
def test_floats_become_8_bit_as_in_the_official_code(official: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(to_image(torch.from_numpy(official["t"])), official["img"][..., ::-1])


def test_every_8_bit_value_comes_back() -> None:
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.shape == (1, 3, 16, 16)
    assert tensor.min() == 0
    assert tensor.max() == 1
    np.testing.assert_array_equal(to_image(tensor), image)


def test_values_outside_are_clamped_and_halves_rounded_to_even() -> None:
    values = torch.tensor([-0.2, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1.7], dtype=torch.float32).expand(3, 1, 5)
    assert to_image(values)[0, :, 0].tolist() == [0, 0, 2, 2, 255]


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_anything_but_8_bit_rgb_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8"):
        to_tensor(image)


def test_more_than_one_image_is_refused() -> None:
    with pytest.raises(ValueError, match="one image"):
        to_image(torch.zeros(2, 3, 4, 4))
