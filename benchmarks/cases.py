"""What is measured: the losses, a training iteration, the loop around it and the loader, on real photographs."""

import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from bebygan import SCALE
from bebygan.errors import DataError
from bebygan.imaging.bicubic_uint8 import downscale_uint8
from bebygan.imaging.shards import PhotographPair, read_patches, write_shards
from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import best_buddy_loss, find_best_buddies, pyramid_levels
from bebygan.losses.objective import Perceptual
from bebygan.losses.region_aware import textured_regions
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.networks.perceptual import load_vgg
from bebygan.settings import BestBuddySettings, GanSettings, GeneratorShape, Precision, RegionSettings
from bebygan.training import checkpoint
from bebygan.training.loop import TrainStep, fit
from bebygan.training.sampling import batch
from bebygan.training.state import TrainState, new_state, place
from bebygan.training.step import gan_step
from benchmarks import pipeline, plain
from benchmarks.figures import Figure, compared, limited, no_worse
from benchmarks.measuring import Measured, Outputs, Prepare, Rounds, Work, difference, in_turn
from components.config import Params, PatchesParams
from components.patches.step import cropped_to_scale, textured_windows
from components.stores.dataset import read_photograph
from components.tracking.runs import step_run

CPU = torch.device("cpu")
_LOSS_NOISE = 1e-5
"""Float32 noise of a loss, relative."""
_GRADIENT_NOISE = 5e-2
"""Of |x - y| the gradient is a sign: where the two are all but equal, noise turns it."""
BEST_BUDDY_NOISE = {"loss": 1e-3, "gradient": _GRADIENT_NOISE}
"""Where two candidates are all but equally near, float32 may choose either; their L1 distances differ a little more."""
_EQUAL_SCORES = 1e-14
"""The scores of equal candidates, such as patches of a flat sky, differ by no more in float64."""


class WrongResultError(Exception):
    """Ours is not what the reference computes: how fast it is does not matter."""


@dataclass(frozen=True, slots=True)
class Crops:
    """Crops of real photographs: which, how large, how many."""

    patches: Path
    side: int
    count: int

    def read(self) -> tuple[Tensor, Tensor]:
        """Return LR and HR."""
        patches = read_patches(self.patches, "train", verify=False)
        return batch(patches, 1, 0, self.count, crop=self.side, device=CPU)

    def __str__(self) -> str:
        return f"{self.count} x {self.side}"


def write_sample(photographs: Path, output: Path, params: PatchesParams) -> None:
    """Write the patches of a folder of RGB photographs, as the patches step does with what ingest gives it.

    Raises:
        DataError: there is no photograph large enough.
    """
    output.mkdir()
    paths = sorted(path for path in photographs.iterdir() if path.suffix in (".jpg", ".png"))
    images = [cropped_to_scale(read_photograph(path)) for path in paths]
    stored = [
        PhotographPair(hr, downscale_uint8(hr, SCALE), "train", windows)
        for hr in images
        if len(windows := textured_windows(hr, params))
    ]
    if not stored:
        raise DataError(f"{photographs} holds no photograph of {params.size} pixels or more")
    write_shards(output, stored, params.size, params.shard_megabytes * 2**20, {})


def check_equal(name: str, ours: Measured, reference: Measured, limits: Mapping[str, float]) -> None:
    """Compare all outputs.

    Args:
        name: of what was computed.
        ours: with its outputs.
        reference: with the same outputs.
        limits: largest relative difference by name of output; every one has a limit.

    Raises:
        WrongResultError: one differs by more.
    """
    for output, found in difference(ours.outputs, reference.outputs).items():
        # Written so that NaN is refused too.
        if not found <= limits[output]:
            raise WrongResultError(
                f"{name}: {output} differs by {found:.2g} from the reference, {limits[output]:g} is noise"
            )


def _time_and_memory(
    name: str, ours: Measured, reference: Measured, least_speed: float | None, least_memory: float | None
) -> list[Figure]:
    return [
        compared(f"{name}: time", ours.seconds * 1e3, reference.seconds * 1e3, "ms", least_speed),
        compared(f"{name}: memory", ours.megabytes, reference.megabytes, "MB", least_memory),
    ]


def _enlarged(lr: Tensor) -> Tensor:
    """A stand-in for SR that is as blurred as an early one."""
    return F.interpolate(lr, scale_factor=SCALE, mode="bicubic")


