"""Make training patches of a dataset: textured HR windows on a grid, and their LR by MATLAB's bicubic."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.files import whole_folder
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import PATCH_SPLITS, PhotographPair, write_shards
from bebygan.imaging.texture import local_deviation
from components.artifacts import check_data_version, photographs_version, write_patchless
from components.config import PatchesParams, to_yaml
from components.progress import announce, progress
from components.stores.data_version import data_version
from components.stores.dataset import (
    check_dataset,
    notice_lines,
    notices_of,
    photographs_of,
    read_photograph,
    summarise,
)


def _starts(length: int, size: int, step: int) -> npt.NDArray[np.int64]:
    """Return the starts of windows of `size` on one axis: one every `step`, and one flush with the end."""
    starts = np.arange(0, length - size + 1, step)
    return starts if starts[-1] == length - size else np.append(starts, length - size)


def textured_windows(image: Image, params: PatchesParams) -> npt.NDArray[np.int64]:
    """Return the windows of a photograph with enough texture (arXiv 2103.15295 section 3.3).

    Args:
        image: (H, W, 3) RGB; H and W multiples of the scale.
        params: of the step.

    Returns:
        (count, 2): top and left, multiples of the scale; empty if the photograph is smaller than a patch.
    """
    height, width = image.shape[:2]
    if min(height, width) < params.size:
        return np.empty((0, 2), np.int64)
    textured = local_deviation(image, params.texture_kernel) >= params.texture_threshold
    total = np.pad(textured.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    starts = (_starts(length, params.size, params.step) for length in (height, width))
    top, left = (axis.reshape(-1) for axis in np.meshgrid(*starts, indexing="ij"))
    bottom, right = top + params.size, left + params.size
    count = total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]
    windows: npt.NDArray[np.int64] = np.stack((top, left), 1)[count >= params.minimum_texture * params.size**2]
    return windows


def cropped_to_scale(image: Image) -> Image:
    """Cut an image at the bottom and the right so that its sides are multiples of the scale."""
    height, width = (length - length % SCALE for length in image.shape[:2])
    return image[:height, :width]


def _photographs(
    dataset: Path, manifest: pd.DataFrame, params: PatchesParams, patchless: Mapping[str, list[str]]
) -> Iterator[PhotographPair]:
    """Yield the photographs that give patches, and add the names of the others to `patchless`."""
    files = zip(manifest["file"], manifest["split"], strict=True)
    for file, split in progress(files, "patches", "photographs", len(manifest)):
        hr = cropped_to_scale(read_photograph(dataset / file))
        if len(windows := textured_windows(hr, params)):
            yield PhotographPair(hr, downscale_uint8(hr, SCALE), split, windows)
        else:
            patchless[split].append(file)


def make_patches(dataset: Path, output: Path, params: PatchesParams, expected: str | None = None) -> dict[str, int]:
    """Write the patches of a dataset's training and validation photographs.

    Args:
        dataset: folder that ingest wrote.
        output: folder of shards, replaced as a whole; see `bebygan.imaging.shards`. patchless.json in it names the
            photographs without a patch.
        params: of the step.
        expected: data version that the run ingested; None if it is not known.

    Returns:
        Number of patches by split.

    Raises:
        DataError: the dataset or one of its photographs is missing, damaged or of another data version, or no training
            patch has enough texture.
        StorageError: the output cannot be written.
    """
    check_dataset(dataset)
    manifest = photographs_of(dataset, PATCH_SPLITS)
    version = data_version(dataset)
    check_data_version(dataset, version, expected, "ingest")
    patchless: dict[str, list[str]] = {split: [] for split in PATCH_SPLITS}
    with whole_folder(output) as folder:
        counts = write_shards(
            folder,
            _photographs(dataset, manifest, params, patchless),
            params.size,
            params.shard_megabytes * 2**20,
            {"data_version": version, "params": to_yaml(params)},
        )
        write_patchless(folder, patchless)
        if not counts["train"]:
            raise DataError(
                f"no training patch of {params.size} pixels in {dataset} is textured enough: "
                "lower patches.minimum_texture or patches.size, or add photographs"
            )
    return counts


def tell(counts: Mapping[str, int], dataset: Path, output: Path) -> None:
    """Print how many patches the step made, and which photographs gave none."""
    summary = summarise(dataset, photographs_version(output), output)
    made = ", ".join(f"{count} {split} patches" for split, count in counts.items())
    print(f"{output}: {made}", *notice_lines(summary, output / "patchless.json"), sep="\n", flush=True)
    for notice, _ in notices_of(summary):
        announce(f"patches: {notice}")
