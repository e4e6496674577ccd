"""Reading photographs from files and writing upscaled ones of the same kind."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import ImageOps, TiffImagePlugin, UnidentifiedImageError

from bebygan.errors import DataError
from bebygan.files import whole_file
from bebygan.imaging import Image

READ = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow's names of the formats that are read. No other decoder is started, whatever a file contains."""
WRITTEN: dict[str, dict[str, Any]] = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".tif": {"format": "TIFF", "compression": "tiff_deflate"},
    ".tiff": {"format": "TIFF", "compression": "tiff_deflate"},
    ".bmp": {"format": "BMP"},
}
"""Endings of the files that are written, with the options of Pillow's encoders."""
_BITS_PER_SAMPLE = 258
_PNG_BIT_DEPTH = 24
"""Offset of the byte in a file."""


@dataclass(frozen=True)
class Picture:
    """A photograph, upright, and what its file holds besides the colours."""

    rgb: Image
    """(H, W, 3)."""
    alpha: npt.NDArray[np.uint8] | None
    """(H, W), 255 is opaque; None without transparency."""
    grey: bool
    """Whether the file holds one channel; then the three of `rgb` are equal."""
    metadata: dict[str, bytes]
    """`exif` without the orientation, and `icc_profile`, if the file has them."""


def bit_depth(image: PillowImage.Image, start: bytes) -> int:
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


def _decoded(path: Path) -> Picture:
    with path.open("rb") as content:
        start = content.read(_PNG_BIT_DEPTH + 1)
    with PillowImage.open(path, formats=READ) as file:
        frames = getattr(file, "n_frames", 1)
        # Cameras store a second picture in a JPEG (MPO).
        if frames > 1 and file.format != "MPO":
            raise ValueError(f"it holds {frames} frames or pages: save each as a file")
        if (depth := bit_depth(file, start)) > 8:
            raise ValueError(f"it has {depth} bits per channel, of which 8 would be lost: save it with 8 bits")
        upright = ImageOps.exif_transpose(file)
    profile = upright.info.get("icc_profile")
    # The profile of a print describes inks.
    metadata = {"icc_profile": profile} if profile and upright.mode != "CMYK" else {}
    if exif := upright.getexif():
        metadata["exif"] = exif.tobytes()
    alpha = None
    if upright.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
        alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
    return Picture(np.asarray(upright.convert("RGB")), alpha, upright.mode in ("1", "L", "LA"), metadata)


def read_picture(path: Path) -> Picture:
    """Read a photograph: 8-bit colours, grey, palette or CMYK, with or without transparency, turned upright.

    Raises:
        DataError: the file is unreadable, damaged, of another format, has several frames or more than 8 bits.
    """
    try:
        return _decoded(path)
    except UnidentifiedImageError as error:
        raise DataError(f"{path} is no JPEG, PNG, WebP, TIFF, BMP or GIF") from error
    except Exception as error:
        # Decoders raise exceptions of any type for damaged files.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"cannot read {path} ({reason})") from error


def enlarged(picture: Picture, rgb: Image) -> Picture:
    """Return a picture with other colours and the transparency resized to them by bicubic interpolation.

    Args:
        picture: of any size.
        rgb: (H, W, 3).
    """
    alpha = picture.alpha
    if alpha is not None:
        alpha = np.asarray(PillowImage.fromarray(alpha).resize(rgb.shape[1::-1], PillowImage.Resampling.BICUBIC))
    return replace(picture, rgb=rgb, alpha=alpha)


def write_picture(picture: Picture, path: Path) -> None:
    """Write a picture in the format that the ending names, atomically; JPEG and WebP with quality 95.

    Raises:
        DataError: the format has no transparency, or not this size.
        StorageError: the file cannot be written.
    """
    options = WRITTEN[path.suffix.lower()]
    image = PillowImage.fromarray(picture.rgb)
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        if options["format"] in ("JPEG", "BMP"):
            raise DataError(f"{path} cannot hold transparency: choose a name that ends with .png")
        image.putalpha(PillowImage.fromarray(picture.alpha))
    # BMP has neither.
    metadata: dict[str, Any] = {} if options["format"] == "BMP" else dict(picture.metadata)
    with whole_file(path) as temporary:
        try:
            image.save(temporary, **options, **metadata)
        except (ValueError, OSError) as error:
            if getattr(error, "errno", None):
                raise
            # libjpeg and libwebp limit the sides to 65,535 and 16,383 pixels.
            raise DataError(
                f"{path} cannot hold {image.width}x{image.height} pixels ({error}): choose a name that ends with .png"
            ) from error
