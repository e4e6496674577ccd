"""Reading a dataset that ingest wrote."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
from PIL import Image as PillowImage

from bebygan.errors import DataError
from bebygan.imaging import Image

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "BMP": "bmp"}
"""Formats of a dataset's photographs, and the endings of their files.

Photographs are opened with these decoders only. Pillow has others, and one of them starts Ghostscript.
"""


def photographs_of(dataset: Path, splits: Collection[str]) -> pd.DataFrame:
    """Return the rows of the manifest in the given splits.

    Raises:
        DataError: there is no dataset, or its manifest names a file outside it.
    """
    try:
        manifest = pd.read_parquet(dataset / "manifest.parquet")
    except FileNotFoundError as error:
        raise DataError(f"{dataset} holds no manifest.parquet: run ingest first") from error
    for name in manifest.get("file", ()):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{dataset}: manifest.parquet names {name}, which is outside the dataset: run ingest again")
    return manifest[manifest["split"].isin(splits)]


def read_photograph(path: Path) -> Image:
    """Return an ingested photograph as (H, W, 3) RGB.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with PillowImage.open(path, formats=list(FORMATS)) as picture:
            return np.asarray(picture)
    except OSError as error:
        raise DataError(f"cannot read the photograph {path} ({error}): run ingest again") from error
