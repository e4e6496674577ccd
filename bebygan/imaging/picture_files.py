"""Reading photographs from files, and writing upscaled ones of the same kind."""

import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageFile, ImageOps, TiffImagePlugin, UnidentifiedImageError, features

from bebygan import SCALE
from bebygan.beside import consume_beside
from bebygan.errors import DataError
from bebygan.files import whole_file
from bebygan.imaging import Image, Image16
from bebygan.imaging.deep_files import read_channels
from bebygan.imaging.encoding import BLOCK, Encode, Frame, encode_jpeg, encode_png, encode_tiff, encode_whole, in_pillow

READ = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's names of the formats that the pipeline reads. No other decoder is started, whatever a file contains."""
UPSCALED = (*READ, "AVIF") if features.check("avif") else READ
"""The formats that are upscaled."""
WRITTEN: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
    ".bmp": {"format": "BMP"},
    ".avif": {"format": "AVIF", "quality": 90, "subsampling": "4:4:4"},
}
"""Endings of the files that are written, with the options of Pillow's encoders."""
if "AVIF" not in UPSCALED:
    del WRITTEN[".avif"]
_IN_BLOCKS: dict[str, Encode] = {"JPEG": encode_jpeg, "PNG": encode_png, "TIFF": encode_tiff}
_LARGEST_SIDES = {"JPEG": 65_500, "WEBP": 16_383}
"""Pixels, of libjpeg and libwebp."""
_BITS_PER_SAMPLE = 258
_ORIENTATION = 0x0112
_PNG_BIT_DEPTH = 24
"""Offset of the byte in a file."""


@dataclass(frozen=True)
class Picture:
    """A photograph, upright, and what its file holds besides the colours."""

    rgb: Image | Image16
    """(H, W, 3), of 8 or 16 bits."""
    alpha: npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | None
    """(H, W), of the same type; the largest integer is opaque; None without transparency."""
    grey: bool
    """Whether the file holds one channel; then the three of `rgb` are equal."""
    metadata: dict[str, bytes]
    """`exif` without the orientation, and `icc_profile`, if the file has them."""

    @property
    def channels(self) -> npt.NDArray[Any]:
        """Return (H, W, C): grey or RGB, and alpha if there is any."""
        colours = self.rgb[..., :1] if self.grey else self.rgb
        return colours if self.alpha is None else np.dstack([colours, self.alpha])


def picture_of(channels: npt.NDArray[Any], metadata: dict[str, bytes] | None = None) -> Picture:
    """Return the picture of an array (H, W, C) with 1 to 4 channels, as in `Picture.channels`."""
    count = channels.shape[2]
    rgb = channels[..., :3] if count > 2 else np.repeat(channels[..., :1], 3, 2)
    return Picture(rgb, channels[..., -1] if count in (2, 4) else None, count < 3, metadata or {})


def bit_depth(image: PillowImage.Image, start: bytes | memoryview) -> int:
    """Return the bits per channel of an opened file. Pillow reads 16-bit RGB as 8-bit and does not report it.

    Args:
        image: as Pillow opened it.
        start: at least the first 25 bytes of the file.
    """
    if image.format == "PNG":
        return start[_PNG_BIT_DEPTH]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        bits: tuple[int, ...] = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return max(bits)
    return 8


def _kept_metadata(upright: PillowImage.Image) -> dict[str, bytes]:
    profile = upright.info.get("icc_profile")
    # The profile of a print describes inks.
    metadata = {"icc_profile": profile} if profile and upright.mode != "CMYK" else {}
    if exif := upright.getexif():
        metadata["exif"] = exif.tobytes()
    return metadata


def opened_picture(image: PillowImage.Image) -> Picture:
    """Return the picture of an image in memory: 8-bit colours, grey, palette or CMYK, or 16-bit grey, turned upright.

    Raises:
        ValueError: it is of another kind, such as float.
    """
    if image.mode.startswith("I;16"):
        return picture_of(np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)[..., None])
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of Pillow's mode {image.mode}: save it with 8 or 16 bits per channel")
    upright = ImageOps.exif_transpose(image)
    alpha = None
    if upright.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
    grey = upright.mode in ("1", "L", "LA")
    return Picture(np.asarray(upright.convert("RGB")), alpha, grey, _kept_metadata(upright))


