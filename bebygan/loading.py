"""Loading a generator by the path or the name of its weights."""

from pathlib import Path

from bebygan.errors import WeightsError
from bebygan.networks.generator import Generator
from bebygan.networks.naming import load_generator
from bebygan.pretrained import GENERATORS, weights_file


def load(path_or_name: str | Path) -> Generator:
    """Return a generator in evaluation mode, on the CPU.

    Args:
        path_or_name: a .safetensors or .pth file with the key names of ESRGAN, BasicSR or ESRGAN's first release; or
            the name of pretrained weights, such as "realsr-df2k-x4", which are downloaded at the first use.

    Raises:
        WeightsError: there is no such file or name, the file is damaged or belongs to another architecture, or the
            download failed.
        StorageError: the cache of downloads cannot be written.
    """
    if str(path_or_name) in GENERATORS:
        return load_generator(weights_file(str(path_or_name))).eval()
    if not Path(path_or_name).is_file():
        known = ", ".join(GENERATORS)
        raise WeightsError(f"{path_or_name} is neither a file nor the name of a pretrained generator ({known})")
    return load_generator(Path(path_or_name)).eval()
