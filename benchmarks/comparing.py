"""What all cases need: crops of real photographs, and a comparison of ours with a reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import PhotographPair, read_patches, write_shards
from bebygan.training.sampling import batch
from benchmarks.figures import Figure, compared
from benchmarks.measuring import Measured, Rounds, Work, difference, in_turn
from components.config import PatchesParams
from components.patches.step import cropped_to_scale, textured_windows
from components.stores.dataset import read_photograph

CPU = torch.device("cpu")
LOSS_NOISE = 1e-5
"""Float32 noise of a loss, relative."""
GRADIENT_NOISE = 5e-2
"""The gradient of |x - y| is a sign, which noise flips where x and y are nearly equal."""


class WrongResultError(Exception):
    """Ours is not what the reference computes: how fast it is does not matter."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of real photographs: which, how large, how many."""

    patches: Path
    side: int
    count: int

    def read(self) -> tuple[Tensor, Tensor]:
        """Return LR and HR."""
        patches = read_patches(self.patches, "train", verify=False)
        return batch(patches, 1, 0, self.count, crop=self.side, device=CPU)

    def __str__(self) -> str:
        return f"{self.count} x {self.side}"


def write_sample(photographs: Path, output: Path, params: PatchesParams) -> None:
    """Write the patches of a folder of RGB photographs, as the patches step does with what ingest gives it.

    Raises:
        DataError: there is no photograph large enough.
    """
    output.mkdir()
    paths = sorted(path for path in photographs.iterdir() if path.suffix in (".jpg", ".png"))
    images = [cropped_to_scale(read_photograph(path)) for path in paths]
    stored = [
        PhotographPair(hr, downscale_uint8(hr, SCALE), "train", windows)
        for hr in images
        if len(windows := textured_windows(hr, params))
    ]
    if not stored:
        raise DataError(f"{photographs} holds no photograph of {params.size} pixels or more")
    write_shards(output, stored, params.size, params.shard_megabytes * 2**20, {})


def psnr(ours: Measured, reference: Measured) -> float:
    """Return the PSNR of the output `sr` in 8 bits, dB."""
    error = float(np.square(ours.outputs["sr"] - reference.outputs["sr"]).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def check_equal(name: str, ours: Measured, reference: Measured, limits: Mapping[str, float]) -> None:
    """Compare all outputs.

    Args:
        name: of what was computed.
        ours: with its outputs.
        reference: with the same outputs.
        limits: largest relative difference by name of output; every one has a limit.

    Raises:
        WrongResultError: one differs by more.
    """
    for output, found in difference(ours.outputs, reference.outputs).items():
        # Written so that NaN is refused too.
        if not found <= limits[output]:
            raise WrongResultError(
                f"{name}: {output} differs by {found:.2g} from the reference, {limits[output]:g} is noise"
            )


def time_and_memory(
    name: str, ours: Measured, reference: Measured, least_speed: float | None, least_memory: float | None
) -> list[Figure]:
    """Return two figures: how many times less time and memory ours takes, each with its target."""
    return [
        compared(f"{name}: time", ours.seconds * 1e3, reference.seconds * 1e3, "ms", least_speed),
        compared(f"{name}: memory", ours.megabytes, reference.megabytes, "MB", least_memory),
    ]


def compare(
    name: str,
    ours: Callable[..., Work],
    reference: Callable[..., Work],
    arguments: tuple[Any, ...],
    rounds: Rounds,
    *,
    limits: Mapping[str, float],
    least_speed: float | None = None,
    least_memory: float | None = None,
) -> list[Figure]:
    """Measure two ways to do the same in turn, check that their outputs agree, and return time and memory.

    Args:
        name: of what is done.
        ours: makes the work from `arguments`, in a process of its own.
        reference: the same for the reference.
        arguments: picklable.
        rounds: how often each takes its turn.
        limits: see `check_equal`.
        least_speed: target of the ratio of times.
        least_memory: target of the ratio of memory.

    Raises:
        WrongResultError: the outputs differ by more than the limits.
    """
    found = in_turn(name, {"ours": partial(ours, *arguments), "reference": partial(reference, *arguments)}, rounds)
    check_equal(name, found["ours"], found["reference"], limits)
    return time_and_memory(name, found["ours"], found["reference"], least_speed, least_memory)
