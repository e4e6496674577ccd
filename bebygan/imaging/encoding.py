"""Encoding images block by block: PNG, TIFF and JPEG need one block in memory, the other formats the whole image."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import TiffImagePlugin

from bebygan.errors import DataError

BLOCK = 64
"""Rows of a block: eight rows of JPEG's 8x8 squares, because restart markers are numbered from 0 to 7."""
Blocks = Iterator[npt.NDArray[Any]]
"""Each (BLOCK, W, C), the last one lower: grey, grey and alpha, RGB or RGBA, of 8 or 16 bits."""
_LEVEL = 4
"""Of deflate. Files of the default, 6, are 4 to 8 % smaller and take three times as long."""
_PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}
_ICC_PROFILE, _EXIF, _GPS, _INTEROPERABILITY, _EXTRA_SAMPLES = 34675, 34665, 34853, 40965, 338
_DEFLATE = 8
_LARGEST_TIFF = 2**32 - 1
"""Bytes: its offsets have 32 bits."""
_START_OF_FRAME, _START_OF_SCAN = 0xC0, 0xDA


@dataclass(frozen=True)
class Frame:
    """What is known of an image before its first block."""

    width: int
    height: int
    channels: int
    """From 1 to 4."""
    deep: bool
    """Whether channels have 16 bits instead of 8."""
    metadata: Mapping[str, bytes]
    """`icc_profile` and `exif`."""
    name: object
    """Of the file, for errors."""

    def refusal(self, reason: object) -> DataError:
        """Return the error of a format that cannot hold the image."""
        size = f"{self.width}x{self.height}"
        return DataError(f"{self.name} cannot hold {size} pixels{reason}: choose a name that ends with .png")


Encode = Callable[[IO[bytes], Frame, Blocks, Mapping[str, Any]], None]
"""Writes an image into an empty file; the last argument holds the options of Pillow's encoder."""


def _saved(image: PillowImage.Image, frame: Frame, options: Mapping[str, Any]) -> bytes:
    content = io.BytesIO()
    try:
        image.save(content, **options)
    except (ValueError, OSError) as error:
        raise frame.refusal(f" ({error})") from error
    return content.getvalue()


def in_pillow(channels: npt.NDArray[Any]) -> PillowImage.Image:
    """Return (H, W, C) as Pillow's image."""
    return PillowImage.fromarray(channels[..., 0] if channels.shape[2] == 1 else channels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def encode_png(file: IO[bytes], frame: Frame, blocks: Blocks, _: Mapping[str, Any]) -> None:
    """Write a PNG of 8 or 16 bits, each row as its difference to the row above."""
    bits = 16 if frame.deep else 8
    header = struct.pack(">IIBBBBB", frame.width, frame.height, bits, _PNG_COLOUR[frame.channels], 0, 0, 0)
    file.write(b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header))
    if profile := frame.metadata.get("icc_profile"):
        file.write(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)))
    if exif := frame.metadata.get("exif"):
        file.write(_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")))
    compressor = zlib.compressobj(_LEVEL)
    above: Any = 0
    for block in blocks:
        raw = np.ascontiguousarray(block, ">u2" if frame.deep else np.uint8).view(np.uint8).reshape(len(block), -1)
        rows = np.empty((len(raw), raw.shape[1] + 1), np.uint8)
        # Filter 2.
        rows[:, 0], rows[0, 1:], rows[1:, 1:] = 2, raw[0] - above, raw[1:] - raw[:-1]
        above = raw[-1].copy()
        file.write(_chunk(b"IDAT", compressor.compress(rows.data)))
    file.write(_chunk(b"IDAT", compressor.flush()) + _chunk(b"IEND", b""))


def _tags(frame: Frame) -> Any:
    """Return the directory of a TIFF, without its strips."""
    tags: Any = TiffImagePlugin.ImageFileDirectory_v2(b"II\x2a\0\0\0\0\0")
    if exif := frame.metadata.get("exif"):
        found = PillowImage.Exif()
        found.load(exif)
        tags.update({tag: value for tag, value in found.items() if tag not in (_EXIF, _GPS)})
        for kind in (_EXIF, _GPS):
            # Offsets of the file that was read mean nothing in this one.
            if inner := {tag: value for tag, value in found.get_ifd(kind).items() if tag != _INTEROPERABILITY}:
                tags[kind] = inner
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = frame.width, frame.height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16 if frame.deep else 8,) * frame.channels
    tags[TiffImagePlugin.COMPRESSION] = _DEFLATE
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 2 if frame.channels > 2 else 1
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = frame.channels
    tags[TiffImagePlugin.ROWSPERSTRIP] = min(BLOCK, frame.height)
    if frame.channels in (2, 4):
        tags[_EXTRA_SAMPLES] = 2
    if profile := frame.metadata.get("icc_profile"):
        tags.tagtype[_ICC_PROFILE] = 7
        tags[_ICC_PROFILE] = profile
    return tags


