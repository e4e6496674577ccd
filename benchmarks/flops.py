"""`python -m benchmarks.flops`: count the operations of a training iteration, and what a training of a plan costs.

Counted by torch.utils.flop_counter: 2 for each multiplication with its addition, in convolutions and matrix products.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from bebygan import SCALE
from bebygan.losses.objective import Perceptual
from bebygan.networks import Discriminator, Generator, Vgg
from bebygan.settings import GanSettings, GeneratorShape
from bebygan.training.state import new_state
from bebygan.training.step import gan_step

CPU = torch.device("cpu")


def of_forward(shape: GeneratorShape, side: int) -> int:
    """Return the operations of the generator, as training computes it, for an LR square of `side` pixels."""
    with FlopCounterMode(display=False) as counter:
        Generator(shape)(torch.rand(1, 3, side, side))
    return int(counter.get_total_flops())


def of_sample(shape: GeneratorShape, settings: GanSettings) -> int:
    """Return the operations of one sample of a training iteration: forward and backward of all networks and losses.

    The weights of VGG do not matter, so none are loaded.
    """
    taps = settings.perceptual.weights
    vgg = Vgg(settings.perceptual.network, max(taps))
    # Batch norm needs two samples.
    settings = replace(settings, batch=2, precision="fp32")
    state = new_state(Generator(shape), Discriminator(settings.crop, settings.discriminator_width), settings, CPU)
    lr, hr = (torch.rand(2, 3, settings.crop // scale, settings.crop // scale) for scale in (SCALE, 1))
    with FlopCounterMode(display=False) as counter:
        gan_step(settings, Perceptual(vgg, taps))(state, lr, hr)
    return int(counter.get_total_flops()) // 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the operations and, for the plan of the options, the hours; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flops", description=__doc__)
    parser.add_argument("--blocks", type=int, default=23)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--growth", type=int, default=32)
    parser.add_argument("--crop", type=int, default=192)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--iterations", type=int, default=600_000)
    parser.add_argument(
        "--tflops", type=float, default=[100.0, 200.0, 400.0], nargs="+",
        help="of the whole machine, as sustained in training: peak times share (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    shape = GeneratorShape(blocks=options.blocks, features=options.features, growth=options.growth)
    sample = of_sample(shape, GanSettings(crop=options.crop))
    total = sample * options.batch * options.iterations
    lines = [
        ["generator forward, one crop", f"{of_forward(shape, options.crop // SCALE) / 1e9:.1f} GFLOP"],
        ["training, one sample", f"{sample / 1e9:.1f} GFLOP"],
        ["training, one iteration", f"{sample * options.batch / 1e12:.3f} TFLOP"],
        ["the whole plan", f"{total / 1e18:.2f} EFLOP"],
        *(
            [f"at {tflops:g} TFLOP/s sustained", f"{total / (tflops * 1e12) / 3600:.1f} hours"]
            for tflops in options.tflops
        ),
    ]
    print(tabulate(lines, tablefmt="github", headers=["", ""], colalign=("left", "right")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
