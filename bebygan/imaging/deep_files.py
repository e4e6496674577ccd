"""Reading PNG and TIFF files of 16 bits per channel, which Pillow reads as 8 bits."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageFile

Channels = npt.NDArray[np.uint16]
"""(H, W, C) with 1 channel (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA)."""

_LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
"""Pillow keeps the first or the last byte of a sample. Read in the other order, it keeps the low one."""


def _with(rawmode: str, args: Any) -> Any:
    return rawmode if isinstance(args, str) else (rawmode, *args[1:])


def _unpacked(content: io.BytesIO, mode: str, rawmode: str) -> npt.NDArray[np.uint8]:
    """Decode a file with Pillow's unpacker `rawmode`."""
    with PillowImage.open(content, formats=("PNG", "TIFF")) as file:
        file._mode = mode
        file.tile = [tile._replace(args=_with(rawmode, tile.args)) for tile in file.tile]
        return np.asarray(file)


def read_channels(file: ImageFile.ImageFile, content: io.BytesIO) -> Channels:
    """Read all 16 bits of a grey or RGB file, with or without alpha.

    Args:
        file: as Pillow opened it.
        content: of the file.

    Raises:
        ValueError: the colours are stored in another way.
    """
    args: Any = file.tile[0].args
    rawmode = args if isinstance(args, str) else args[0]
    if file.mode.startswith("I;16"):
        return np.asarray(file).astype(np.uint16)[..., None]
    if rawmode == "LA;16B":
        # The four bytes of a pixel: grey, high and low, and alpha, high and low.
        high, low = np.moveaxis(_unpacked(content, "RGBA", "RGBA").reshape(*file.size[::-1], 2, 2), -1, 0)
    elif file.mode in ("RGB", "RGBA") and rawmode[:-4] == file.mode and rawmode[-4:] in _LOW_BYTE:
        swapped = rawmode[:-4] + _LOW_BYTE[rawmode[-4:]]
        high, low = _unpacked(content, file.mode, rawmode), _unpacked(content, file.mode, swapped)
    else:
        raise ValueError(f"its 16-bit colours are of the kind {rawmode}: save it as RGB")
    return np.left_shift(high, 8, dtype=np.uint16) | low