def encode_tiff(file: IO[bytes], frame: Frame, blocks: Blocks, _: Mapping[str, Any]) -> None:
    """Write a TIFF of 8 or 16 bits: each block is a deflated strip, and the directory stands at the end."""
    sizes, length = [], 8
    file.write(b"II\x2a\0\0\0\0\0")
    for block in blocks:
        strip = zlib.compress(np.ascontiguousarray(block, "<u2" if frame.deep else np.uint8).data, _LEVEL)
        # Directories begin at even offsets.
        file.write(strip + bytes(len(strip) % 2))
        sizes.append(len(strip))
        length += len(strip) + len(strip) % 2
    tags = _tags(frame)
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = tuple(sizes)
    tags[TiffImagePlugin.STRIPOFFSETS] = (0,) * len(sizes)
    if length + len(tags.tobytes()) > _LARGEST_TIFF:
        raise frame.refusal("")
    directory = bytearray(tags.tobytes(length))
    offsets = np.cumsum([8, *(size + size % 2 for size in sizes[:-1])]).tolist()
    # Pillow means strips that follow the directory.
    for entry in range(2, 2 + 12 * len(tags), 12):
        if struct.unpack_from("<H", directory, entry)[0] == TiffImagePlugin.STRIPOFFSETS:
            (value,) = struct.unpack_from("<I", directory, entry + 8)
            struct.pack_into(f"<{len(sizes)}I", directory, entry + 8 if len(sizes) == 1 else value - length, *offsets)
    file.write(directory)
    file.seek(4)
    file.write(struct.pack("<I", length))


def _scan(content: bytes, height: int) -> tuple[bytes, bytes]:
    """Divide a JPEG into its head, for another height, and its entropy-coded data."""
    head, place = bytearray(content), 2
    while content[place + 1] != _START_OF_SCAN:
        if content[place + 1] == _START_OF_FRAME:
            struct.pack_into(">H", head, place + 5, height)
        place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    place += 2 + struct.unpack_from(">H", content, place + 2)[0]
    return bytes(head[:place]), content[place:-2]


def encode_jpeg(file: IO[bytes], frame: Frame, blocks: Blocks, options: Mapping[str, Any]) -> None:
    """Write a JPEG without chroma subsampling.

    Each block is encoded by itself with a restart marker after each row of squares. No square depends on one of another
    row then, so that the data of the blocks, joined by markers, are those of the whole image.
    """
    metadata = frame.metadata
    for number, block in enumerate(blocks):
        content = _saved(in_pillow(block), frame, {**options, "restart_marker_rows": 1, **metadata})
        head, data = _scan(content, frame.height)
        file.write(b"\xff\xd7" + data if number else head + data)
        metadata = {}
    file.write(b"\xff\xd9")


def encode_whole(file: IO[bytes], frame: Frame, blocks: Blocks, options: Mapping[str, Any]) -> None:
    """Write an image of 8 bits by Pillow's encoder, which takes the whole image: 4 bytes a pixel, 1 if it is grey."""
    image = PillowImage.new(("L", "LA", "RGB", "RGBA")[frame.channels - 1], (frame.width, frame.height))
    for number, block in enumerate(blocks):
        image.paste(in_pillow(block), (0, number * BLOCK))
    # BMP has none.
    file.write(_saved(image, frame, options if options["format"] == "BMP" else {**options, **frame.metadata}))