def _with_gradient(loss_of: Callable[[Tensor], Tensor], sr: Tensor) -> Outputs:
    leaf = sr.detach().requires_grad_()
    loss = loss_of(leaf)
    torch.autograd.backward(loss)
    assert leaf.grad is not None
    return {"loss": loss, "gradient": leaf.grad}


def ours_best_buddy(crops: Crops, settings: BestBuddySettings) -> Work:
    lr, hr = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: best_buddy_loss(leaf, hr, settings), sr)


def _plain_search(sr: Tensor, hr: Tensor, settings: BestBuddySettings) -> tuple[Tensor, Tensor]:
    levels = list(pyramid_levels(hr, settings.pyramid))
    return plain.best_buddy(
        sr, levels, alpha=settings.alpha, beta=settings.beta, patch=settings.patch, stride=settings.stride
    )


def plain_best_buddy(crops: Crops, settings: BestBuddySettings) -> Work:
    lr, hr = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: _plain_search(leaf, hr, settings)[0], sr)


def best_buddy(crops: Crops, settings: BestBuddySettings, rounds: Rounds) -> list[Figure]:
    """The best-buddy loss with its gradient: one chunked product beside two distance matrices."""
    name = f"best-buddy loss, {crops}"
    ways: dict[str, Prepare] = {
        "ours": partial(ours_best_buddy, crops, settings),
        "reference": partial(plain_best_buddy, crops, settings),
    }
    found = in_turn(name, ways, rounds)
    check_equal(name, found["ours"], found["reference"], BEST_BUDDY_NOISE)
    return _time_and_memory(name, found["ours"], found["reference"], 20, 50)


def missed(sr: Tensor, hr: Tensor, index: Tensor, settings: BestBuddySettings) -> int:
    """Count choices for which float64 knows a candidate with a lower score."""
    exact = [level.double() for level in pyramid_levels(hr, settings.pyramid)]
    mine, twins = (F.unfold(images.double(), settings.patch, stride=settings.stride).mT for images in (sr, hr))
    candidates = torch.cat([F.unfold(level, settings.patch, stride=settings.stride).mT for level in exact], 1)
    worse = 0
    for image in range(len(sr)):
        centre = candidates[image].mean(0)
        share = settings.alpha / (settings.alpha + settings.beta)
        queries = torch.lerp(twins[image], mine[image], share) - centre
        moved = candidates[image] - centre
        scores = moved.square().sum(1) - 2 * queries @ moved.T
        chosen = scores.gather(1, index[image, :, None])[:, 0]
        worse += int((chosen > scores.amin(1) + _EQUAL_SCORES).sum())
    return worse


def search(crops: Crops, settings: BestBuddySettings) -> list[Figure]:
    """How often float32 chooses another buddy than float64."""
    lr, hr = crops.read()
    sr = _enlarged(lr)
    ours = reference = queries = 0
    for image in range(len(sr)):
        pair = sr[image : image + 1], hr[image : image + 1]
        index = find_best_buddies(*pair, settings).index
        queries += index.numel()
        ours += missed(*pair, index, settings)
        reference += missed(*pair, _plain_search(*pair, settings)[1], settings)
    name = f"best-buddy search, {crops}: choices that float64 does not make"
    return [no_worse(name, ours, reference, f"of {queries}")]


def _ours_mask(crops: Crops, settings: RegionSettings) -> Work:
    _, hr = crops.read()
    return lambda: {"mask": textured_regions(hr, settings)}


def _plain_mask(crops: Crops, settings: RegionSettings) -> Work:
    _, hr = crops.read()
    return lambda: {"mask": 1 - plain.flat_regions(hr, settings.window, settings.threshold)}


def region_mask(crops: Crops, settings: RegionSettings, rounds: Rounds) -> list[Figure]:
    """The region mask: box sums beside unfolded windows."""
    name = f"region mask, {crops}"
    ways: dict[str, Prepare] = {
        "ours": partial(_ours_mask, crops, settings),
        "reference": partial(_plain_mask, crops, settings),
    }
    found = in_turn(name, ways, rounds)
    # The root of the share of pixels that differ: one in a thousand may lie on the threshold.
    check_equal(name, found["ours"], found["reference"], {"mask": 1e-3**0.5})
    return _time_and_memory(name, found["ours"], found["reference"], 4, None)


def _ours_back_projection(crops: Crops) -> Work:
    lr, _ = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: back_projection_loss(leaf, lr, SCALE), sr)


