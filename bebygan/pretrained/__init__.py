"""Pretrained weights that this project knows: downloaded, verified, converted to safetensors and cached.

`weights_file(name)` returns the path of a file of weights; the names are the keys of `KNOWN`. The command
`python -m bebygan.pretrained [NAME ...]` downloads ahead of time.
"""

from typing import TYPE_CHECKING

from bebygan.lazy import lazy_names
from bebygan.pretrained.cached import DEFAULT, GENERATORS, cached_weights

if TYPE_CHECKING:
    from bebygan.pretrained.download import weights_file
    from bebygan.pretrained.registry import KNOWN, Known, Source, name_of

__all__ = ["DEFAULT", "GENERATORS", "KNOWN", "Known", "Source", "cached_weights", "name_of", "weights_file"]
__getattr__, __dir__ = lazy_names(__name__, __all__, ["registry", "download"])
