"""Decode and measure one photograph, and accept or refuse it with a reason."""

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from bebygan.imaging.picture_files import READ, bit_depth
from bebygan.imaging.texture import local_deviation
from components.artifacts import Reason
from components.config import IngestParams
from components.ingest.splits import Split, split_of
from components.stores.dataset import FORMATS

TEXTURE_WINDOW = 11
TEXTURE_THRESHOLD = 0.025
"""The window and the standard deviation of luma of arXiv 2103.15295 section 3.3."""

_ORIENTATION = 0x0112
_MODES: dict[str, tuple[Reason, ...]] = {
    "RGB": (),
    "CMYK": ("cmyk",),
    "LA": ("transparent", "grey"),
    **dict.fromkeys(("RGBA", "RGBa"), ("transparent",)),
    **dict.fromkeys(("1", "L", "I;16", "I;16B", "I;16L"), ("grey",)),
}
_ROWS_AT_ONCE = 1024
_THUMBNAIL_SIDE = 96
"""Largest side of a thumbnail, pixels."""


@dataclass(eq=False)
class Refusal(Exception):  # noqa: N818 - not an error: the file is quarantined and the run continues
    """A file is not accepted."""

    reason: Reason
    detail: str
    """One line on what to do."""


@dataclass(frozen=True)
class Photograph:
    """A row of the manifest. Sizes and formats are those of the stored file."""

    sha256: str
    """Of the source file."""
    source: str
    """Name relative to the source."""
    file: str
    """Name relative to the dataset."""
    size_bytes: int
    width: int
    height: int
    mode: str
    bit_depth: int
    format: str
    converted: str
    """Kinds that were converted to RGB, separated by commas; empty if the stored file equals the source file."""
    texture_mean: float
    """Mean over the pixels of the local standard deviation of luma in [0, 1]."""
    texture_share: float
    """Share of the pixels that are textured."""
    phash: str
    """64-bit perceptual hash, 16 hexadecimal digits."""
    split: Split


def _open(content: bytes) -> Image.Image:
    if not content:
        raise Refusal("not-an-image", "the file is empty: copy it again or leave it out")
    try:
        return Image.open(io.BytesIO(content), formats=READ)
    except UnidentifiedImageError as error:
        raise Refusal(
            "not-an-image", "its content is no JPEG, PNG, WebP, TIFF or BMP: convert it to PNG or leave it out"
        ) from error
    except Image.DecompressionBombError as error:
        raise Refusal("huge", f"{error} Cut it into smaller photographs") from error


def _decode(content: bytes) -> tuple[Image.Image, list[Reason], int]:
    """Decode all pixels; also return in which kinds they differ from upright 8-bit RGB, and the bit depth."""
    image = _open(content)
    frames = getattr(image, "n_frames", 1)
    # Cameras store a second picture in a JPEG (MPO).
    if frames > 1 and image.format not in ("JPEG", "MPO"):
        raise Refusal("animated", f"it holds {frames} frames or pages: save the one to use as a separate file")
    if image.mode in ("P", "PA"):
        raise Refusal("palette", "its colours are those of a palette, few and dithered: take the original")
    if image.mode not in _MODES:
        raise Refusal("unsupported", f"its pixel mode is {image.mode}: save it as 8-bit RGB")
    # Pillow rotates a TIFF when it loads the pixels; a PNG may store its orientation after them.
    before = image.getexif().get(_ORIENTATION, 1)
    image.load()
    orientation = max(before, image.getexif().get(_ORIENTATION, 1))
    depth = bit_depth(image, content)
    kinds = [*_MODES[image.mode]]
    if "transparency" in image.info and "transparent" not in kinds:
        kinds.insert(0, "transparent")
    if depth > 8:
        kinds.insert(0, "16-bit")
    if 2 <= orientation <= 8:
        kinds.insert(0, "rotated")
    return image, kinds, depth


def _decoded(content: bytes) -> tuple[Image.Image, list[Reason], int]:
    try:
        return _decode(content)
    except Refusal:
        raise
    except Exception as error:
        # Decoders raise exceptions of any type for damaged files.
        message = " ".join(str(error).split()) or type(error).__name__
        reason: Reason = "truncated" if "truncated" in message.lower() else "unreadable"
        raise Refusal(reason, f"it cannot be decoded ({message}): copy it again or leave it out") from error


