"""Upscaling on the fast path beside a plain forward pass in float32 over the whole image."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.tiling import upscale_fast
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.settings import Precision
from bebygan.training.state import place
from benchmarks.comparing import CPU, Crops, check_equal, time_and_memory
from benchmarks.figures import Figure, compared
from benchmarks.measuring import Outputs, Prepare, Rounds, Work, in_turn

_NOISE: dict[Precision, float] = {"fp32": 2e-3, "bf16": 1e-2}
"""Relative; rounding to 8 bits is half a step of some 100, seams and bfloat16 are one or two."""


def _photograph(crops: Crops) -> NDArray[np.uint8]:
    """Return a crop of a photograph, which serves as LR."""
    return to_image(crops.read()[1])


def _ours(crops: Crops, weights: Path, precision: Precision, tile: int | None) -> Work:
    generator, image = place(load_generator(weights).eval(), CPU, channels_last=True), _photograph(crops)
    return lambda: {"sr": torch.from_numpy(upscale_fast(generator, image, precision=precision, tile=tile))}


def _plain(crops: Crops, weights: Path) -> Work:
    generator: Generator = load_generator(weights).eval()
    image = _photograph(crops)

    def work() -> Outputs:
        with torch.inference_mode():
            sr = generator.pixels(generator.features(to_tensor(image)))
        return {"sr": torch.from_numpy(to_image(sr))}

    return work


def upscaling(
    crops: Crops,
    weights: Path,
    rounds: Rounds,
    *,
    least: float | None = None,
    least_memory: float | None = None,
    tile: int | None = None,
) -> list[Figure]:
    """Time, memory and PSNR of the fast path in bfloat16, and time and memory of it in float32 and in tiles.

    Args:
        crops: one square crop of a photograph.
        weights: of the generator.
        rounds: how often.
        least: target of the speed in bfloat16.
        least_memory: target of the memory in float32.
        tile: side of the tiles; None lets the fast path choose.
    """
    ways: dict[str, Prepare] = {"reference": partial(_plain, crops, weights)}
    ways |= {each: partial(_ours, crops, weights, each, None if each == "bf16" else tile) for each in _NOISE}
    blocks = f"{load_generator(weights).shape.blocks} blocks"
    found = in_turn(f"upscaling, {blocks}", ways, rounds)
    figures = []
    # Float32 in tiles may take 1.1 times as long as the whole image.
    for precision, speed, memory in (("bf16", least, None), ("fp32", 1 / 1.1, least_memory)):
        name = f"upscaling, {blocks}, {crops}, {precision}"
        check_equal(name, found[precision], found["reference"], {"sr": _NOISE[precision]})  # type: ignore[index]
        figures += time_and_memory(name, found[precision], found["reference"], speed, memory)
    error = np.square(found["bf16"].outputs["sr"] - found["reference"].outputs["sr"]).mean()
    psnr = float(10 * np.log10(255**2 / max(error, 1e-9)))
    return [*figures, compared(f"upscaling, {blocks}, {crops}, bf16: PSNR", psnr, 50, "dB", 1, more_is_better=True)]
