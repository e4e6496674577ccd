"""Upscaling images of any size with bounded memory."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch

from bebygan import SCALE
from bebygan.imaging import Image, Image16
from bebygan.imaging.convert import to_array, to_tensor
from bebygan.networks.generator import BAND, Generator
from bebygan.precision import DTYPES, resolve
from bebygan.settings import GeneratorShape, Precision

TILE = 448
"""Largest side of a tile, LR pixels, unless memory is limited. Larger ones save little: the overlap costs 11 % with 4
blocks, 23 % with 23, and a photograph of 12 megapixels takes 1 GB with the former."""
SMALLEST_TILE = 32
AnyImage = TypeVar("AnyImage", bound=Image | Image16)


def enough_overlap(shape: GeneratorShape) -> int:
    """Return the overlap of tiles, LR pixels, from which seams are far below one step of 8 bits.

    Measured with trained weights against the whole image: 4 blocks and an overlap of 12, at most 2 of 100,000 values
    differ, by 1 of 255 (96 dB); 23 blocks and an overlap of 24, 1.6 % differ, by 1 of 255 (66 dB).
    """
    return min(8 + shape.blocks, 24)


def tile_for(shape: GeneratorShape, dtype: torch.dtype, memory: int, row: int = 0) -> int:
    """Return the largest side of a tile, a multiple of 32 up to `TILE`, that takes at most `memory` bytes.

    Not even the smallest tile may fit.

    Args:
        shape: of the generator.
        dtype: of its arithmetic.
        memory: bytes.
        row: bytes that are kept for each LR row of a tile, besides its maps.
    """

    def needed(side: int) -> int:
        pixels = (side + 2 * enough_overlap(shape)) ** 2
        # The stack of a dense block, twice, and the residuals that are kept.
        trunk = pixels * (2 * (shape.features + 4 * shape.growth) + 5 * shape.features)
        last = shape.features * (pixels + 3 * SCALE**2 * min(pixels, BAND))
        return max(trunk, last) * dtype.itemsize + pixels * 3 * SCALE**2 * (dtype.itemsize + 8) + side * row

    sides = range(SMALLEST_TILE, TILE + 1, SMALLEST_TILE)
    return max((side for side in sides if needed(side) <= memory), default=SMALLEST_TILE)


def band_bytes(image: Image | Image16) -> int:
    """Return the bytes of two upscaled bands, for each LR row: one is computed while one is encoded."""
    return int(2 * SCALE**2 * image[0].nbytes)


def upscale_bands(
    generator: Generator,
    image: AnyImage,
    *,
    precision: Precision = "auto",
    tile: int | None = None,
    memory: int | None = None,
    advance: Callable[[int], object] | None = None,
    into: AnyImage | None = None,
) -> Iterator[AnyImage]:
    """Upscale one image on the fast path of this machine, and yield its rows in bands; see `upscale_fast`.

    Args:
        generator: see `upscale_fast`.
        image: see `upscale_fast`.
        precision: of the arithmetic.
        tile: largest side of a tile; None chooses it.
        memory: bytes that two bands and the maps of a tile may take.
        advance: see `upscale_image`.
        into: (4H, 4W, 3) of the same type: the bands are views of it. None makes an array for each.

    Returns:
        Bands (rows, 4W, 3) from top to bottom, each as high as a tile.
    """
    device = next(generator.parameters()).device
    exact = image.dtype != np.uint8 and precision == "auto"
    dtype = torch.float32 if exact else DTYPES[resolve(precision, device)]
    if tile is None:
        row = band_bytes(image) if into is None else 0
        tile = TILE if memory is None else tile_for(generator.shape, dtype, memory, row)
    overlap = enough_overlap(generator.shape)
    lower = None if dtype == torch.float32 else dtype
    return _bands(generator, image, tile=tile, overlap=overlap, dtype=lower, advance=advance, into=into)


def _joined(image: AnyImage, bands: Callable[..., Iterator[AnyImage]]) -> AnyImage:
    """Return a whole upscaled image, given what computes its bands."""
    result: Any = np.empty((image.shape[0] * SCALE, image.shape[1] * SCALE, 3), image.dtype)
    for _ in bands(into=result):
        continue
    return cast(AnyImage, result)


def upscale_fast(
    generator: Generator,
    image: AnyImage,
    *,
    precision: Precision = "auto",
    tile: int | None = None,
    memory: int | None = None,
) -> AnyImage:
    """Upscale one image on the fast path of this machine: bfloat16 where the processor computes it, large tiles.

    In 8 bits, bfloat16 differs from float32 by 55 dB of PSNR with 4 blocks and by 52 dB with 23 blocks (trained
    weights, photographs). Images of 16 bits are computed in float32 unless `precision` says otherwise.

    Args:
        generator: channels_last is fastest.
        image: (H, W, 3) uint8 or uint16 RGB.
        precision: of the arithmetic.
        tile: largest side of a tile; None chooses it.
        memory: bytes that the maps of a tile may take.

    Returns:
        (4H, 4W, 3) RGB of the same type.

    Raises:
        ValueError, MemoryError, torch.OutOfMemoryError, RuntimeError: see `upscale_image`.
    """
    bands = partial(upscale_bands, generator, image, precision=precision, tile=tile, memory=memory)
    return _joined(image, bands)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out; on the CPU torch raises a RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in ("allocate memory", "not enough memory"))
    )


class _Region(NamedTuple):
    """A rectangle of LR pixels."""

    top: int
    left: int
    bottom: int
    right: int


def _regions(region: _Region, side: int) -> list[_Region]:
    """Divide a region into tiles of about the same size, none larger than `side`, in rows."""
    rows, columns = (
        np.linspace(first, last, -(-(last - first) // side) + 1).round().astype(int).tolist()
        for first, last in ((region.top, region.bottom), (region.left, region.right))
    )
    return [_Region(top, left, bottom, right) for top, bottom in pairwise(rows) for left, right in pairwise(columns)]


def upscale_image(
    generator: Generator,
    image: AnyImage,
    *,
    tile: int | None = None,
    overlap: int = 32,
    dtype: torch.dtype | None = None,
    advance: Callable[[int], object] | None = None,
) -> AnyImage:
    """Upscale one image four times, on the generator's device.

    Each tile is computed with `overlap` more pixels on every side, which are then cut off. The generator's receptive
    field is wider than any useful overlap (radius 15 * blocks + 4 pixels, far less in effect), so tiles equal the whole
    only up to a tolerance: with trained weights of 23 blocks and an overlap of 32, fewer than 1 % of the values differ,
    by at most 2 of 255 (without overlap 30 %, by up to 88). If memory runs out, this tile and the following ones are
    divided into tiles of half the side; what is complete stays.

    Args:
        generator: in any memory format.
        image: (H, W, 3) uint8 or uint16 RGB of any size from 1 x 1.
        tile: largest side of a tile in LR pixels, without its overlap; None takes the image whole.
        overlap: LR pixels around each tile.
        dtype: of the network's arithmetic, by autocast; None is float32.
        advance: called after each tile with its number of LR pixels.

    Returns:
        (4H, 4W, 3) RGB of the same type.

    Raises:
        ValueError: `image` is not (H, W, 3) uint8 or uint16, `tile` is below 1 or `overlap` below 0.
        MemoryError, torch.OutOfMemoryError, RuntimeError: not even a tile of 32 pixels fits; see `out_of_memory`.
    """
    bands = partial(_bands, generator, image, tile=tile, overlap=overlap, dtype=dtype, advance=advance)
    return _joined(image, bands)


def _bands(
    generator: Generator,
    image: AnyImage,
    *,
    tile: int | None,
    overlap: int,
    dtype: torch.dtype | None,
    advance: Callable[[int], object] | None,
    into: AnyImage | None,
) -> Iterator[AnyImage]:
    """Yield the rows of an upscaled image, tile by tile; see `upscale_image` and `upscale_bands`."""
    if (tile is not None and tile < 1) or overlap < 0:
        raise ValueError(f"tile must be at least 1 and overlap at least 0, got {tile} and {overlap}")
    height, width = image.shape[:2]
    side = min(tile or max(height, width), max(height, width))
    for first, row in groupby(_regions(_Region(0, 0, height, width), side), lambda region: region.top):
        waiting = list(row)[::-1]
        shape = (SCALE * (waiting[0].bottom - first), SCALE * width, 3)
        band: Any = np.empty(shape, image.dtype) if into is None else into[SCALE * first :][: shape[0]]
        while waiting:
            region = waiting.pop()
            if max(region.bottom - region.top, region.right - region.left) > side:
                waiting += _regions(region, side)[::-1]
                continue
            try:
                upscaled = _upscale_region(generator, image, region, overlap, dtype)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error) or side <= SMALLEST_TILE:
                    raise
                waiting.append(region)
                side = max(SMALLEST_TILE, side // 2)
                # Outside of the except clause, whose traceback holds tensors.
                upscaled = None
            if upscaled is None:
                torch.cuda.empty_cache()
                continue
            top, left, bottom, right = (SCALE * edge for edge in region)
            band[top - SCALE * first : bottom - SCALE * first, left:right] = upscaled
            if advance:
                advance((region.bottom - region.top) * (region.right - region.left))
        yield band


def _upscale_region(
    generator: Generator, image: AnyImage, region: _Region, overlap: int, dtype: torch.dtype | None
) -> AnyImage:
    """Compute one tile with its overlap, and cut that off."""
    device = next(generator.parameters()).device
    top, left = max(region.top - overlap, 0), max(region.left - overlap, 0)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        sr = generator(to_tensor(image[top : region.bottom + overlap, left : region.right + overlap], device))
    rows = slice(SCALE * (region.top - top), SCALE * (region.bottom - top))
    columns = slice(SCALE * (region.left - left), SCALE * (region.right - left))
    return cast(AnyImage, to_array(sr[..., rows, columns], image.dtype))
