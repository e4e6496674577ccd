"""Validation of the averaged generator during training, on patches of the validation split."""

import numpy as np
import torch
from torch import Tensor

from bebygan.distributed import processes, rank, sum_over_processes
from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.shards import Patches
from bebygan.metrics.fidelity import psnr_y
from bebygan.networks.generator import Generator
from bebygan.precision import autocast
from bebygan.settings import Optimisation
from bebygan.training.sampling import whole_patch


@torch.no_grad()
def validate(generator: Generator, patches: Patches, optimisation: Optimisation) -> dict[str, float]:
    """Return means over up to `optimisation.validate_patches` patches, always the same ones, each process its share.

    No random number is drawn, and the generator's weights and mode stay as they are.

    Args:
        generator: computes in the precision of training.
        patches: of the validation split.
        optimisation: see `Optimisation`.

    Returns:
        validation.psnr_y (dB; see `metrics.protocol`) and validation.l1 (of RGB in [0, 1], not clamped); empty if the
        split has no patches.
    """
    if not len(patches):
        return {}
    count = min(optimisation.validate_patches, len(patches))
    chosen = np.linspace(0, len(patches) - 1, count).round().astype(int)
    device = next(generator.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64)
    for number in chosen[rank() :: processes()]:
        lr, hr = whole_patch(patches, int(number))
        with autocast(optimisation.precision, device):
            sr: Tensor = generator(to_tensor(lr, device))
        difference = sr.float() - to_tensor(hr, device)
        sums += torch.tensor([psnr_y(to_image(sr), hr), difference.abs().mean().item()])
    psnr, l1 = (sum_over_processes(sums) / count).tolist()
    return {"validation.psnr_y": psnr, "validation.l1": l1}
