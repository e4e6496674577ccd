from typing import Any

import numpy as np
import pytest
import torch

from bebygan.imaging import Image, to_tensor
from bebygan.metrics import lr_psnr, psnr_y, ssim_y


def images(count: int, side: int) -> list[Image]:
    random = np.random.default_rng(side)
    return [random.integers(0, 256, (side, side + 4, 3), np.uint8) for _ in range(count)]


def batch(images: list[Image]) -> torch.Tensor:
    return torch.cat([to_tensor(image) for image in images])


@pytest.mark.parametrize(("metric", "reference"), [(psnr_y, 40), (ssim_y, 40), (lr_psnr, 10)])
def test_a_batch_gives_the_values_of_its_images(metric: Any, reference: int) -> None:
    sr = images(3, 40)
    other = [image[:reference, : 11 if reference == 10 else 44] for image in images(3, 48)]

    values = metric(batch(sr), batch(other))

    assert values.shape == (3,)
    assert values.dtype == torch.float64
    assert values.tolist() == [metric(*pair) for pair in zip(sr, other, strict=True)]


def test_a_batch_is_clamped_and_rounded_to_8_bits() -> None:
    [hr] = images(1, 40)
    outside = torch.where(batch([hr]) > 0.5, 1.2, -0.1)
    inside = np.where(hr > 127, 255, 0).astype(np.uint8)
    assert psnr_y(outside, batch([hr])).tolist() == [psnr_y(inside, hr)]
    assert psnr_y(batch([hr]) + 0.4 / 255, batch([hr])).tolist() == [float("inf")]


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((40, 44, 3)), np.zeros((40, 44), np.uint8), torch.zeros(3, 40, 44), torch.zeros(2, 3, 40, 44),
        torch.zeros(1, 1, 40, 44), None,
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_kind_and_shape(wrong: Any) -> None:
    for sr, hr in ((wrong, batch(images(1, 40))), (batch(images(1, 40)), wrong)):
        with pytest.raises(ValueError, match=r"two uint8 images \(H, W, 3\) or two batches .* got "):
            psnr_y(sr, hr)
