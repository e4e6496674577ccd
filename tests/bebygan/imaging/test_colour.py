import numpy as np
import pytest

from bebygan.imaging.colour import luma


@pytest.mark.official("metrics")
def test_luma_is_the_official_one(official: dict[str, np.ndarray]) -> None:
    first, second = luma(official["a_bgr"][..., ::-1]), luma(official["b_bgr"][..., ::-1])
    np.testing.assert_array_equal(np.round(first), official["ya_u8"])
    np.testing.assert_allclose(first, 255 * official["ya_f32"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(second, 255 * official["yb_f32"], rtol=0, atol=1e-4)


def test_black_and_white_lie_at_16_and_235() -> None:
    grey = np.stack((np.zeros((2, 2, 3)), np.full((2, 2, 3), 255))).astype(np.uint8)
    np.testing.assert_allclose(luma(grey[0]), 16)
    np.testing.assert_allclose(luma(grey[1]), 235)
