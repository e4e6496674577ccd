"""`benchmarks/gpu.sh`: check, measure and use a machine with one GPU, torch and no network, in a stated time.

First `python -m benchmarks.gpu pack` writes the pretrained weights into one file, where there is a network. The rest
needs that file, this checkout, and Python with torch, numpy, pillow and safetensors.
"""

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch.utils.flop_counter import FlopCounterMode

from bebygan import SCALE
from bebygan.imaging import Image
from bebygan.imaging.bicubic_uint8 import downscale_uint8, upscale_uint8
from bebygan.imaging.shards import PhotographPair, write_shards
from bebygan.imaging.texture import local_deviation
from bebygan.imaging.tiling import upscale_image
from bebygan.losses.objective import Perceptual
from bebygan.metrics.fidelity import lr_psnr, psnr_y
from bebygan.metrics.perceptual import lpips
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.networks.weights import read_state, safetensors_bytes
from bebygan.precision import full_precision, tf32, training_device
from bebygan.pretrained import weights_file
from bebygan.settings import Delivery, GanSettings, LearningRateSchedule, PerceptualSettings, Retention
from bebygan.training.loop import fit
from bebygan.training.state import new_state, place
from bebygan.training.step import gan_step
from benchmarks import plain
from benchmarks.gpu_bundle import MOST_MEGABYTES, NAMES, States, generator_of, lpips_of, pack, perceptual_of, unpack
from benchmarks.gpu_checks import CHECKS, Bench

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "build/gpu-weights.npz"
PIECE = 15_000_000
"""Bytes of a piece of the adapted weights."""
_NOMINAL = {"H100": (989e12, 494e12, 67e12), "H200": (989e12, 494e12, 67e12), "A100": (312e12, 156e12, 19.5e12)}
"""Peak FLOP/s of bf16, TF32 and fp32 without sparsity, from the makers' data sheets (SXM)."""
_FIRST = GanSettings(
    perceptual=PerceptualSettings(network="vgg16"),
    schedule=LearningRateSchedule(cycle=0, warmup=20),
    keep=Retention(newest=2, every=0, best=None), deliver=Delivery(by="last"), validate_every=0, picture_every=0,
    log_every=20, checkpoint_every=1_000_000, tf32=False,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large everything is."""

    patch: int = 256
    checks: GanSettings
    paper: GanSettings
    adaptation: GanSettings
    timed: int = 10
    matrix: int = 8192
    most_iterations: int = 100_000
    evaluated: int | None = 512
    """Side of the part of each held-out photograph that is measured."""
    sizes: tuple[tuple[int, int], ...] = ((192, 8), (192, 4), (192, 2), (192, 1), (128, 2), (128, 1), (96, 1))
    """Crop and batch that are tried at the paper's scale until one fits."""


PAPER = Scale(
    checks=replace(_FIRST, crop=96, batch=4, discriminator_width=16, precision="fp32"),
    paper=_FIRST,
    adaptation=replace(_FIRST, crop=128, batch=16, precision="bf16", ema_decay=0.995),
)
SMALL = Scale(
    patch=64,
    checks=replace(PAPER.checks, crop=48, batch=2, discriminator_width=4),
    paper=replace(_FIRST, discriminator_width=4),
    adaptation=replace(PAPER.adaptation, crop=48, batch=2, discriminator_width=4, precision="fp32"),
    timed=1,
    matrix=64,
    most_iterations=3,
    evaluated=64,
    sizes=((48, 2),),
)
"""The same in small, for a CPU."""


@dataclass(slots=True)
class Report:
    """What was found, written again after each part, so that nothing is lost if a later one fails."""

    path: Path
    started: float = field(default_factory=time.monotonic)
    found: dict[str, Any] = field(default_factory=dict)
    failed: bool = False

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.started

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Do a part; note what it returns, or its error, and print one line."""
        before = self.seconds()
        try:
            self.found[name] = work()
        except Exception as error:  # noqa: BLE001 - the other parts still tell something
            self.failed = True
            self.found[name] = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        self.found.setdefault("seconds", {})[name] = round(self.seconds() - before, 1)
        self.path.write_text(json.dumps(self.found, indent=2) + "\n")
        print(f"{self.seconds():6.1f} s  {name}: {json.dumps(self.found[name])[:300]}", flush=True)


def _read(path: Path) -> Image:
    with Pillow.open(path) as picture:
        image = np.asarray(picture.convert("RGB"))
    height, width = (length - length % SCALE for length in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def _windows(image: Image, size: int) -> npt.NDArray[np.int64]:
    """Return the textured windows of the patches step (arXiv 2103.15295 section 3.3), half a window apart."""
    textured = local_deviation(image, 11) >= 0.025
    places = [
        (top, left)
        for top in range(0, image.shape[0] - size + 1, size // 2)
        for left in range(0, image.shape[1] - size + 1, size // 2)
        if textured[top : top + size, left : left + size].mean() >= 0.1
    ]
    return np.array(places, np.int64).reshape(-1, 2)


def write_patches(paths: Sequence[Path], folder: Path, size: int) -> int:
    """Write the patches of photographs and return their number."""

    def pairs() -> Iterator[PhotographPair]:
        for path in paths:
            hr = _read(path)
            if len(windows := _windows(hr, size)):
                yield PhotographPair(hr, downscale_uint8(hr, SCALE), "train", windows)

    return write_shards(folder, pairs(), size, 2**30, {})["train"]


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], object], times: int, device: torch.device) -> tuple[float, float | None]:
    """Return seconds of a call, after three that warm up, and the most memory in use, MB, on a GPU."""
    for _ in range(min(3, times)):
        work()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    _synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    _synchronise(device)
    megabytes = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    return (time.perf_counter() - started) / times, megabytes


def peaks(device: torch.device, side: int) -> dict[str, float]:
    """Return the FLOP/s of a large matrix product in each arithmetic."""
    found = {}
    for name, dtype, allowed in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("fp32", torch.float32, False),
    ):
        a = torch.randn(side, side, dtype=dtype, device=device)
        with tf32(allowed):
            seconds, _ = _timed(partial(torch.mm, a, a), 10, device)
        found[name] = 2 * side**3 / seconds
    return found


def _ours(settings: GanSettings, generator: Generator, perceptual: Perceptual, bench: Bench) -> Callable[[], object]:
    torch.manual_seed(1)
    discriminator = Discriminator(settings.crop, settings.discriminator_width)
    state = new_state(generator, discriminator, settings, bench.device)
    place(perceptual.vgg, bench.device, channels_last=settings.channels_last)
    step, pair = gan_step(settings, perceptual), bench.pair(settings)

    def work() -> object:
        with tf32(settings.tf32):
            return step(state, *pair)

    return work


def _plain(settings: GanSettings, generator: Generator, perceptual: Perceptual, bench: Bench) -> Callable[[], object]:
    generator.to(bench.device)
    discriminator = Discriminator(settings.crop, settings.discriminator_width).to(bench.device)
    optimisers = torch.optim.Adam(generator.parameters()), torch.optim.Adam(discriminator.parameters())
    lr, hr = bench.pair(settings)

    def work() -> object:
        with full_precision(bench.device):
            return plain.training_iteration(
                generator, discriminator, optimisers, network=perceptual, settings=settings, lr=lr, hr=hr
            )

    return work


def largest(scale: Scale, states: States, perceptual: Perceptual, bench: Bench) -> GanSettings:
    """Return the paper's settings with the largest crop and batch of `scale.sizes` that fit into the memory."""
    for crop, count in scale.sizes:
        settings = replace(scale.paper, crop=crop, batch=count, precision="fp32")
        try:
            _plain(settings, generator_of(states), perceptual, bench)()
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
        else:
            return settings
    crop, count = scale.sizes[-1]
    raise MemoryError(f"not even a crop of {crop} in a batch of {count} fits into the memory of this GPU")


def speed(scale: Scale, states: States, bench: Bench, out_of_time: Callable[[], bool]) -> dict[str, Any]:
    """Time and memory of a training iteration at the paper's scale, beside the plain formulas; share of the peak."""
    perceptual = perceptual_of(states, _taps(states), bench.device)
    settings = largest(scale, states, perceptual, bench)
    found: dict[str, Any] = {
        "crop": settings.crop,
        "batch": settings.batch,
        "peak_flops": peaks(bench.device, scale.matrix),
    }
    card = torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else "CPU"
    nominal = next(
        (dict(zip(("bf16", "tf32", "fp32"), each, strict=True)) for name, each in _NOMINAL.items() if name in card), {}
    )
    with FlopCounterMode(display=False) as counter:
        _ours(settings, generator_of(states), perceptual, bench)()
    flops = found["flops_of_an_iteration"] = counter.get_total_flops()
    ways: dict[str, tuple[str, Callable[[], Callable[[], object]]]] = {
        "plain fp32": ("fp32", partial(_plain, settings, generator_of(states), perceptual, bench))
    }
    for name, changes in (
        ("fp32", {}),
        ("tf32", {"tf32": True}),
        ("bf16", {"precision": "bf16"}),
        ("bf16 compiled", {"precision": "bf16", "compile": True}),
    ):
        changed = replace(settings, **changes)
        ways[name] = (name.split()[0], partial(_ours, changed, generator_of(states), perceptual, bench))
    for name, (arithmetic, prepare) in ways.items():
        if out_of_time():
            found[name] = "left out: the time was up"
            continue
        seconds, megabytes = _timed(prepare(), scale.timed, bench.device)
        figures = {"seconds": seconds, "megabytes": megabytes}
        figures["share_of_measured_peak"] = flops / seconds / found["peak_flops"][arithmetic]
        if nominal:
            figures["share_of_nominal_peak"] = flops / seconds / nominal[arithmetic]
        if "plain fp32" in found:
            figures["times_faster_than_plain"] = found["plain fp32"]["seconds"] / seconds
        found[name] = figures
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def _taps(states: States) -> Mapping[str, float]:
    """Return the paper's taps; of a bundle with fewer layers, its first convolution."""
    wanted = _FIRST.perceptual.weights
    return wanted if "features.28.weight" in states["vgg16"] else {"conv1_2": 1.0}


def adapt(scale: Scale, states: States, bench: Bench, generator: Generator, seconds: float) -> dict[str, Any]:
    """Train `generator` by Beby-GAN for a time; it becomes the average of the training."""
    perceptual = perceptual_of(states, _taps(states), bench.device)
    trial = replace(scale.adaptation, iterations=1)
    each, _ = _timed(_ours(trial, generator_of(states), perceptual, bench), min(10, scale.timed), bench.device)
    iterations = max(2, min(scale.most_iterations, int(0.9 * seconds / each)))
    settings = replace(trial, iterations=iterations, discriminator_first=iterations * 15 // 100)
    torch.manual_seed(settings.seed)
    discriminator = Discriminator(settings.crop, settings.discriminator_width)
    state = new_state(generator, discriminator, settings, bench.device)
    place(perceptual.vgg, bench.device, channels_last=settings.channels_last)
    started, history = time.monotonic(), []

    def watch(_: int, values: Mapping[str, float] | None) -> None:
        if values:
            history.append({name: round(value, 5) for name, value in values.items()})

    with tempfile.TemporaryDirectory() as folder:
        fit(
            state, bench.patches(), settings, gan_step(settings, perceptual), checkpoints=Path(folder),
            identity={"run": "gpu"}, watch=watch,
        )  # fmt: skip
    generator.load_state_dict(state.average.state_dict())
    generator.eval()
    return {
        "iterations": iterations, "discriminator_first": settings.discriminator_first, "crop": settings.crop,
        "batch": settings.batch, "patches": len(bench.patches()), "seconds": time.monotonic() - started,
        "history": history[:: max(1, len(history) // 40)],
    }  # fmt: skip


def measure(
    generators: Mapping[str, Generator], paths: Sequence[Path], states: States, device: torch.device, side: int | None
) -> dict[str, Any]:
    """Return the mean metrics of bicubic and each generator over the centres of photographs; see `bebygan.metrics`."""
    network = lpips_of(states, device)
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for path in paths:
        hr = _read(path)
        top, left = ((length - min(side or length, length)) // 2 // SCALE * SCALE for length in hr.shape[:2])
        hr = np.ascontiguousarray(hr[top : top + (side or len(hr)), left : left + (side or hr.shape[1])])
        lr = downscale_uint8(hr, SCALE)
        with full_precision(device):
            pictures = {"bicubic": upscale_uint8(lr, SCALE)}
            pictures |= {name: upscale_image(generator, lr) for name, generator in generators.items()}
        for name, sr in pictures.items():
            rows.setdefault(name, []).append((psnr_y(sr, hr), lpips(sr, hr, network), lr_psnr(sr, lr)))
    means = {name: np.mean(values, 0).tolist() for name, values in rows.items()}
    return {name: dict(zip(("psnr_y", "lpips", "lr_psnr"), row, strict=True)) for name, row in means.items()} | {
        "photographs": len(paths)
    }


def write_pieces(generator: Generator, folder: Path) -> dict[str, Any]:
    """Write the generator in float16 as pieces below 16 MB; `cat` in the order of their names makes the file."""
    state = {key: value.half().cpu().contiguous() for key, value in generator.state_dict().items()}
    content = safetensors_bytes(state, {"trained_by": "benchmarks.gpu"})
    names = []
    for number, start in enumerate(range(0, len(content), PIECE)):
        names.append(f"adapted.safetensors.{number:02}")
        (folder / names[-1]).write_bytes(content[start : start + PIECE])
    return {"pieces": names, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def _machine(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "memory_gb": about.total_memory / 1e9, "cuda": torch.version.cuda}
    return found


def run(
    scale: Scale, *, bundle: Path, train: Sequence[Path], held_out: Sequence[Path], output: Path, seconds: float
) -> bool:
    """Do everything and return whether all of it succeeded.

    Args:
        scale: how large.
        bundle: file that `pack` wrote.
        train: photographs to adapt on.
        held_out: photographs to measure.
        output: folder for figures.json and the pieces of the adapted weights.
        seconds: that all of it may take.
    """
    output.mkdir(parents=True, exist_ok=True)
    report, device = Report(output / "figures.json"), training_device()
    states = unpack(bundle)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "patches"
        folder.mkdir()
        report.part("machine", lambda: _machine(device))
        report.part("patches", lambda: write_patches(train, folder, scale.patch))
        perceptual = perceptual_of(states, _taps(states), device)
        bench = Bench(device=device, folder=folder, settings=scale.checks, perceptual=perceptual)
        for check in CHECKS:
            report.part(f"check {check.__name__}", partial(check, bench))
        report.part("speed", lambda: speed(scale, states, bench, lambda: report.seconds() > 0.45 * seconds))
        generator, start = generator_of(states), generator_of(states).to(device).eval()
        left = 0.9 * seconds - report.seconds()
        report.part("adaptation", lambda: adapt(scale, states, bench, generator, left))
        if "failed" not in report.found["adaptation"]:
            report.part("weights", lambda: write_pieces(generator, output))
            candidates = {"start": start, "adapted": generator}
            report.part("metrics", lambda: measure(candidates, held_out, states, device, scale.evaluated))
    return not report.failed


def _photographs(folders: Sequence[Path]) -> list[Path]:
    return [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Pack or run; return the exit code, which is 1 if a check or a part failed."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("what", choices=("pack", "run"))
    parser.add_argument("--weights", type=Path, default=BUNDLE, help="file that pack writes (default: %(default)s)")
    parser.add_argument("--photographs", type=Path, action="append", metavar="FOLDER", help="to train on")
    parser.add_argument("--held-out", type=Path, metavar="FOLDER", help="to measure (default: every fourth photograph)")
    parser.add_argument("--output", type=Path, default=ROOT / "build/gpu", help="default: %(default)s")
    parser.add_argument("--minutes", type=float, default=9.0, help="that all may take (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="tiny crops and few iterations, for a CPU")
    options = parser.parse_args(arguments)
    if options.what == "pack":
        options.weights.parent.mkdir(parents=True, exist_ok=True)
        pack({name: read_state(weights_file(name)) for name in NAMES}, options.weights)
        megabytes = options.weights.stat().st_size / 1e6
        print(f"{options.weights}: {megabytes:.1f} MB")
        return int(megabytes > MOST_MEGABYTES)
    if not options.weights.is_file():
        print(f"error: {options.weights} is missing: run `benchmarks/gpu.sh pack` with a network", file=sys.stderr)
        return 5
    photographs = _photographs(options.photographs or [ROOT / "data/sample"])
    held_out = _photographs([options.held_out]) if options.held_out else photographs[::4]
    train = [path for path in photographs if path not in held_out]
    scale = SMALL if options.small else PAPER
    return int(
        not run(
            scale,
            bundle=options.weights,
            train=train,
            held_out=held_out,
            output=options.output,
            seconds=60 * options.minutes,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
