"""Upscaling whatever holds an image: the result is of the same kind."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage

from bebygan.errors import DataError
from bebygan.imaging.picture_files import (
    Picture,
    encoded,
    enlarged,
    opened_picture,
    picture_of,
    read_picture,
    to_pillow,
)

Upscale = Callable[[Any], Any]
"""Maps (H, W, 3) uint8 or uint16 to (4H, 4W, 3) of the same type."""
_KINDS = "a PIL image, a path, the bytes of a file, a list of these, or an array (H, W), (H, W, C) or (N, H, W, C)"


def _upscaled(picture: Picture, upscale: Upscale) -> Picture:
    return enlarged(picture, upscale(picture.rgb))


def _of_array(array: npt.NDArray[Any], upscale: Upscale) -> npt.NDArray[Any]:
    """Upscale (H, W, C)."""
    if array.dtype in (np.uint8, np.uint16):
        return _upscaled(picture_of(array), upscale).channels
    if array.dtype.kind == "f" and 0 <= array.min() <= array.max() <= 1:
        deep = (array * 65535).round().astype(np.uint16)
        return (_of_array(deep, upscale) / 65535).astype(array.dtype)
    # Numbers of JSON have no type.
    if array.dtype == np.int64 and 0 <= array.min() <= array.max() <= 255:
        return _of_array(array.astype(np.uint8), upscale)
    what = f" and values from {array.min():g} to {array.max():g}" if array.dtype.kind in "fi" else ""
    raise DataError(f"an array of {array.dtype}{what} cannot be upscaled: give uint8, uint16, or floats from 0 to 1")


def _of_arrays(array: npt.NDArray[Any], upscale: Upscale) -> npt.NDArray[Any]:
    """Upscale (H, W), (H, W, C) or (N, H, W, C)."""
    if 0 in array.shape or array.ndim not in (2, 3, 4) or (array.ndim > 2 and array.shape[-1] > 4):
        raise DataError(
            f"an array of shape {array.shape} cannot be upscaled: give (H, W), (H, W, C) or (N, H, W, C) with 1 to 4 "
            "channels"
        )
    if array.ndim == 2:
        return _of_array(array[..., None], upscale)[..., 0]
    return np.stack([_of_array(image, upscale) for image in array]) if array.ndim == 4 else _of_array(array, upscale)


def _of_pillow(image: PillowImage.Image, upscale: Upscale) -> PillowImage.Image:
    try:
        return to_pillow(_upscaled(opened_picture(image), upscale))
    except ValueError as error:
        raise DataError(f"this image cannot be upscaled: {error}") from error


def _of_path(path: Path, upscale: Upscale) -> PillowImage.Image:
    try:
        return to_pillow(_upscaled(read_picture(path), upscale))
    except ValueError as error:
        raise DataError(f"{path} cannot be upscaled in memory: {error}; use `bebygan upscale`") from error


def upscale_any(image: Any, upscale: Upscale) -> Any:
    """Upscale an image of any kind.

    Args:
        image: a PIL image; a path, which gives a PIL image; the bytes of a file, which give those of a PNG; an array
            (H, W), (H, W, C) or (N, H, W, C), C from 1 to 4, as uint8, uint16 or floats in [0, 1]; a list, a tuple or
            an array of objects, which gives a list. Grey stays grey, transparency is resized apart.
        upscale: upscales RGB.

    Raises:
        DataError: `image` is of another kind, or damaged.
    """
    if isinstance(image, PillowImage.Image):
        return _of_pillow(image, upscale)
    if isinstance(image, str | Path):
        return _of_path(Path(image), upscale)
    if isinstance(image, bytes | bytearray | memoryview):
        return encoded(_upscaled(read_picture(io.BytesIO(image)), upscale), ".png", "the result")
    if isinstance(image, list | tuple) or (isinstance(image, np.ndarray) and image.dtype == object and image.ndim):
        return [upscale_any(each, upscale) for each in image]
    if isinstance(image, np.ndarray):
        return _of_arrays(image, upscale)
    raise DataError(f"{type(image).__name__} cannot be upscaled: give {_KINDS}")
