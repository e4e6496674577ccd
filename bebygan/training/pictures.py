"""Pictures of training: a few fixed samples, to be compared between iterations."""

import numpy as np
import torch
from torch import Tensor

from bebygan import SCALE
from bebygan.imaging import Image
from bebygan.imaging.convert import to_image
from bebygan.losses.best_buddy import ORIGINS, find_best_buddies
from bebygan.losses.region_aware import region_mask
from bebygan.networks.generator import Generator
from bebygan.precision import full_precision
from bebygan.settings import BestBuddySettings, GanSettings, Optimisation

LEVEL_COLOURS = {"own": (32, 36, 44), "full": (66, 133, 196), "half": (240, 180, 60), "quarter": (214, 72, 56)}
"""RGB of a patch in the map of levels, by where it found its buddy; see `ORIGINS`."""
_GAP = 4


def level_map(sr: Tensor, hr: Tensor, settings: BestBuddySettings) -> Image:
    """Return a picture of where each patch found its best buddy: one pixel per patch, in `LEVEL_COLOURS`.

    Args:
        sr: (1, 3, H, W).
        hr: the same shape.
        settings: see `BestBuddySettings`.
    """
    origins = find_best_buddies(sr, hr, settings).origins()[0]
    rows, columns = ((side - settings.patch) // settings.stride + 1 for side in hr.shape[-2:])
    colours = np.array([LEVEL_COLOURS[name] for name in ORIGINS], np.uint8)
    picture: Image = colours[origins.view(rows, columns).cpu().numpy()]
    return picture


def _enlarged(image: Image, height: int, width: int) -> Image:
    """Enlarge an image to a size by repeating pixels."""
    rows = np.arange(height) * image.shape[0] // height
    columns = np.arange(width) * image.shape[1] // width
    enlarged: Image = image[rows[:, None], columns]
    return enlarged


def _panels(sr: Tensor, lr: Tensor, hr: Tensor, settings: Optimisation) -> list[Image]:
    panels = [to_image(lr), to_image(sr), to_image(hr)]
    if isinstance(settings, GanSettings):
        if settings.losses.adversarial:
            panels.append(to_image(region_mask(hr, lr, **vars(settings.region)).expand(-1, 3, -1, -1)))
        if settings.losses.best_buddy:
            panels.append(level_map(sr, hr, settings.best_buddy))
    return [_enlarged(panel, *hr.shape[-2:]) for panel in panels]


@torch.no_grad()
def picture_grid(generator: Generator, lr: Tensor, hr: Tensor, settings: Optimisation) -> Image:
    """Return samples one below the other, each as LR, SR, HR and, in GAN training, mask and map of chosen levels.

    The mask is white where the discriminator sees the image; the map's colours are `LEVEL_COLOURS`.

    Args:
        generator: its mode and its weights stay as they are.
        lr: (N, 3, H, W), RGB in [0, 1], on the generator's device.
        hr: (N, 3, 4H, 4W).
        settings: of the step; those of GAN training name the losses whose mask and map are shown.
    """
    with full_precision(lr.device):
        sr = generator(lr).float()
    side = lr.shape[-1] * SCALE
    rows = [_panels(sr[[number]], lr[[number]], hr[[number]], settings) for number in range(len(lr))]
    pitch = side + _GAP
    grid = np.full((len(rows) * pitch - _GAP, len(rows[0]) * pitch - _GAP, 3), 255, np.uint8)
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            grid[row * pitch : row * pitch + side, column * pitch : column * pitch + side] = panel
    return grid
