"""Names of pretrained weights, and the folder that caches them. Importing this needs no torch."""

import os
from pathlib import Path

from bebygan.files import storage_errors

DEFAULT = ("vgg16", "alexnet", "lpips-alex", "dists", "realsr-df2k-x4")
"""The weights that params.yaml needs: for the perceptual loss, for LPIPS in the evaluation, and the start."""
GENERATORS = ("bebygan-4x32", "realsr-df2k-x4")
"""The names of whole generators. A warm-up can start from them."""


def cache_folder() -> Path:
    """Return the folder of cached weights, which is created; raises StorageError if it cannot be."""
    folder = Path(os.environ.get("BEBYGAN_CACHE") or Path.home() / ".cache" / "bebygan") / "weights"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_weights(name: str) -> Path:
    """Return the path where weights are cached, whether they are there or not; errors as `cache_folder`."""
    return cache_folder() / f"{name}.safetensors"
