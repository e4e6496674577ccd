"""The paper's measure of texture, for photographs as arrays: what `losses.region_aware` computes for tensors."""

import numpy as np
import numpy.typing as npt

_LUMA = np.array((0.2989, 0.587, 0.114))


def _window_sums(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    for _ in range(2):
        sums = np.vstack((np.zeros_like(values[:1]), np.cumsum(values, axis=0)))
        values = (sums[window:] - sums[:-window]).T
    return values


def local_deviation(image: npt.NDArray[np.uint8], window: int) -> npt.NDArray[np.float64]:
    """Return the unbiased standard deviation of luma in the window around each pixel, borders reflected.

    Args:
        image: (H, W, 3), RGB; H and W are above window / 2.
        window: odd side of the window (paper: 11).

    Returns:
        (H, W), luma in [0, 1] units (arXiv 2103.15295 section 3.3).
    """
    luma = image @ (_LUMA / 255)
    # Centred, because the difference of two large sums would lose the digits of a flat region's deviation.
    luma = np.pad(luma - luma.mean(), window // 2, mode="reflect")
    count = window * window
    mean = _window_sums(luma, window) / count
    mean_square = _window_sums(luma * luma, window) / count
    deviation: npt.NDArray[np.float64] = np.sqrt(np.maximum(mean_square - mean * mean, 0) * (count / (count - 1)))
    return deviation