def _deep_picture(file: ImageFile.ImageFile, content: io.BytesIO) -> Picture:
    channels = read_channels(file, content)
    # Pillow turns TIFF when it decodes, and of other files only 8-bit colours: let it turn the pixels' numbers.
    if file.format != "TIFF":
        numbers = PillowImage.fromarray(np.arange(file.width * file.height, dtype=np.int32).reshape(file.size[::-1]))
        numbers.getexif().update(file.getexif())
        upright = np.asarray(ImageOps.exif_transpose(numbers))
        channels = channels.reshape(-1, channels.shape[2])[upright]
    file.getexif().pop(_ORIENTATION, None)
    return picture_of(channels, _kept_metadata(file))


def _decoded(source: Path | io.BytesIO) -> Picture:
    content = io.BytesIO(source.read_bytes()) if isinstance(source, Path) else source
    with PillowImage.open(content, formats=UPSCALED) as file:
        frames = getattr(file, "n_frames", 1)
        # Cameras store a second picture in a JPEG (MPO).
        if frames > 1 and file.format != "MPO":
            raise ValueError(f"it holds {frames} frames or pages: save each as a file")
        if (depth := bit_depth(file, content.getbuffer()[: _PNG_BIT_DEPTH + 1])) > 16:
            raise ValueError(f"it has {depth} bits per channel: save it with 8 or 16 bits")
        return _deep_picture(file, content) if depth > 8 else opened_picture(file)


def read_picture(source: Path | io.BytesIO) -> Picture:
    """Read a photograph: colours, grey, palette or CMYK, with or without transparency, turned upright.

    Args:
        source: path of a file, or its content.

    Raises:
        DataError: the file is unreadable, damaged, of another format, has several frames or more than 16 bits.
        MemoryError: it does not fit.
    """
    what = source if isinstance(source, Path) else "the image"
    try:
        return _decoded(source)
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{what} is no JPEG, PNG, WebP, TIFF, BMP, GIF or AVIF") from error
    except Exception as error:
        # Decoders raise exceptions of any type for damaged files.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {what} ({reason})") from error


def enlarged(picture: Picture, rgb: Image | Image16) -> Picture:
    """Return a picture with other colours and the transparency resized to them by bicubic interpolation.

    Args:
        picture: of any size.
        rgb: (H, W, 3), of the same type.
    """
    return replace(picture, rgb=rgb, alpha=_resized(picture.alpha, rgb.shape[1::-1]))


def _resized(alpha: Any, size: tuple[int, ...]) -> Any:
    """Return transparency, or None, of another width and height."""
    if alpha is None or alpha.shape == size[::-1]:
        return alpha
    # Pillow interpolates 8-bit integers and floats.
    source = PillowImage.fromarray(alpha if alpha.dtype == np.uint8 else alpha.astype(np.float32))
    resized = np.asarray(source.resize((size[0], size[1]), PillowImage.Resampling.BICUBIC))
    return resized.clip(0, np.iinfo(alpha.dtype).max).round().astype(alpha.dtype)


def to_pillow(picture: Picture) -> PillowImage.Image:
    """Return an 8-bit picture, or a grey one of 16 bits, as an image in memory.

    Raises:
        ValueError: Pillow holds no 16-bit colours.
    """
    channels = picture.channels
    if channels.dtype == np.uint16 and channels.shape[2] > 1:
        raise ValueError("Pillow holds no colours or transparency of 16 bits")
    image = in_pillow(channels)
    image.info.update(picture.metadata)
    return image


def _blocks(bands: Iterable[Image | Image16]) -> Iterator[Image | Image16]:
    """Cut rows, given in bands of any height, into blocks."""
    parts: list[Any] = []
    missing = BLOCK
    for band in bands:
        start = 0
        while start < len(band):
            parts.append(band[start : start + missing])
            start, missing = start + missing, missing - len(parts[-1])
            if not missing:
                yield np.concatenate(parts) if len(parts) > 1 else parts[0]
                parts, missing = [], BLOCK
    if parts:
        yield np.concatenate(parts)


