"""The order of patches: a pure function of seed and position, so that a run resumes exactly from its iteration.

Random generators have no state here. Sample k of a run (counted over all processes) is patch `order(epoch)[k mod n]`,
cropped and flipped by numbers drawn from (seed, k) only: it does not depend on the number of processes.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bebygan import SCALE
from bebygan.distributed import rank
from bebygan.errors import DataError
from bebygan.imaging import Image
from bebygan.imaging.shards import Patches
from bebygan.settings import Optimisation

_ORDER, _CROP = 0, 1


@lru_cache(maxsize=2)
def _order(patches: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, _ORDER, epoch)).permutation(patches)


def sample(patches: Patches, seed: int, position: int, crop: int) -> tuple[Image, Image]:
    """Return one augmented pair.

    Args:
        patches: of the training split.
        seed: of the run.
        position: number of the sample in the run, from 0.
        crop: side of the HR crop, pixels, a multiple of the scale.

    Returns:
        LR (crop / 4, crop / 4, 3) and HR (crop, crop, 3), views of the memory map where nothing is flipped.
    """
    epoch, place = divmod(position, len(patches))
    window = patches.windows[_order(len(patches), seed, epoch)[place]]
    random = np.random.default_rng((seed, _CROP, position))
    steps = (patches.size - crop) // SCALE + 1
    down, right = random.integers(0, steps, 2)
    flip_rows, flip_columns, transpose = random.random(3) < 0.5
    number = window["photograph"]
    pair = []
    for pixels, scale in ((patches.lr[number], 1), (patches.hr[number], SCALE)):
        top = (window["top"] // SCALE + down) * scale
        left = (window["left"] // SCALE + right) * scale
        side = crop // SCALE * scale
        view = pixels[top : top + side, left : left + side]
        if flip_rows:
            view = view[::-1]
        if flip_columns:
            view = view[:, ::-1]
        if transpose:
            view = view.transpose(1, 0, 2)
        pair.append(view)
    return pair[0], pair[1]


def whole_patch(patches: Patches, number: int) -> tuple[Image, Image]:
    """Return LR and HR of one patch as it is stored, neither cropped nor flipped: views of the memory map."""
    window = patches.windows[number]
    pair = []
    for pixels, scale in ((patches.lr, 1), (patches.hr, SCALE)):
        top, left, side = (int(value) // SCALE * scale for value in (window["top"], window["left"], patches.size))
        pair.append(pixels[window["photograph"]][top : top + side, left : left + side])
    return pair[0], pair[1]


def batch_pixels(patches: Patches, seed: int, first: int, count: int, crop: int) -> tuple[Tensor, Tensor]:
    """Return samples `first` to `first + count - 1` of a run as they are stored.

    Returns:
        LR (count, crop / 4, crop / 4, 3) and HR (count, crop, crop, 3), uint8 RGB.

    Raises:
        DataError: there are no patches, or they are smaller than the crop.
    """
    if not len(patches):
        raise DataError("there are no training patches: lower patches.minimum_texture or add photographs")
    if crop > patches.size:
        raise DataError(
            f"a crop of {crop} does not fit into patches of {patches.size}: lower it or make larger patches"
        )
    pairs = [sample(patches, seed, position, crop) for position in range(first, first + count)]
    lr, hr = (torch.from_numpy(np.stack(images)) for images in zip(*pairs, strict=True))
    return lr, hr


def to_images(pixels: Tensor, device: torch.device) -> Tensor:
    """Return uint8 pixels (N, H, W, 3) as images (N, 3, H, W), float32 RGB in [0, 1], on a device."""
    return pixels.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def batch(
    patches: Patches, seed: int, first: int, count: int, *, crop: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return samples `first` to `first + count - 1` of a run.

    Returns:
        LR (count, 3, crop / 4, crop / 4) and HR (count, 3, crop, crop), float32 RGB in [0, 1], on `device`.

    Raises:
        DataError: there are no patches, or they are smaller than the crop.
    """
    lr, hr = batch_pixels(patches, seed, first, count, crop)
    return to_images(lr, device), to_images(hr, device)


class Loader:
    """Reads the batches of a run, each process its own share, the next one in a thread during training.

    As a context manager it ends its thread.

    Args:
        patches: of the training split.
        optimisation: see `Optimisation`.
        share: samples of a batch that this process reads.
        device: of the tensors.
    """

    def __init__(self, patches: Patches, optimisation: Optimisation, share: int, device: torch.device) -> None:
        self._patches = patches
        self._optimisation = optimisation
        self._share = share
        self._device = device
        self._thread = ThreadPoolExecutor(1, "loader")
        self._ahead: dict[int, Future[tuple[Tensor, Tensor]]] = {}

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _read(self, iteration: int) -> tuple[Tensor, Tensor]:
        first = iteration * self._optimisation.batch + rank() * self._share
        lr, hr = batch_pixels(self._patches, self._optimisation.seed, first, self._share, self._optimisation.crop)
        if self._device.type != "cuda":
            return lr, hr
        # Only page-locked memory is copied to a GPU while it computes. A new thread would use the first GPU.
        with torch.cuda.device(self._device):
            return lr.pin_memory(), hr.pin_memory()

    def load(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return LR and HR of an iteration, as `batch` does, and start reading the next.

        Raises:
            DataError: see `batch_pixels`.
        """
        reading = self._ahead.pop(iteration, None) or self._thread.submit(self._read, iteration)
        lr, hr = reading.result()
        self._ahead = {iteration + 1: self._thread.submit(self._read, iteration + 1)}
        return to_images(lr, self._device), to_images(hr, self._device)