def _plain_back_projection(crops: Crops) -> Work:
    lr, _ = crops.read()
    sr = _enlarged(lr)
    return lambda: _with_gradient(lambda leaf: (plain.matlab_resize(leaf, *lr.shape[-2:]) - lr).abs().mean(), sr)


def back_projection(crops: Crops, rounds: Rounds) -> list[Figure]:
    """The back-projection loss with its gradient: two matrix products beside gathered taps."""
    name = f"back-projection loss, {crops}"
    ways: dict[str, Prepare] = {
        "ours": partial(_ours_back_projection, crops),
        "reference": partial(_plain_back_projection, crops),
    }
    found = in_turn(name, ways, rounds)
    check_equal(name, found["ours"], found["reference"], {"loss": _LOSS_NOISE, "gradient": _GRADIENT_NOISE})
    return _time_and_memory(name, found["ours"], found["reference"], 5, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A training iteration to be measured."""

    crops: Crops
    vgg: Path
    generator: GeneratorShape
    settings: GanSettings

    def networks(self) -> tuple[Generator, Discriminator]:
        """Return networks with weights of no use, always the same."""
        torch.manual_seed(1)
        return Generator(self.generator), Discriminator(self.settings.crop, self.settings.discriminator_width)

    def perceptual(self) -> Perceptual:
        """Return the frozen network."""
        taps = dict(self.settings.perceptual.taps)
        vgg = place(load_vgg(self.vgg, max(taps)), CPU, channels_last=self.settings.channels_last)
        return Perceptual(vgg, taps)

    @property
    def shape(self) -> str:
        """Say the generator's blocks and features, the crops' count and side."""
        return f"{self.generator.blocks} x {self.generator.features}, {self.crops}"


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _outcome(losses: Mapping[str, Tensor], generator: Generator, discriminator: Discriminator) -> Outputs:
    """Return what both iterations can be compared by."""
    gradients = {
        f"{name} gradient": [weight.grad for weight in network.parameters() if weight.grad is not None]
        for name, network in (("generator", generator), ("discriminator", discriminator))
    }
    return {name: losses[name].detach() for name in _LOSSES} | gradients


def _ours_iteration(setup: Setup) -> Work:
    lr, hr = setup.crops.read()
    generator, discriminator = setup.networks()
    state = new_state(generator, discriminator, setup.settings, CPU)
    step = gan_step(setup.settings, setup.perceptual())
    for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
        assert optimiser is not None
        _set_rate(optimiser, setup.settings.schedule.peak)

    def work() -> Outputs:
        losses = step(state, lr, hr)
        return _outcome(losses, generator, discriminator)

    return work


def _plain_iteration(setup: Setup) -> Work:
    lr, hr = setup.crops.read()
    generator, discriminator = setup.networks()
    average, _ = setup.networks()
    network = setup.perceptual()
    rate = setup.settings.schedule.peak
    optimisers = (torch.optim.Adam(generator.parameters(), rate), torch.optim.Adam(discriminator.parameters(), rate))

    def work() -> Outputs:
        losses = plain.training_iteration(
            generator, discriminator, optimisers, network=network, settings=setup.settings, lr=lr, hr=hr
        )
        plain.update_average(average, generator, setup.settings.ema_decay)
        return _outcome(losses, generator, discriminator)

    return work


_LOSSES = ("best_buddy", "back_projection", "perceptual", "adversarial", "discriminator")
_GRADIENTS = ("generator gradient", "discriminator gradient")
_ITERATION_NOISE: dict[Precision, dict[str, float]] = {
    "fp32": dict.fromkeys(_LOSSES, _LOSS_NOISE) | dict.fromkeys(_GRADIENTS, 1e-2) | {"best_buddy": 1e-3},
    # bfloat16 keeps 8 bits of each number; a gradient through networks that have learnt nothing is mostly their noise.
    "bf16": dict.fromkeys(_LOSSES, 3e-2) | dict.fromkeys(_GRADIENTS, 0.6),
}


def iteration(
    setup: Setup, rounds: Rounds, least: Mapping[Precision, float], least_memory: float | None
) -> list[Figure]:
    """A whole training iteration in fp32 and in bf16, each with channels_last, beside the plain one.

    Args:
        setup: what is trained on what.
        rounds: how often.
        least: mark of the speed by precision; these are measured.
        least_memory: mark of the memory.
    """
    ways: dict[str, Prepare] = {
        "reference": partial(_plain_iteration, replace(setup, settings=replace(setup.settings, channels_last=False)))
    }
    for precision in least:
        settings = replace(setup.settings, precision=precision, channels_last=True)
        ways[precision] = partial(_ours_iteration, replace(setup, settings=settings))
    found = in_turn(setup.shape, ways, rounds)
    figures = []
    for precision, speed in least.items():
        name = f"training iteration, {setup.shape}, {precision}"
        limits = _ITERATION_NOISE[precision]
        check_equal(name, found[precision], found["reference"], limits)
        figures += _time_and_memory(name, found[precision], found["reference"], speed, least_memory)
    return figures


@contextmanager
def _tracking_in(folder: Path) -> Iterator[None]:
    """Let MLflow keep its runs in a folder for the length of the body."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    for name in before:
        del os.environ[name]
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder / 'mlflow.db'}"
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]
        os.environ.update(before)


