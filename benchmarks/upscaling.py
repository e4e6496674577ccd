"""Upscaling on the fast path beside a plain forward pass in float32 over the whole image."""

import time
from functools import partial
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np
import torch
from numpy.typing import NDArray

from bebygan.imaging.convert import to_image, to_tensor
from bebygan.imaging.picture_files import picture_of, read_picture, write_picture, write_upscaled
from bebygan.imaging.tiling import enough_overlap, upscale_bands, upscale_fast, upscale_image
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.settings import Precision
from bebygan.training.state import place
from benchmarks import plain
from benchmarks.comparing import CPU, Crops, check_equal, psnr, time_and_memory
from benchmarks.figures import Figure, compared, limited
from benchmarks.measuring import Outputs, Prepare, Rounds, Work, in_turn, process_memory

_NOISE: dict[Precision, float] = {"fp32": 2e-3, "bf16": 1e-2}
"""Relative; rounding to 8 bits is half a step of some 100, seams and bfloat16 are one or two."""


def _photograph(crops: Crops) -> NDArray[np.uint8]:
    """Return a crop of a photograph, which serves as LR."""
    return to_image(crops.read()[1])


def _ours(crops: Crops, weights: Path, precision: Precision, tile: int | None) -> Work:
    generator, image = place(load_generator(weights).eval(), CPU, channels_last=True), _photograph(crops)
    return lambda: {"sr": torch.from_numpy(upscale_fast(generator, image, precision=precision, tile=tile))}


def plain_upscaling(crops: Crops, weights: Path, side: int | None = None) -> Work:
    """Compute the whole image in float32 by the plain formula; `side` continues the crop to a square."""
    generator: Generator = load_generator(weights).eval()
    image = _photograph(crops) if side is None else _mirrored(crops, side, side)

    def work() -> Outputs:
        with torch.inference_mode():
            return {"sr": torch.from_numpy(to_image(plain.generate(generator, to_tensor(image))))}

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
    ways: dict[str, Prepare] = {"reference": partial(plain_upscaling, crops, weights)}
    ways |= {each: partial(_ours, crops, weights, each, None if each == "bf16" else tile) for each in _NOISE}
    blocks = f"{load_generator(weights).shape.blocks} blocks"
    found = in_turn(f"upscaling, {blocks}", ways, rounds)
    figures = []
    # Float32 in tiles may take 1.1 times as long as the whole image.
    for precision, speed, memory in (("bf16", least, None), ("fp32", 1 / 1.1, least_memory)):
        name = f"upscaling, {blocks}, {crops}, {precision}"
        check_equal(name, found[precision], found["reference"], {"sr": _NOISE[precision]})  # type: ignore[index]
        figures += time_and_memory(name, found[precision], found["reference"], speed, memory)
    name, close = f"upscaling, {blocks}, {crops}, bf16: PSNR", psnr(found["bf16"], found["reference"])
    return [*figures, compared(name, close, 50, "dB", 1, more_is_better=True)]


def _mirrored(crops: Crops, height: int, width: int) -> NDArray[np.uint8]:
    """Return a crop of a photograph, continued by its mirror images."""
    image = _photograph(crops)
    return np.pad(image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), "symmetric")


def _tiled(crops: Crops, weights: Path, side: int, *, tile: int, overlap: int | None) -> Work:
    generator = place(load_generator(weights).eval(), CPU, channels_last=overlap is None)
    image, around = _mirrored(crops, side, side), enough_overlap(generator.shape) if overlap is None else overlap
    return lambda: {"sr": torch.from_numpy(upscale_image(generator, image, tile=tile, overlap=around))}


def tiling(crops: Crops, weights: Path, rounds: Rounds, side: int, tile: int) -> list[Figure]:
    """Time, memory and error of tiles in float32, beside the whole image and beside Real-ESRGAN's tiles.

    Args:
        crops: one square crop of a photograph.
        weights: of the generator.
        rounds: how often.
        side: of the image.
        tile: side of our tiles. Real-ESRGAN's have 128 pixels and 10 around them.
    """
    ways: dict[str, Prepare] = {
        "whole": partial(plain_upscaling, crops, weights, side),
        "ours": partial(_tiled, crops, weights, side, tile=tile, overlap=None),
        "theirs": partial(_tiled, crops, weights, side, tile=128, overlap=10),
    }
    found = in_turn("tiling", ways, rounds)
    whole, ours, theirs = (found[name] for name in ways)
    name = f"tiles of {tile} of {side}x{side}, {load_generator(weights).shape.blocks} blocks, fp32"
    return [
        *time_and_memory(f"{name}, beside the whole", ours, whole, 1 / 1.1, 4),
        *time_and_memory(f"{name}, beside tiles of 128 and 10 around", ours, theirs, 1, None),
        compared(
            f"{name}: PSNR to the whole, beside tiles of 128 and 10 around", psnr(ours, whole), psnr(theirs, whole),
            "dB", 1, more_is_better=True,
        ),
    ]  # fmt: skip


def _from_file_to_file(crops: Crops, weights: Path, height: int, width: int, ending: str) -> Work:
    """Upscale a photograph from a file to a file, once, and then its tiles alone.

    The outputs are the seconds of the former, of the network alone in the latter, and the process's peak in MB.
    """
    generator, folder = place(load_generator(weights).eval(), CPU, channels_last=True), Path(mkdtemp())
    source, target, spans = folder / f"lr{ending}", folder / f"sr{ending}", [0.0]
    write_picture(picture_of(_mirrored(crops, height, width)), source)

    def add(sign: int) -> None:
        spans[0] += sign * time.perf_counter()

    started = time.perf_counter()
    picture = read_picture(source)
    write_upscaled(picture, upscale_bands(generator, picture.rgb), target)
    seconds, peak = time.perf_counter() - started, process_memory("VmHWM")
    rmtree(folder)
    generator.register_forward_pre_hook(lambda *_: add(-1))
    generator.register_forward_hook(lambda *_: add(1))
    for _ in upscale_bands(generator, picture.rgb):
        continue
    return lambda: {"found": torch.tensor([seconds, spans[0], peak])}


def photograph(crops: Crops, weights: Path, *, height: int, width: int, ending: str) -> list[Figure]:
    """Time of a photograph from file to file beside that of its tiles in the network alone, and its memory.

    Args:
        crops: one square crop of a photograph.
        weights: of the generator.
        height: of the photograph, pixels.
        width: of the photograph, pixels.
        ending: of the files.
    """
    way = partial(_from_file_to_file, crops, weights, height, width, ending)
    found = in_turn("photograph", {"ours": way}, Rounds(least=1, seconds=0))["ours"]
    seconds, network, megabytes = (float(each) for each in found.outputs["found"])
    name = f"photograph of {width}x{height}, {ending[1:]}, from file to file"
    return [
        compared(f"{name}: time beside that of the network", seconds * 1e3, network * 1e3, "ms", 1 / 1.2),
        limited(f"{name}: memory of the process", megabytes, "MB", 1000),
    ]
