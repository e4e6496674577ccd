"""Loading a generator by the path or the name of its weights."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bebygan.errors import DataError, WeightsError
from bebygan.imaging.kinds import upscale_any
from bebygan.imaging.tiling import upscale_fast
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_as
from bebygan.pretrained import GENERATORS, weights_file
from bebygan.settings import Precision


class Upscaler(Generator):
    """A generator that upscales images of any kind, too, on the fast path of this machine."""

    precision: Precision = "auto"
    """Of images; tensors are computed as in any network."""

    def __call__(self, image: Any) -> Any:
        """Return an image four times as large, of the same kind.

        Args:
            image: (N, 3, H, W) or (3, H, W), floating point RGB in [0, 1], which the network computes as it is, with
                gradients; the same as uint8; or what `bebygan.imaging.kinds.upscale_any` takes, such as a PIL image,
                a path or an array (H, W, 3).

        Raises:
            DataError: `image` is of another kind, or damaged.
        """
        if not isinstance(image, Tensor):
            return upscale_any(image, partial(upscale_fast, self, precision=self.precision))
        if image.ndim not in (3, 4) or image.shape[-3] != 3 or 0 in image.shape:
            raise DataError(
                f"a tensor of shape {tuple(image.shape)} cannot be upscaled: give (N, 3, H, W) or (3, H, W)"
            )
        if image.dtype == torch.uint8:
            array = image.cpu().movedim(-3, -1).numpy()
            return torch.from_numpy(self(array)).movedim(-1, -3).to(image.device)
        if not image.is_floating_point():
            raise DataError(f"a tensor of {image.dtype} cannot be upscaled: give floats from 0 to 1, or uint8")
        return super().__call__(image) if image.ndim == 4 else super().__call__(image[None])[0]


def load(path_or_name: str | Path, *, precision: Precision = "auto") -> Upscaler:
    """Return a generator in evaluation mode, on the CPU; it upscales tensors and images: `load(name)(image)`.

    Args:
        path_or_name: a .safetensors or .pth file with the key names of ESRGAN, BasicSR or ESRGAN's first release; or
            the name of pretrained weights, such as "realsr-df2k-x4", which are downloaded at the first use.
        precision: of images; auto is bfloat16 where the processor computes it, and float32 for 16-bit images.

    Raises:
        WeightsError: there is no such file or name, the file is damaged or belongs to another architecture, or the
            download failed.
        StorageError: the cache of downloads cannot be written.
    """
    if str(path_or_name) in GENERATORS:
        file = weights_file(str(path_or_name))
    elif Path(path_or_name).is_file():
        file = Path(path_or_name)
    else:
        known = ", ".join(GENERATORS)
        raise WeightsError(f"{path_or_name} is neither a file nor the name of a pretrained generator ({known})")
    upscaler = load_as(Upscaler, file).eval()
    upscaler.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    upscaler.precision = precision
    return upscaler
