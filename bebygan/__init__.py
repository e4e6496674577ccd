"""Beby-GAN image super-resolution (arXiv 2103.15295): networks, losses, metrics and training in PyTorch.

`load(path_or_name)` returns a generator. The subpackages `networks`, `losses`, `metrics`, `imaging`, `training` and
`pretrained` list their public names in `__all__`; docs/library.md shows how to use them.
"""

from typing import TYPE_CHECKING

from bebygan.lazy import lazy_names

if TYPE_CHECKING:
    from bebygan.loading import load

__all__ = ["SCALE", "__version__", "load"]
__version__ = "0.1.0"
"""As in pyproject.toml. Copies of the package, such as in registered models, have no metadata to read it from."""
SCALE = 4
"""Factor by which the generator enlarges each side of an image."""

__getattr__, __dir__ = lazy_names(__name__, __all__, ["loading"])
