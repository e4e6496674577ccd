"""Files that commands find from any working folder."""

import os
from difflib import get_close_matches
from pathlib import Path

from bebygan.errors import WeightsError
from bebygan.pretrained import GENERATORS

PARAMS_VARIABLE = "BEBYGAN_PARAMS"
"""Environment variable: absolute path of the parameters file, which tasks inherit."""
DISCRIMINATOR = "discriminator.safetensors"
"""Name of the discriminator's weights beside a generator's."""
_PRETRAINED = Path("data/pretrained")
_CHECKOUT = Path(__file__).resolve().parents[1]


def in_checkout(path: str | Path) -> Path:
    """Return a relative path as it is, or below this checkout if only that exists."""
    there = _CHECKOUT / path
    return there if there.exists() and not Path(path).exists() else Path(path)


def start_weights_file(weights: str) -> Path:
    """Return the file that `warmup.weights` names.

    A relative path is looked for in the working folder, then in the folder of the parameters file and the one above
    it, then in this checkout. The path is returned as it is if no folder has the file.

    Raises:
        WeightsError: there is no such file, and the name resembles that of known weights.
    """
    params = os.environ.get(PARAMS_VARIABLE)
    folders = [Path(), *(list(Path(params).parents)[:2] if params else [])]
    found = next((folder / weights for folder in folders if (folder / weights).is_file()), in_checkout(weights))
    if weights in GENERATORS or found.is_file():
        return found
    if near := get_close_matches(weights, GENERATORS, 1):
        raise WeightsError(f"warmup.weights is {weights}, which is no file; did you mean {near[0]}?")
    return found


def discriminator_beside(generator: Path) -> Path | None:
    """Return the discriminator beside a generator's weights, with which a training continues, or None.

    That of known weights lies in a folder of their name in data/pretrained. The empty path is no file and has none.
    """
    known = str(generator) in GENERATORS
    path = (in_checkout(_PRETRAINED / generator) if known else generator.parent) / DISCRIMINATOR
    return path if path.is_file() and (known or generator.is_file()) else None
