"""A training iteration beside a plain one, the loop around it, checkpoints, and loading."""

import io
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bebygan import SCALE
from bebygan.imaging.shards import read_patches
from bebygan.losses.objective import Perceptual
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.networks.perceptual import load_vgg
from bebygan.settings import GanSettings, GeneratorShape, Precision
from bebygan.training import checkpoint
from bebygan.training.loop import TrainStep, fit
from bebygan.training.sampling import batch
from bebygan.training.state import TrainState, new_state, place
from bebygan.training.step import gan_step
from benchmarks import plain
from benchmarks.comparing import CPU, LOSS_NOISE, Crops, check_equal, time_and_memory
from benchmarks.figures import Figure, compared, limited
from benchmarks.measuring import Outputs, Prepare, Rounds, Work, in_turn
from components.tracking.runs import step_run


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
        taps = self.settings.perceptual.weights
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
    "fp32": dict.fromkeys(_LOSSES, LOSS_NOISE) | dict.fromkeys(_GRADIENTS, 1e-2) | {"best_buddy": 1e-3},
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
        figures += time_and_memory(name, found[precision], found["reference"], speed, least_memory)
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
