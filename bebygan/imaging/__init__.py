"""Images: MATLAB's bicubic for tensors and arrays, luma, texture, stored training patches, and tiled upscaling."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bebygan.lazy import lazy_names

if TYPE_CHECKING:
    from bebygan.imaging.bicubic import downscale, resize
    from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
    from bebygan.imaging.colour import luma
    from bebygan.imaging.convert import to_image, to_tensor
    from bebygan.imaging.shards import Patches, PhotographPair, read_patches, write_shards
    from bebygan.imaging.texture import local_deviation
    from bebygan.imaging.tiling import upscale_image

__all__ = [
    "Image",
    "Image16",
    "Patches",
    "PhotographPair",
    "downscale",
    "downscale_uint8",
    "local_deviation",
    "luma",
    "read_patches",
    "resize",
    "resize_uint8",
    "to_image",
    "to_tensor",
    "upscale_image",
    "write_shards",
]
Image = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""
Image16 = npt.NDArray[np.uint16]
"""(H, W, 3), RGB of 16 bits per channel."""

_MODULES = ["bicubic_uint8", "colour", "shards", "texture", "bicubic", "convert", "tiling"]
__getattr__, __dir__ = lazy_names(__name__, __all__, _MODULES)