def _channels(picture: Picture, frame: Frame, bands: Iterable[Image | Image16]) -> Iterator[npt.NDArray[Any]]:
    """Yield blocks of all channels of an enlarged picture, given its colours in bands."""
    # Pillow resizes a part in another order than the whole, which rounds differently.
    alpha, top = _resized(picture.alpha, (frame.width, frame.height)), 0
    for rgb in _blocks(bands):
        part = None if alpha is None else alpha[top : top + len(rgb)]
        yield replace(picture, rgb=rgb, alpha=part).channels
        top += len(rgb)


def _encoder(
    picture: Picture, scale: int, ending: str, name: object
) -> Callable[[IO[bytes], Iterable[Image | Image16]], None]:
    """Return what writes an enlarged picture, given its colours in bands, to an empty file.

    Raises:
        DataError: the format has no transparency, not 16 bits, or not this size.
    """
    options, deep = WRITTEN[ending], picture.rgb.dtype == np.uint16
    kind = options["format"]
    if picture.alpha is not None and kind in ("JPEG", "BMP"):
        raise DataError(f"{name} cannot hold transparency: choose a name that ends with .png")
    if deep and kind not in ("PNG", "TIFF"):
        raise DataError(f"{name} cannot hold 16 bits per channel: choose a name that ends with .png or .tif")
    if deep and kind == "TIFF":
        # Pillow and others read no TIFF of grey with alpha.
        picture = replace(picture, grey=picture.grey and picture.alpha is None)
    channels = (1 if picture.grey else 3) + (picture.alpha is not None)
    height, width = (side * scale for side in picture.rgb.shape[:2])
    frame = Frame(width, height, channels, deep, picture.metadata, name)
    if max(height, width) > (limit := _LARGEST_SIDES.get(kind, max(height, width))):
        raise frame.refusal(f", only sides up to {limit}")
    encode = _IN_BLOCKS.get(kind, encode_whole)
    return lambda file, bands: encode(file, frame, _channels(picture, frame, bands), options)


def encoded(picture: Picture, ending: str, name: object) -> bytes:
    """Return the content of a file; JPEG and WebP with quality 95, AVIF with 90.

    Args:
        picture: of 8 or 16 bits.
        ending: a key of `WRITTEN`.
        name: of the file, for errors.

    Raises:
        DataError: the format has no transparency, not 16 bits, or not this size.
    """
    content = io.BytesIO()
    _encoder(picture, 1, ending, name)(content, [picture.rgb])
    return content.getvalue()


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format that the ending names, atomically; see `encoded`.

    Raises:
        DataError: see `encoded`.
        StorageError: the file cannot be written.
    """
    encode = _encoder(picture, 1, path.suffix.lower(), path)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        encode(file, [picture.rgb])


def write_upscaled(picture: Picture, bands: Iterable[Image | Image16], path: Path) -> None:
    """Write a picture, four times as large, atomically: while one band is computed, the one before is encoded.

    Of PNG, TIFF and JPEG at most two bands are in memory, and the whole transparency if there is any; of other formats
    the whole picture. See `held_bytes`.

    Args:
        picture: before upscaling.
        bands: (rows, 4W, 3) from top to bottom: the colours of the upscaled picture, computed when they are asked for.
        path: of the file; its ending names the format.

    Raises:
        DataError: see `encoded`; nothing is computed.
        StorageError: the file cannot be written.
    """
    encode = _encoder(picture, SCALE, path.suffix.lower(), path)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        consume_beside(bands, partial(encode, file))


def held_bytes(picture: Picture, ending: str) -> int:
    """Return the bytes of a picture, four times as large, that its encoder needs besides the bands of colours."""
    # Pillow's four bytes per pixel, and the encoded file.
    whole = 0 if WRITTEN[ending]["format"] in _IN_BLOCKS else 4 + 1
    return (whole * picture.rgb[..., 0].size + getattr(picture.alpha, "nbytes", 0)) * SCALE**2
