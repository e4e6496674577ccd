"""All metrics of one photograph. What they need of the original is computed once for all candidates."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bebygan.imaging import Image
from bebygan.imaging.convert import to_tensor
from bebygan.losses.region_aware import textured_regions
from bebygan.metrics.fidelity import lr_psnr, psnr_y, psnr_y_in, ssim_y
from bebygan.metrics.perceptual import Lpips, load_lpips
from bebygan.metrics.relative_variance import artefacts
from bebygan.networks.dists import Dists, load_dists
from bebygan.precision import full_precision
from bebygan.pretrained import weights_file
from components.artifacts import capped
from components.config import Metric
from components.evaluate.pictures import Square

LEAST_REGION = 0.01
"""Share of the pixels below which a region is too small to be measured."""
DISTS_SIDE = 128
"""Side of the square that DISTS is measured on, pixels: on whole photographs it takes longer than all other metrics."""


@dataclass(frozen=True)
class Networks:
    """The networks of the perceptual metrics, on one device."""

    lpips: Lpips
    dists: Dists


def load_networks(device: torch.device) -> Networks:
    """Load the networks of the perceptual metrics.

    Raises:
        WeightsError: weights cannot be loaded.
    """
    distance = load_lpips(weights_file("alexnet"), weights_file("lpips-alex"))
    return Networks(distance.to(device), load_dists(weights_file("vgg16"), weights_file("dists")).to(device))


class Original:
    """A photograph, HR and LR, with its features and regions."""

    @torch.inference_mode()
    def __init__(self, hr: Image, lr: Image, square: Square, networks: Networks) -> None:
        self.hr, self.lr, self.square, self.networks = hr, lr, square, networks
        self.device = networks.lpips.shift.device
        images = to_tensor(hr, self.device)
        self.textured: npt.NDArray[np.bool_] = textured_regions(to_tensor(hr))[0, 0].numpy() > 0
        self._lpips = networks.lpips.features(images)
        self._dists = self._square_features(hr)

    def _square_features(self, image: Image) -> list[Tensor]:
        with full_precision(self.device):
            return self.networks.dists.features(to_tensor(np.ascontiguousarray(image[self.square]), self.device))

    @torch.inference_mode()
    def metrics(self, sr: Image, reference: Image) -> dict[Metric, float]:
        """Return all metrics of SR; NaN for those of a region that the photograph does not have.

        Args:
            sr: (H, W, 3), uint8 RGB.
            reference: upscaled by the start, which `artefacts` is compared with.
        """
        maps = self.networks.lpips.maps(self.networks.lpips.features(to_tensor(sr, self.device)), self._lpips)
        found: dict[Metric, float] = {
            "psnr_y": capped("psnr_y", psnr_y(sr, self.hr)),
            "ssim_y": ssim_y(sr, self.hr),
            "lpips": float(sum(each.mean() for each in maps)),
            "dists": float(self.networks.dists.distance(self._square_features(sr), self._dists)),
            "lr_psnr": capped("lr_psnr", lr_psnr(sr, self.lr)),
            "artefacts": artefacts(sr, reference),
        }
        regions: tuple[tuple[Metric, Metric, npt.NDArray[np.bool_]], ...] = (
            ("psnr_y_textured", "lpips_textured", self.textured),
            ("psnr_y_flat", "lpips_flat", ~self.textured),
        )
        for fidelity, perceptual, region in regions:
            large = region.mean() >= LEAST_REGION
            found[fidelity] = capped(fidelity, psnr_y_in(sr, self.hr, region)) if large else float("nan")
            found[perceptual] = self.networks.lpips.mean_in(maps, region) if large else float("nan")
        return found