def _clocked(step: TrainStep) -> tuple[TrainStep, list[float], list[float]]:
    """Return a step that notes when it began and ended, and the notes, seconds."""
    began: list[float] = []
    ended: list[float] = []

    def clocked(state: TrainState, lr: Tensor, hr: Tensor) -> Mapping[str, Tensor]:
        began.append(time.perf_counter())
        losses = step(state, lr, hr)
        ended.append(time.perf_counter())
        return losses

    return clocked, began, ended


def outside_the_step(setup: Setup, iterations: int) -> list[Figure]:
    """Time of the loop that is not forward, backward or optimiser: data, average, logging, checkpoints.

    Values are logged to MLflow, checkpoints amortised over the iterations between two of them.
    """
    settings = replace(setup.settings, iterations=iterations, checkpoint_every=iterations)
    patches = read_patches(setup.crops.patches, "train", verify=False)
    state = new_state(*setup.networks(), settings, CPU)
    step, began, ended = _clocked(gan_step(settings, setup.perceptual()))
    job = {"step": "benchmark"}
    with TemporaryDirectory() as name, _tracking_in(Path(name)), step_run("train", settings) as track:

        def watch(iteration: int, values: Mapping[str, float] | None) -> None:
            if values is not None:
                track(iteration, values)

        fit(state, patches, settings, step, checkpoints=Path(name) / "fit", identity=job, watch=watch)
        started = time.perf_counter()
        with checkpoint.Checkpoints(Path(name) / "once", job, settings.keep) as checkpoints:
            checkpoints.save(iterations, state.state_dict())
        saving = time.perf_counter() - started
    between = np.subtract(began[1:], ended[:-1]).mean() + saving / setup.settings.checkpoint_every
    inside = np.subtract(ended[1:], began[1:]).mean()
    name = f"training loop, {setup.shape}: time outside forward, backward, optimiser"
    return [limited(name, float(100 * between / (between + inside)), "%", 3)]


def checkpointing(setup: Setup, times: int) -> list[Figure]:
    """What a checkpoint costs training, beside an iteration of the same run, and how long a stop takes in all.

    The cost is the time between two iterations, and by how much the next one takes longer while it is being written.
    """
    settings = replace(setup.settings, iterations=3 * times + 2, checkpoint_every=3, log_every=10**6)
    patches = read_patches(setup.crops.patches, "train", verify=False)
    state = new_state(*setup.networks(), settings, CPU)
    step, began, ended = _clocked(gan_step(settings, setup.perceptual()))
    job = {"step": "benchmark"}
    with TemporaryDirectory() as name:
        fit(state, patches, settings, step, checkpoints=Path(name) / "fit", identity=job, watch=lambda *_: None)
        started = time.perf_counter()
        step(state, *setup.crops.read())
        with checkpoint.Checkpoints(Path(name) / "stop", job, settings.keep) as checkpoints:
            checkpoints.save(settings.iterations, state.state_dict())
            checkpoints.wait()
        stopping = time.perf_counter() - started
    # The last one was that of the stop.
    inside, between = np.subtract(ended, began)[:-1], np.subtract(began[1:-1], ended[:-2])
    after = np.arange(3, len(inside), 3)
    # Two iterations on, the checkpoint is written; the first iteration of all warms up.
    undisturbed = float(np.median(inside[2::3]))
    cost = float(np.max(between[after - 1] + np.maximum(inside[after] - undisturbed, 0)))
    name = f"checkpoint, {setup.shape}"
    return [
        limited(f"{name}: time it costs training", 100 * cost / undisturbed, "% of an iteration", 100),
        limited(f"{name}: a last iteration, and until it is written", stopping, "s", 25),
    ]


