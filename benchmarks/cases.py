"""All cases by name, with their targets."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from bebygan.pretrained import weights_file
from bebygan.settings import GeneratorShape, Precision
from benchmarks import losses, paths, pipeline, training, upscaling
from benchmarks.comparing import Crops
from benchmarks.figures import Figure
from benchmarks.measuring import Rounds
from components.config import Params

_LAPTOP_WEIGHTS = Path(__file__).parents[1] / "data" / "pretrained" / "rrdb-4x32.safetensors"
Case = Callable[[Path, Path, Rounds], list[Figure]]
"""Takes the folder of patches, the file of VGG16 and the rounds."""


def cases(params: Params) -> dict[str, Case]:
    """Return all cases by name."""
    laptop = params.train

    def iterations(shape: GeneratorShape, side: int, least: Mapping[Precision, float]) -> Case:
        settings = replace(laptop, crop=side, batch=2)

        def case(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
            setup = training.Setup(crops=Crops(patches, side, 2), vgg=vgg, generator=shape, settings=settings)
            return training.iteration(setup, rounds, least, 2 if side == 192 or shape == large else None)

        return case

    def outside(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
        crops = Crops(patches, laptop.crop, laptop.batch)
        setup = training.Setup(crops=crops, vgg=vgg, generator=params.warmup.generator, settings=laptop)
        return training.outside_the_step(setup, 8 * rounds.least)

    def checkpoints(patches: Path, vgg: Path, rounds: Rounds) -> list[Figure]:
        settings = replace(laptop, crop=192, batch=2)
        setup = training.Setup(crops=Crops(patches, 192, 2), vgg=vgg, generator=large, settings=settings)
        return training.checkpointing(setup, rounds.least)

    def photographs(patches: Path, *_: object) -> list[Figure]:
        crops, figures = Crops(patches, 256, 1), []
        # Of 12 megapixels when they are upscaled, and before.
        for height, width in ((750, 1000), (3000, 4000)):
            for ending in (".jpg", ".png"):
                figures += upscaling.photograph(crops, _LAPTOP_WEIGHTS, height=height, width=width, ending=ending)
        return figures

    small, large = (GeneratorShape(blocks=4, features=32, growth=16), GeneratorShape(blocks=23, features=64, growth=32))
    return {
        "best-buddy": lambda patches, _, rounds: losses.best_buddy(Crops(patches, 192, 8), laptop.best_buddy, rounds),
        "search": lambda patches, *_: losses.search(Crops(patches, 192, 8), laptop.best_buddy),
        "mask": lambda patches, _, rounds: losses.region_mask(Crops(patches, 192, 8), laptop.region, rounds),
        "back-projection": lambda patches, _, rounds: losses.back_projection(Crops(patches, 192, 8), rounds),
        "iteration-4x32-128": iterations(small, 128, {"fp32": 1.4, "bf16": 2.0}),
        "iteration-4x32-192": iterations(small, 192, {"fp32": 1.7, "bf16": 2.5}),
        "iteration-23x64-96": iterations(large, 96, {"fp32": 1.2, "bf16": 2.2}),
        "iteration-23x64-192": iterations(large, 192, {"fp32": 1.2, "bf16": 2.2}),
        "upscale-4x32": lambda patches, _, rounds: upscaling.upscaling(
            Crops(patches, 256, 1), _LAPTOP_WEIGHTS, rounds, least_memory=4
        ),
        "upscale-23x64": lambda patches, _, rounds: upscaling.upscaling(
            Crops(patches, 128, 1), weights_file("realsr-df2k-x4"), rounds, least=2.5
        ),
        "tiles-23x64": lambda patches, _, rounds: upscaling.tiling(
            Crops(patches, 256, 1), weights_file("realsr-df2k-x4"), rounds, side=512, tile=256
        ),
        "photograph-4x32": photographs,
        "paths-4x32": lambda patches, _, rounds: paths.paths(Crops(patches, 256, 1), _LAPTOP_WEIGHTS, rounds),
        "paths-23x64": lambda patches, _, rounds: paths.paths(
            Crops(patches, 128, 1), weights_file("realsr-df2k-x4"), rounds
        ),
        "loop": outside,
        "checkpoint": checkpoints,
        "loading": lambda patches, _, rounds: training.loading(Crops(patches, laptop.crop, laptop.batch), rounds),
        "overhead": lambda *_: pipeline.overhead(),
        "compile": lambda _, __, rounds: pipeline.compiling(rounds),
    }
