"""Reading a dataset that ingest wrote."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image as PillowImage

from bebygan.errors import DataError
from bebygan.imaging import Image


def photographs_of(dataset: Path, splits: Collection[str]) -> pd.DataFrame:
    """Return the rows of the manifest in the given splits.

    Raises:
        DataError: there is no dataset.
    """
    try:
        manifest = pd.read_parquet(dataset / "manifest.parquet")
    except FileNotFoundError as error:
        raise DataError(f"{dataset} holds no manifest.parquet: run ingest first") from error
    return manifest[manifest["split"].isin(splits)]


def read_photograph(path: Path) -> Image:
    """Return an ingested photograph as (H, W, 3) RGB.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with PillowImage.open(path) as picture:
            return np.asarray(picture)
    except OSError as error:
        raise DataError(f"cannot read the photograph {path} ({error}): run ingest again") from error
