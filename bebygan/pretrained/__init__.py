"""Pretrained weights that this project knows: downloaded, verified, converted to safetensors and cached.

`weights_file(name)` returns the path of a file of weights; the names are the keys of `KNOWN`. The command
`python -m bebygan.pretrained [NAME ...]` downloads ahead of time.
"""

from bebygan.pretrained.download import weights_file
from bebygan.pretrained.registry import DEFAULT, GENERATORS, KNOWN, Known, Source

__all__ = ["DEFAULT", "GENERATORS", "KNOWN", "Known", "Source", "weights_file"]