_EXPLAINED: dict[Reason, str] = {
    "rotated": "its EXIF orientation rotates it",
    "16-bit": "it has more than 8 bits per channel",
    "cmyk": "its colours are CMYK, made for print",
    "transparent": "it has an alpha channel",
    "grey": "it is grey",
}


def _refuse_unconverted(kinds: list[Reason], params: IngestParams) -> None:
    for kind in kinds:
        if kind not in params.convert:
            others = [other for other in kinds if other != kind]
            also = f" (and is {' and '.join(others)})" if others else ""
            raise Refusal(
                kind, f"{_EXPLAINED[kind]}{also}: save it as upright 8-bit RGB, or add {kind} to ingest.convert"
            )


def _as_rgb(image: Image.Image) -> Image.Image:
    """Convert to upright 8-bit RGB without metadata: alpha over white, the upper 8 of 16 bits."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return Image.fromarray(np.asarray(image.convert("RGB")))


def texture(pixels: npt.NDArray[np.uint8]) -> tuple[float, float]:
    """Measure how textured a photograph is, (H, W, 3) RGB with sides above 5.

    Returns:
        Mean of the local standard deviation of luma in [0, 1], and the share of the pixels where it is at least
        TEXTURE_THRESHOLD; rounded to 6 digits, which are the same on all processors.
    """
    height, width = pixels.shape[:2]
    halo = TEXTURE_WINDOW // 2
    total, textured = 0.0, 0
    # A whole photograph of 100 megapixels would need 8 GB.
    for top in range(0, height, _ROWS_AT_ONCE):
        first = max(0, min(top, height - halo - 1) - halo)
        strip = local_deviation(pixels[first : top + _ROWS_AT_ONCE + halo], TEXTURE_WINDOW)
        strip = strip[top - first :][:_ROWS_AT_ONCE]
        total += float(strip.sum())
        textured += int((strip >= TEXTURE_THRESHOLD).sum())
    return round(total / (height * width), 6), round(textured / (height * width), 6)


def thumbnail(content: bytes) -> Image.Image | None:
    """Return a small RGB picture of a file that was refused, or None if it cannot be decoded."""
    # Decoders raise exceptions of any type for damaged files.
    with suppress(Exception):
        image = _as_rgb(Image.open(io.BytesIO(content), formats=READ))
        return image.reduce(max(1, -(-max(image.size) // _THUMBNAIL_SIDE)))
    return None


def examine(name: str, content: bytes, params: IngestParams) -> tuple[Photograph, bytes]:
    """Decode and measure the file `name` of the source; convert it if the parameters allow it.

    Returns:
        The photograph, and the bytes to store as `Photograph.file`.

    Raises:
        Refusal: the file is not accepted.
    """
    image, kinds, depth = _decoded(content)
    if min(image.size) < params.minimum_side:
        size = f"{image.width}x{image.height}"
        raise Refusal("tiny", f"{size} pixels, under ingest.minimum_side {params.minimum_side}: take a larger one")
    _refuse_unconverted(kinds, params)
    kind = "JPEG" if image.format == "MPO" else str(image.format)
    sha256 = hashlib.sha256(content).hexdigest()
    if kinds:
        image, depth, kind = _as_rgb(image), 8, "PNG"
        encoded = io.BytesIO()
        image.save(encoded, "PNG")
        content = encoded.getvalue()
    mean, share = texture(np.asarray(image))
    if not share:
        raise Refusal("flat", "nothing in it has texture (blank, burnt out or out of focus): leave it out")
    photograph = Photograph(
        sha256=sha256,
        source=name,
        file=f"photographs/{sha256}.{FORMATS[kind]}",
        size_bytes=len(content),
        width=image.width,
        height=image.height,
        mode=image.mode,
        bit_depth=depth,
        format=kind,
        converted=",".join(sorted(kinds)),
        texture_mean=mean,
        texture_share=share,
        phash=str(imagehash.phash(image)),
        split=split_of(sha256, params.validation_share, params.test_share),
    )
    return photograph, content