def _ours_loading(crops: Crops) -> Work:
    patches = read_patches(crops.patches, "train", verify=False)
    firsts = count(0, crops.count)

    def work() -> Outputs:
        lr, hr = batch(patches, 1, next(firsts), crops.count, crop=crops.side, device=CPU)
        return {"lr": lr, "hr": hr}

    return work


def _encoded(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _plain_loading(crops: Crops) -> Work:
    patches = read_patches(crops.patches, "train", verify=False)
    files = []
    for window in patches.windows[:: max(1, len(patches) // _FILES)]:
        number, top, left = (int(window[name]) for name in ("photograph", "top", "left"))
        hr = patches.hr[number][top : top + patches.size, left : left + patches.size]
        small = [value // SCALE for value in (top, left, patches.size)]
        lr = patches.lr[number][small[0] : small[0] + small[2], small[1] : small[1] + small[2]]
        files.append((_encoded(lr), _encoded(hr)))
    following = cycle(files)

    def work() -> Outputs:
        lr, hr = plain.decode_batch(list(islice(following, crops.count)), crops.side)
        return {"lr": lr, "hr": hr}

    return work


_FILES = 64
"""Sub-images that the plain loader reads: enough to leave the processor's caches."""


def loading(crops: Crops, rounds: Rounds) -> list[Figure]:
    """Training samples a second of one process: windows of a memory map beside decoded PNG sub-images."""
    ways: dict[str, Prepare] = {"ours": partial(_ours_loading, crops), "reference": partial(_plain_loading, crops)}
    found = in_turn("loading", ways, rounds)
    ours, reference = (crops.count / found[way].seconds for way in ("ours", "reference"))
    return [compared(f"loading, {crops}", ours, reference, "samples/s", None, more_is_better=True)]


Case = Callable[[Path, Path, Rounds], list[Figure]]
"""Takes the folder of patches, the file of VGG16 and the rounds."""


def cases(params: Params) -> dict[str, Case]:
    """Return all cases by name."""
    laptop = params.train

    def iterations(shape: GeneratorShape, side: int, least: Mapping[Precision, float]) -> Case:
        settings = replace(laptop, crop=side, batch=2)

        def case(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
            setup = Setup(crops=Crops(patches, side, 2), vgg=vgg, generator=shape, settings=settings)
            return iteration(setup, rounds, least, 2 if side == 192 else None)

        return case

    def outside(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
        crops = Crops(patches, laptop.crop, laptop.batch)
        setup = Setup(crops=crops, vgg=vgg, generator=params.warmup.generator, settings=laptop)
        return outside_the_step(setup, 8 * rounds.least)

    def checkpoints(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
        settings = replace(laptop, crop=192, batch=2)
        setup = Setup(crops=Crops(patches, 192, 2), vgg=vgg, generator=large, settings=settings)
        return checkpointing(setup, rounds.least)

    small, large = (GeneratorShape(blocks=4, features=32, growth=16), GeneratorShape(blocks=23, features=64, growth=32))
    return {
        "best-buddy": lambda patches, _, rounds: best_buddy(Crops(patches, 192, 8), laptop.best_buddy, rounds),
        "search": lambda patches, *_: search(Crops(patches, 192, 8), laptop.best_buddy),
        "mask": lambda patches, _, rounds: region_mask(Crops(patches, 192, 8), laptop.region, rounds),
        "back-projection": lambda patches, _, rounds: back_projection(Crops(patches, 192, 8), rounds),
        "iteration-4x32-128": iterations(small, 128, {"fp32": 1.4, "bf16": 2.0}),
        "iteration-4x32-192": iterations(small, 192, {"fp32": 1.7, "bf16": 2.5}),
        "iteration-23x64-192": iterations(large, 192, {"fp32": 1.2, "bf16": 2.2}),
        "loop": outside,
        "checkpoint": checkpoints,
        "loading": lambda patches, _, rounds: loading(Crops(patches, laptop.crop, laptop.batch), rounds),
        "overhead": lambda *_: pipeline.overhead(),
        "compile": lambda _, __, rounds: pipeline.compiling(rounds),
    }
