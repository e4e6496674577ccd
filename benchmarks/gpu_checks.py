"""Checks of what a machine without a GPU cannot execute. Each returns one line about what it found, or raises.

On a CPU the same functions run with what a CPU has instead, such as gloo for NCCL, so that they can be tested.
"""

import copy
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, distributed

from bebygan.distributed import average_over_processes, copy_from_first, mean_over_processes
from bebygan.imaging import Image
from bebygan.imaging.shards import Patches, read_patches
from bebygan.imaging.tiling import upscale_image
from bebygan.losses.back_projection import back_projection_loss
from bebygan.losses.best_buddy import best_buddy_loss
from bebygan.losses.objective import Perceptual
from bebygan.losses.region_aware import textured_regions
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.precision import tf32
from bebygan.settings import GanSettings, GeneratorShape, Retention
from bebygan.training.loop import fit
from bebygan.training.sampling import Loader, batch
from bebygan.training.state import TrainState, new_state
from bebygan.training.step import gan_step

_SHAPE = GeneratorShape(blocks=2, features=32, growth=16)


class WrongError(Exception):
    """A check found something that is not as it should be."""


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise WrongError(otherwise)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is checked on what."""

    device: torch.device
    folder: Path
    """Of patches, as `write_shards` writes them."""
    settings: GanSettings
    perceptual: Perceptual | None

    def patches(self) -> Patches:
        """Return the training patches."""
        return read_patches(self.folder, "train", verify=False)

    def state(self, settings: GanSettings) -> TrainState:
        """Return a small state of training, always the same."""
        torch.manual_seed(settings.seed)
        discriminator = Discriminator(settings.crop, settings.discriminator_width)
        return new_state(Generator(_SHAPE), discriminator, settings, self.device)

    def pair(self, settings: GanSettings) -> tuple[Tensor, Tensor]:
        """Return LR and HR of one batch."""
        return batch(self.patches(), 1, 0, settings.batch, crop=settings.crop, device=self.device)

    def stepped(self, settings: GanSettings, iterations: int = 1) -> tuple[TrainState, Mapping[str, Tensor]]:
        """Train a new state on one batch and return it with the last values."""
        state, step, pair = self.state(settings), gan_step(settings, self.perceptual), self.pair(settings)
        for optimiser in (state.generator_optimiser, state.discriminator_optimiser):
            for group in optimiser.param_groups if optimiser else ():
                group["lr"] = settings.schedule.peak
        values: Mapping[str, Tensor] = {}
        for _ in range(iterations):
            values = step(state, *pair)
            state.iteration += 1
        return state, values


def _near(found: Tensor, expected: Tensor, limit: float, what: str) -> float:
    difference = float((found.float().cpu() - expected.float().cpu()).norm() / expected.float().cpu().norm())
    _require(difference <= limit, f"{what} differs by {difference:.2g}, at most {limit:g} is noise")
    return difference


def collectives(bench: Bench) -> str:
    """One process with NCCL: sums, their gradients, averages and copies."""
    backend = "cpu:gloo,cuda:nccl" if bench.device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(backend, init_method=f"file://{folder}/store", world_size=1, rank=0)
        try:
            values = torch.tensor([1.0, 3.0], device=bench.device, requires_grad=True)
            weights = torch.ones(5, device=bench.device)
            # A process that trains alone skips the collectives. It is told that there are two, one of which gives 0.
            with mock.patch("bebygan.distributed.processes", return_value=2):
                mean = mean_over_processes(values)
                torch.autograd.backward(mean)
                average_over_processes([weights])
                copy_from_first([weights])
        finally:
            distributed.destroy_process_group()
    _require(mean.item() == 1 and weights.sum().item() == 2.5, f"sums are wrong: {mean.item()}, {weights.tolist()}")
    _require(values.grad is not None and values.grad.tolist() == [0.25, 0.25], f"gradient {values.grad}")
    return f"all_reduce, its gradient, averages and broadcast by {backend}"


def fused_adam(bench: Bench) -> str:
    """Fused Adam steps like the plain one, and not at all where the batch is not finite."""
    torch.manual_seed(1)
    weight = torch.randn(64, 64, device=bench.device, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    optimisers = torch.optim.Adam([weight], 1e-2, fused=True), torch.optim.Adam([twin], 1e-2, foreach=False)
    for _ in range(3):
        gradient = torch.randn_like(twin)
        for parameter, optimiser in zip((weight, twin), optimisers, strict=True):
            parameter.grad = gradient.clone()
            optimiser.step()
    difference = _near(weight.detach(), twin.detach(), 1e-5, "fused Adam")
    state = bench.state(bench.settings)
    before = [tensor.clone() for tensor in state.tensors()]
    lr, hr = bench.pair(bench.settings)
    gan_step(bench.settings, bench.perceptual)(state, lr, hr * torch.nan)
    same = all(torch.equal(now, old) for now, old in zip(state.tensors(), before, strict=True))
    _require(same and state.guard.skipped.item() == 1, "a batch that is not finite changed the networks")
    return f"differs from plain Adam by {difference:.1g}; a batch that is not finite changes nothing"


def pinned_copies(bench: Bench) -> str:
    """Batches copied from page-locked memory by another thread are those read at once."""
    patches, settings = bench.patches(), bench.settings
    with Loader(patches, settings, settings.batch, bench.device) as loader:
        for iteration in range(4):
            found = loader.load(iteration)
            first = iteration * settings.batch
            expected = batch(patches, settings.seed, first, settings.batch, crop=settings.crop, device=bench.device)
            same = all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            _require(same, f"batch {iteration} differs")
    return "4 batches equal"


def tf32_switch(bench: Bench) -> str:
    """TF32 is on where it is allowed and off elsewhere; the search for best buddies is exact either way."""
    torch.manual_seed(1)
    a, b = (torch.randn(256, 256, device=bench.device) for _ in range(2))
    exact = a.double() @ b.double()
    with tf32(False):
        strict = _near(a @ b, exact, 1e-5, "a float32 product without TF32")
    with tf32(True):
        loose = float(((a @ b).double() - exact).norm() / exact.norm())
    if bench.device.type == "cuda" and torch.cuda.get_device_capability(bench.device)[0] >= 8:
        _require(loose > 10 * strict, f"TF32 changes nothing: {loose:.1g}, {strict:.1g}")
    _, hr = bench.pair(bench.settings)
    values = []
    for allowed in (False, True):
        with tf32(allowed):
            values.append(best_buddy_loss(hr.flip(3), hr))
    _require(torch.equal(*values), "TF32 changes the best-buddy loss")
    return f"a product is off by {strict:.1g} without and {loose:.1g} with TF32"


def half_precision(bench: Bench) -> str:
    """fp16 scales its losses, halves the scale after an overflow; fp16 and bf16 give nearly the losses of fp32."""
    _, wanted = bench.stepped(replace(bench.settings, precision="fp32"))
    found = []
    for precision in ("bf16", "fp16") if bench.device.type == "cuda" else ("bf16",):
        settings = replace(bench.settings, precision=precision)
        state, values = bench.stepped(settings)
        difference = _near(values["total"], wanted["total"], 0.05, f"the loss in {precision}")
        found.append(f"{precision} loss off by {difference:.1g}")
        if precision == "fp16":
            scale = state.guard.scale.item()
            lr, hr = bench.pair(settings)
            gan_step(settings, bench.perceptual)(state, lr, hr * torch.inf)
            _require(scale > 1 and state.guard.scale.item() == scale / 2, f"scale {scale}, {state.guard.scale.item()}")
            found.append(f"scale {scale:g} halved after an overflow")
    return ", ".join(found)


def compiled(bench: Bench) -> str:
    """Compiled networks give the losses of uncompiled ones."""
    plain, quick = (bench.stepped(replace(bench.settings, compile=each), 2) for each in (False, True))
    ran = quick[0].generator._compiled_call_impl is not None
    _require(ran or bench.device.type == "cpu", "torch.compile failed: the generator runs uncompiled")
    return f"loss off by {_near(quick[1]['total'], plain[1]['total'], 0.02, 'the compiled loss'):.1g}"


@contextmanager
def _deterministic() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class _Killed(Exception):  # noqa: N818 - not an error
    """Ends a training as a lost machine does."""


def resumed(bench: Bench) -> str:
    """A training that was killed and resumed ends as one that was not."""
    settings = replace(
        bench.settings, iterations=4, checkpoint_every=2, log_every=1, validate_every=0, picture_every=0,
        keep=Retention(newest=2, every=0, best=None),
    )  # fmt: skip

    def kill(iteration: int, _: object) -> None:
        if iteration == 3:
            raise _Killed

    def run(folder: str, watch: Callable[[int, Mapping[str, float] | None], None]) -> TrainState:
        state, step = bench.state(settings), gan_step(settings, bench.perceptual)
        fit(state, bench.patches(), settings, step, checkpoints=Path(folder), identity={"run": "check"}, watch=watch)
        return state

    def go_on(*_: object) -> None:
        return

    with _deterministic(), tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as parts:
        expected = run(whole, go_on)
        try:
            run(parts, kill)
        except _Killed:
            found = run(parts, go_on)
    pairs = list(zip(found.tensors(), expected.tensors(), strict=True))
    worst = max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
    _require(worst < 1e-4 and found.iteration == 4, f"weights differ by up to {worst:.2g}")
    return "bit for bit" if worst == 0 else f"weights differ by up to {worst:.1g}"


def same_as_cpu(bench: Bench) -> str:
    """The losses and the mask are those of the CPU."""
    lr, hr = bench.pair(bench.settings)
    sr = torch.nn.functional.interpolate(lr, scale_factor=4, mode="bicubic")
    losses: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "best-buddy": lambda sr, hr, _: best_buddy_loss(sr, hr),
        "back-projection": lambda sr, _, lr: back_projection_loss(sr, lr),
        "mask": lambda _, hr, __: textured_regions(hr).mean(),
    }
    found = [
        f"{name} {_near(loss(sr, hr, lr), loss(sr.cpu(), hr.cpu(), lr.cpu()), 1e-4, name):.1g}"
        for name, loss in losses.items()
    ]
    return "off by " + ", ".join(found)


def tiled(bench: Bench) -> str:
    """A photograph upscaled in tiles, in half precision, equals the whole one in float32 up to rounding."""
    torch.manual_seed(1)
    generator = Generator(_SHAPE).to(bench.device).eval()
    lr: Image = np.ascontiguousarray(bench.patches().lr[0][:48, :48])
    whole = upscale_image(generator, lr).astype(int)
    parts = upscale_image(copy.deepcopy(generator), lr, tile=24, dtype=torch.bfloat16).astype(int)
    worst = int(np.abs(whole - parts).max())
    _require(worst <= 4, f"tiles in bf16 differ by {worst} of 255")
    return f"tiles in bf16 differ by at most {worst} of 255"


CHECKS: tuple[Callable[[Bench], str], ...] = (
    collectives, fused_adam, pinned_copies, tf32_switch, half_precision, compiled, resumed, same_as_cpu, tiled,
)  # fmt: skip
