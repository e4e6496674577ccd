"""Validation of the averaged generator during training, on patches of the validation split."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from bebygan.distributed import processes, rank, sum_over_processes
from bebygan.errors import DataError
from bebygan.imaging import Image
from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.shards import Patches
from bebygan.metrics.fidelity import lr_psnr, psnr_y
from bebygan.networks.generator import Generator
from bebygan.precision import autocast
from bebygan.settings import Optimisation
from bebygan.training.sampling import whole_patch

Distance = Callable[[Image, Image], float]
"""Perceptual distance of SR and HR, such as `bebygan.metrics.lpips` with its network."""


def check_validation(optimisation: Optimisation, patches: Patches | None, lpips: Distance | None) -> None:
    """Raise an error if what a training needs of validation cannot be measured.

    Args:
        optimisation: see `Optimisation`.
        patches: of the validation split; None if the training is not to be validated.
        lpips: measures validation.lpips.

    Raises:
        DataError: the split has no patches.
        ValueError: LPIPS is needed, and there is no function for it.
    """
    if not optimisation.validate_every or patches is None:
        return
    if not len(patches):
        raise DataError(
            f"there are no patches to validate on, but validate_every is {optimisation.validate_every}: raise "
            "ingest.validation_share, add photographs, lower patches.minimum_texture or patches.size, or set "
            "validate_every to 0 and deliver.by to last"
        )
    if lpips is None and "validation.lpips" in (optimisation.deliver.by, optimisation.keep.best):
        raise ValueError("deliver.by or keep.best is validation.lpips: pass a function that measures it")


@torch.no_grad()
def validate(
    generator: Generator, patches: Patches, optimisation: Optimisation, lpips: Distance | None = None
) -> dict[str, float]:
    """Return means over up to `optimisation.validate_patches` patches, always the same ones, each process its share.

    No random number is drawn, and the generator's weights and mode stay as they are.

    Args:
        generator: computes in the precision of training.
        patches: of the validation split.
        optimisation: see `Optimisation`.
        lpips: measures validation.lpips; None leaves it out.

    Returns:
        validation.psnr_y and validation.lr_psnr (dB), validation.lpips (see `metrics.protocol` for each), and
        validation.l1 (of RGB in [0, 1], not clamped); empty if the split has no patches.
    """
    if not len(patches):
        return {}
    count = min(optimisation.validate_patches, len(patches))
    chosen = np.linspace(0, len(patches) - 1, count).round().astype(int)
    device = next(generator.parameters()).device
    names = ["psnr_y", "l1", "lr_psnr", *(["lpips"] if lpips else [])]
    sums = torch.zeros(len(names), dtype=torch.float64)
    for number in chosen[rank() :: processes()]:
        lr, hr = whole_patch(patches, int(number))
        with autocast(optimisation.precision, device):
            sr: Tensor = generator(to_tensor(lr, device))
        difference = sr.float() - to_tensor(hr, device)
        image = to_image(sr)
        values = [psnr_y(image, hr), difference.abs().mean().item(), lr_psnr(image, lr)]
        sums += torch.tensor([*values, lpips(image, hr)] if lpips else values)
    means = (sum_over_processes(sums) / count).tolist()
    return {f"validation.{name}": value for name, value in zip(names, means, strict=True)}
