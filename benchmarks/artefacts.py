"""`python -m benchmarks.artefacts`: does the artefact alarm find planted artefacts, and leave honest results alone?

Each photograph of the sample is upscaled by the small start. Planted: ringing beside an edge, coloured noise and
scratches in a flat region, each in the start's result and in that of other weights, if they are given. Honest: the
start sharpened and blurred, and the result of the other weights, as it is and sharpened. It needs scipy.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from scipy import ndimage

from bebygan import SCALE
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.texture import local_deviation
from bebygan.imaging.tiling import upscale_image
from bebygan.metrics import artefacts
from bebygan.networks.naming import load_generator
from components.evaluate.step import central_square

_START = Path("data/pretrained/rrdb-4x32.safetensors")
_SIDE = 256
_EDGE = 20
Floats = npt.NDArray[np.float64]


def _rounded(values: Floats) -> Image:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _smooth(image: npt.NDArray[np.generic], sigma: float) -> Floats:
    smooth: Floats = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
    return smooth


def _sharpened(image: Image, amount: float) -> Image:
    return _rounded(image + amount * (image - _smooth(image, 1.5)))


def _spot(values: Floats, random: np.random.Generator, share: float) -> tuple[int, int]:
    """Return a random place among the share of the places with the largest values, away from the border."""
    inside = values[_EDGE:-_EDGE, _EDGE:-_EDGE]
    rows, columns = np.nonzero(inside >= np.quantile(inside, 1 - share))
    chosen = random.integers(len(rows))
    return int(rows[chosen]) + _EDGE, int(columns[chosen]) + _EDGE


def _blob(shape: tuple[int, ...], spot: tuple[int, int], sigma: float) -> Floats:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    blob: Floats = np.exp(-((rows - spot[0]) ** 2 + (columns - spot[1]) ** 2) / (2 * sigma**2))[..., None]
    return blob


def _flat(start: Image, random: np.random.Generator) -> tuple[int, int]:
    return _spot(-ndimage.uniform_filter(local_deviation(start, 7), 21), random, 0.25)


def _ringing(image: Image, start: Image, random: np.random.Generator) -> Image:
    gray = start.mean(2)
    spot = _spot(np.hypot(ndimage.sobel(gray, 0), ndimage.sobel(gray, 1)), random, 0.02)
    detail = image - _smooth(image, 3)
    echoes = sum(
        (-0.8) ** number * np.roll(detail, sign * 3 * number, axis)
        for number in range(1, 5)
        for axis in (0, 1)
        for sign in (1, -1)
    )
    return _rounded(image + 0.7 * _blob(image.shape, spot, 30) * echoes)


def _coloured_noise(image: Image, start: Image, random: np.random.Generator) -> Image:
    noise = _smooth(random.normal(0, 1, image.shape), 1)
    noise -= noise.mean(2, keepdims=True)
    return _rounded(image + 12 * _blob(image.shape, _flat(start, random), 20) * noise / noise.std())


def _scratches(image: Image, start: Image, random: np.random.Generator) -> Image:
    lines, spot = np.zeros(image.shape[:2]), _flat(start, random)
    for _ in range(40):
        row, column = spot + random.normal(0, 12, 2)
        angle, along = random.uniform(0, np.pi), np.linspace(-5, 5, 21)
        rows = np.clip(row + along * np.sin(angle), 0, image.shape[0] - 1).astype(int)
        lines[rows, np.clip(column + along * np.cos(angle), 0, image.shape[1] - 1).astype(int)] = random.choice([-1, 1])
    return _rounded(image + 42 * ndimage.gaussian_filter(lines, 0.7)[..., None])


_PLANTED: dict[str, Callable[[Image, Image, np.random.Generator], Image]] = {
    "ringing": _ringing,
    "coloured noise": _coloured_noise,
    "scratches": _scratches,
}


def area_under_curve(planted: Floats, honest: Floats) -> float:
    """Return the probability that a planted result scores above an honest one."""
    return float((planted[:, None] > honest).mean() + (planted[:, None] == honest).mean() / 2)


def main() -> None:
    """Print the area under the curve of each planted artefact, and the share of honest results above the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, help="of an honest challenger of the small start")
    parser.add_argument("--limit", type=float, default=0.003, help="share of marked pixels that raises the alarm")
    options = parser.parse_args()
    generators = [load_generator(path).eval() for path in (_START, options.weights) if path]
    random = np.random.default_rng(0)
    honest: list[float] = []
    planted: dict[str, list[float]] = {name: [] for name in _PLANTED}
    for path in sorted(path for path in Path("data/sample").iterdir() if path.suffix != ".md"):
        lr = downscale_uint8(central_square(np.asarray(PillowImage.open(path).convert("RGB")), _SIDE), SCALE)
        start, *others = [upscale_image(generator, lr) for generator in generators]
        results = [_sharpened(start, 0.3), _sharpened(start, 0.6), _rounded(_smooth(start, 0.6))]
        results += [each for other in others for each in (other, _sharpened(other, 0.3))]
        honest += [artefacts(result, start) for result in results]
        for name, plant in _PLANTED.items():
            planted[name] += [artefacts(plant(each, start, random), start) for each in (start, *others)]
    marked = np.array(honest)
    print(f"honest: {len(honest)} results, {(marked > options.limit).mean():.1%} above {options.limit:g}")
    for name, values in {**planted, "all": [value for each in planted.values() for value in each]}.items():
        found = np.array(values)
        print(
            f"{name}: {len(found)} results, area under the curve {area_under_curve(found, marked):.3f}, "
            f"{(found > options.limit).mean():.1%} above {options.limit:g}"
        )


if __name__ == "__main__":
    main()
