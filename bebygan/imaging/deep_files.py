"""PNG and TIFF files of 16 bits per channel, which Pillow reads as 8 bits and, in colour, does not write."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageFile, TiffImagePlugin

Channels = npt.NDArray[np.uint16]
"""(H, W, C) with 1 channel (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGBA)."""

_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_ICC_PROFILE, _EXIF, _EXTRA_SAMPLES = 34675, 34665, 338
_LOW_BYTE = {";16B": ";16L", ";16L": ";16B", ";16N": ";16B"}
"""Pillow keeps the first or the last byte of a sample. Read in the other order, it keeps the low one."""
_DEFLATE = 8


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


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bytes(channels: Channels, metadata: dict[str, bytes]) -> bytes:
    """Encode a PNG with the metadata `icc_profile` and `exif`."""
    height, width, count = channels.shape
    raw = channels.astype(">u2").view(np.uint8).reshape(height, -1)
    # Filter 2: the difference to the row above.
    rows = np.empty((height, raw.shape[1] + 1), np.uint8)
    rows[:, 0], rows[0, 1:], rows[1:, 1:] = 2, raw[0], raw[1:] - raw[:-1]
    content = b"\x89PNG\r\n\x1a\n"
    content += _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR[count], 0, 0, 0))
    if profile := metadata.get("icc_profile"):
        content += _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile))
    if exif := metadata.get("exif"):
        content += _chunk(b"eXIf", exif.removeprefix(b"Exif\0\0"))
    return content + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 6)) + _chunk(b"IEND", b"")


def tiff_bytes(channels: Channels, metadata: dict[str, bytes]) -> bytes:
    """Encode a TIFF, deflated, with the metadata `icc_profile` and `exif`."""
    height, width, count = channels.shape
    strip = zlib.compress(channels.astype("<u2").tobytes(), 6)
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(b"II\x2a\0\0\0\0\0")
    if exif := metadata.get("exif"):
        found = PillowImage.Exif()
        found.load(exif)
        tags.update({tag: value for tag, value in found.items() if tag != _EXIF})
        if inner := dict(found.get_ifd(_EXIF)):
            tags[_EXIF] = inner
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16,) * count
    tags[TiffImagePlugin.COMPRESSION] = _DEFLATE
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if count > 2 else 1
    tags[TiffImagePlugin.SAMPLESPERPIXEL], tags[TiffImagePlugin.ROWSPERSTRIP] = count, height
    # Pillow adds the length of the directory.
    tags[TiffImagePlugin.STRIPOFFSETS], tags[TiffImagePlugin.STRIPBYTECOUNTS] = 0, len(strip)
    if count in (2, 4):
        tags[_EXTRA_SAMPLES] = 2
    if profile := metadata.get("icc_profile"):
        tags.tagtype[_ICC_PROFILE] = 7
        tags[_ICC_PROFILE] = profile
    head = io.BytesIO()
    tags.save(head)
    return head.getvalue() + strip
