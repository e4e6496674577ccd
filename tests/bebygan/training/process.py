"""One process of a training that tests start several of: `process.py WHAT FOLDER`."""

import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from bebygan.distributed import joined, processes, rank
from bebygan.errors import BebyganError
from bebygan.imaging.shards import read_patches
from bebygan.networks.discriminator import Discriminator
from bebygan.networks.generator import Generator
from bebygan.settings import GanSettings, GeneratorShape
from bebygan.training.loop import fit
from bebygan.training.state import TrainState, new_state
from bebygan.training.step import gan_step
from tests.bebygan.training.test_loop import JOB, SETTINGS

WHOLE = 4
TRAINED = replace(SETTINGS, batch=WHOLE, validate_every=2, validate_patches=2, channels_last=True)


def new(settings: GanSettings, dtype: torch.dtype) -> TrainState:
    torch.manual_seed(settings.seed)
    generator = Generator(GeneratorShape(blocks=1, features=4, growth=2)).to(dtype)
    discriminator = Discriminator(settings.crop, settings.discriminator_width).to(dtype)
    return new_state(generator, discriminator, settings, torch.device("cpu"))


def gradients(settings: GanSettings) -> dict[str, torch.Tensor]:
    """Return losses, gradients and batch norm statistics of one step on this process's share of a batch, in float64."""
    state = new(settings, torch.float64)
    torch.manual_seed(5)
    batch = torch.rand(WHOLE, 3, 12, 12, dtype=torch.float64), torch.rand(WHOLE, 3, 48, 48, dtype=torch.float64)
    values = gan_step(settings, None)(state, *(images.chunk(processes())[rank()] for images in batch))
    assert state.discriminator is not None
    found = {f"{rank()}.{name}": value.double() for name, value in values.items()}
    for kind, network in (("generator", state.generator), ("discriminator", state.discriminator)):
        found |= {f"{kind}.{name}": value.grad for name, value in network.named_parameters() if value.grad is not None}
    return found | dict(state.discriminator.named_buffers())


def train(folder: Path, settings: GanSettings) -> TrainState:
    state = new(settings, torch.float32)
    if rank():
        # Only the first process's start counts.
        torch.nn.init.zeros_(state.generator.conv_last.weight)

    def watch(iteration: int, values: Mapping[str, float] | None) -> None:
        assert rank() == 0
        assert values is None or "total" in values or "validation.psnr_y" in values
        print(iteration, flush=True)

    patches, validation = (read_patches(folder / "patches", split) for split in ("train", "validation"))
    fit(state, patches, settings, gan_step(settings, None), checkpoints=folder / "checkpoints", identity=JOB,
        watch=watch, validation=validation)  # fmt: skip
    return state


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(5)


FAULTS = {"one-stops": stop, "one-dies": die, "one-hangs": hang}


def misbehave(folder: Path, what: str) -> None:
    """Train for long; something happens to the second process amid its tenth step."""
    settings = replace(TRAINED, iterations=100_000, checkpoint_every=100_000)
    state, step = new(settings, torch.float32), gan_step(settings, None)

    def interrupted(state: TrainState, lr: torch.Tensor, hr: torch.Tensor) -> Mapping[str, torch.Tensor]:
        if state.iteration == 9 and what == "one-hangs":
            # Nobody would stay for the end of what `joined` grants.
            distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=1))
        if state.iteration == 9 and rank() == 1:
            FAULTS[what]()
        return step(state, lr, hr)

    patches = read_patches(folder / "patches", "train")
    fit(state, patches, settings, interrupted, checkpoints=folder / "checkpoints", identity=JOB, watch=lambda *_: None)


def main() -> None:
    what, folder = sys.argv[1], Path(sys.argv[2])
    with joined():
        if what == "equal":
            torch.save(gradients(TRAINED), folder / f"gradients-{rank()}.pt")
            torch.save(gradients(replace(TRAINED, relativistic_mean="local")), folder / f"local-{rank()}.pt")
        elif what == "train":
            state = train(folder, TRAINED)
            torch.save(state.state_dict(), folder / f"state-{rank()}.pt")
        else:
            misbehave(folder, what)


if __name__ == "__main__":
    try:
        main()
    except BebyganError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
