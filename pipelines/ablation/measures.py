"""What is measured of each photograph: the metrics of `bebygan.metrics`, and two of flat regions.

A region is flat where the discriminator of Beby-GAN does not see it (arXiv 2103.15295 section 3.3): where the standard
deviation of HR's luma in 11x11 pixels is below 0.025.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.files import sha256_of
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8, upscale_uint8
from bebygan.imaging.picture_files import read_picture
from bebygan.imaging.texture import local_deviation
from bebygan.imaging.tiling import upscale_fast
from bebygan.metrics import dists, lpips, lr_psnr, psnr_y
from bebygan.networks import load_generator
from bebygan.precision import training_device
from bebygan.settings import RegionSettings
from bebygan.training.state import place
from components.artifacts import capped
from components.config import EvaluateParams
from components.evaluate.measuring import LEAST_REGION, Networks
from components.progress import progress
from pipelines.measured import Row

Upscale = Callable[[Image], Image]
METRICS: Mapping[str, bool] = {
    "psnr_y": True, "lpips": False, "dists": False, "lr_psnr": True, "flat_lpips": False, "false_texture": False,
}  # fmt: skip
"""Names in the order of the tables, and whether a higher value is better."""
DEFINITIONS: Mapping[str, str] = {
    "flat_lpips": "LPIPS of SR whose textured regions are replaced by those of HR: what flat regions contribute",
    "false_texture": "by how many levels of 255 the deviation of luma in 5x5 pixels is higher in SR than in HR, and 0 "
    "where it is lower: root mean square over flat regions",
}
_REGION = RegionSettings()
_DETAIL = 5


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph of a benchmark."""

    benchmark: str
    path: Path

    def read(self) -> tuple[Image, Image]:
        """Return HR, RGB, cut at the bottom and the right to sides that 4 divides, and LR by MATLAB's bicubic.

        Raises:
            DataError: it cannot be read, or has 16 bits per channel.
        """
        image = read_picture(self.path).rgb
        if image.dtype != np.uint8:
            raise DataError(f"{self.path} has 16 bits per channel, and benchmarks have 8: save it with 8 bits")
        height, width = (length - length % SCALE for length in image.shape[:2])
        hr = np.ascontiguousarray(image[:height, :width], np.uint8)
        return hr, downscale_uint8(hr, SCALE)


def photographs_of(benchmarks: Mapping[str, Path]) -> list[Photograph]:
    """Return the photographs of benchmarks, given their folders by name.

    Raises:
        DataError: a folder has none.
    """
    found: list[Photograph] = []
    for name, folder in benchmarks.items():
        paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in (".png", ".jpg", ".bmp")]
        if not paths:
            raise DataError(f"the folder {folder} of benchmark {name} has no .png, .jpg or .bmp files")
        found += [Photograph(name, path) for path in paths]
    return found


def identity_of(photographs: list[Photograph]) -> list[list[str]]:
    """Return benchmark, file name and SHA-256 of each photograph."""
    return [[each.benchmark, each.path.name, sha256_of(each.path)] for each in photographs]


def flat_regions(hr: Image) -> npt.NDArray[np.bool_]:
    """Return where a photograph is flat, (H, W)."""
    flat: npt.NDArray[np.bool_] = local_deviation(hr, _REGION.window) < _REGION.threshold
    return flat


def _false_texture(sr: Image, hr: Image, where: npt.NDArray[np.bool_]) -> float:
    excess = np.maximum(local_deviation(sr, _DETAIL) - local_deviation(hr, _DETAIL), 0)[where]
    return 255 * math.sqrt(float(np.mean(excess**2)))


def measure(sr: Image, hr: Image, lr: Image, networks: Networks) -> dict[str, float]:
    """Return all METRICS of one photograph; those of flat regions are NaN where there are none."""
    flat = flat_regions(hr)
    values = {
        "psnr_y": capped("psnr_y", psnr_y(sr, hr)),
        "lpips": lpips(sr, hr, networks.lpips),
        "dists": dists(sr, hr, networks.dists),
        "lr_psnr": capped("lr_psnr", lr_psnr(sr, lr)),
        "flat_lpips": math.nan,
        "false_texture": math.nan,
    }
    if flat.mean() >= LEAST_REGION:
        values["flat_lpips"] = lpips(np.where(flat[..., None], sr, hr), hr, networks.lpips)
        values["false_texture"] = _false_texture(sr, hr, flat)
    return values


def bicubic(lr: Image) -> Image:
    """Enlarge an image as MATLAB's imresize does."""
    return upscale_uint8(lr, SCALE)


def generator_of(path: Path, params: EvaluateParams) -> Upscale:
    """Return a function that enlarges by the generator in a file of weights, as evaluate does."""
    generator = place(load_generator(path), training_device(), channels_last=True).eval()
    return partial(upscale_fast, generator, precision=params.precision, tile=params.tile)


def measured_rows(name: str, upscale: Upscale, photographs: list[Photograph], networks: Networks) -> list[Row]:
    """Return benchmark, name and metrics of each photograph, enlarged from its LR by MATLAB's bicubic.

    Args:
        name: of the candidate, for the progress line.
        upscale: the candidate.
        photographs: of all benchmarks.
        networks: on the device of training.
    """
    rows: list[Row] = []
    for photograph in progress(photographs, name, "photographs", len(photographs)):
        hr, lr = photograph.read()
        values = measure(upscale(lr), hr, lr, networks)
        rows.append({"benchmark": photograph.benchmark, "photograph": photograph.path.name, **values})
    return rows
