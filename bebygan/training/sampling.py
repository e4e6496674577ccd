"""Which patch comes when: a pure function of seed and position, so that a run resumes exactly from its iteration.

No generator has state here. Sample k of a run (counted over all processes) is patch `order(epoch)[k mod n]`, cropped
and flipped by numbers drawn from (seed, k) alone: it is the same whatever the number of processes.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.imaging import Image
from bebygan.imaging.shards import Patches

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


def _tensor(images: list[Image], device: torch.device) -> Tensor:
    stacked = torch.from_numpy(np.stack(images)).to(device)
    return stacked.permute(0, 3, 1, 2).float().div_(255)


def batch(
    patches: Patches, seed: int, first: int, count: int, *, crop: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return samples `first` to `first + count - 1` of a run.

    Returns:
        LR (count, 3, crop / 4, crop / 4) and HR (count, 3, crop, crop), float32 RGB in [0, 1], on `device`.

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
    return _tensor([lr for lr, _ in pairs], device), _tensor([hr for _, hr in pairs], device)
