"""Upscaling photographs from files to files, one after the other or in several processes."""

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import psutil
from PIL import Image as PillowImage

import bebygan
from bebygan.errors import DataError, WeightsError
from bebygan.imaging.picture_files import UPSCALED, Picture, held_bytes, read_picture, write_upscaled
from bebygan.imaging.tiling import SMALLEST_TILE, band_bytes, out_of_memory, upscale_bands
from bebygan.networks.generator import Generator
from bebygan.networks.interpolation import interpolated
from bebygan.networks.naming import load_generator
from bebygan.precision import training_device
from bebygan.settings import Precision
from components.progress import progress_bar, say
from pipelines.named_model import NamedModel
from pipelines.processes import upscale_in_processes


def load_named(model: NamedModel) -> Generator:
    """Return a generator at the fidelity that is asked for.

    Raises:
        WeightsError: its weights are damaged, or its training started from a network of another shape.
    """
    generator = bebygan.load(model.weights)
    if model.start:
        before = load_generator(model.start)
        if before.shape != generator.shape:
            raise WeightsError(
                f"{model.start} holds {before.shape}, the model is {generator.shape}: leave --fidelity out"
            )
        mixed = interpolated(generator.state_dict(), before.state_dict(), model.share, model.fidelity)
        generator.load_state_dict(mixed)
    return generator


def _refuse_link(source: Path, roots: Sequence[Path]) -> None:
    """Refuse what was found in a folder, but is a link to something outside of all inputs.

    Raises:
        DataError: it is.
    """
    if source not in roots and not any(source.resolve().is_relative_to(root.resolve()) for root in roots):
        raise DataError(f"{source} is a link out of the folder: name what it links to itself")


def _hide_warnings_of_size() -> None:
    """Hide Pillow's warnings of large images: `_room` refuses what does not fit, and Pillow what is twice as large."""
    warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)


def _pixels(path: Path) -> int:
    """Return the number of pixels that a file declares; 0 if it cannot be read, which is reported later."""
    _hide_warnings_of_size()
    try:
        with PillowImage.open(path, formats=UPSCALED) as image:
            return image.width * image.height
    except Exception:  # noqa: BLE001 - decoders raise exceptions of any type
        return 0


def _room(picture: Picture, limit: int | None, source: Path, target: Path) -> int | None:
    """Return the bytes that tiles may take within --max-memory.

    Raises:
        DataError: the photograph does not fit.
    """
    if limit is None:
        return None
    used = psutil.Process().memory_info().rss + held_bytes(picture, target.suffix.lower())
    needed = used + band_bytes(picture.rgb) * min(SMALLEST_TILE, len(picture.rgb))
    if needed > limit:
        raise DataError(
            f"{source} needs about {needed / 1e9:.1f} GB of memory: raise --max-memory, or cut it into parts"
        )
    return limit - used


def _upscale(
    generator: Generator,
    source: Path,
    target: Path,
    *,
    precision: Precision,
    tile: int | None,
    max_memory: int | None,
    roots: Sequence[Path],
    advance: Callable[[int], object] | None = None,
) -> None:
    _refuse_link(source, roots)
    _hide_warnings_of_size()
    picture = read_picture(source)
    memory = _room(picture, max_memory, source, target)
    bands = upscale_bands(generator, picture.rgb, precision=precision, tile=tile, memory=memory, advance=advance)
    try:
        write_upscaled(picture, bands, target)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise DataError(f"{source} needs more memory than there is: cut it into parts") from error


def _in_turn(
    generator: Generator, work: Callable[[Generator, Path, Path], None], targets: Mapping[Path, Path]
) -> Iterator[tuple[Path, DataError | None]]:
    """Upscale photographs, and yield each with the reason if it was refused."""
    for source, target in targets.items():
        try:
            work(generator, source, target)
            yield source, None
        except DataError as error:
            yield source, error


def upscale_files(
    generator: Generator,
    what: str,
    targets: Mapping[Path, Path],
    roots: Sequence[Path],
    options: argparse.Namespace,
) -> int:
    """Upscale photographs, say which are refused and why, and return how many are.

    Args:
        generator: see `load_named`.
        what: the model, in words.
        targets: the file to write for each file to read.
        roots: files and folders that the user named: links that lead out of them are refused.
        options: of the command.

    Raises:
        StorageError: the output cannot be written.
    """
    generator.to(training_device())
    processes, refused = min(options.processes, len(targets)), 0
    say(f"upscaling {len(targets)} photographs with {what}{f', {processes} at a time' * (processes > 1)}")
    pixels = {source: _pixels(source) for source in targets}
    work = partial(
        _upscale,
        precision=options.precision,
        tile=options.tile,
        max_memory=options.max_memory // processes if options.max_memory else None,
        roots=roots,
    )
    with progress_bar("upscale", "pixels", sum(pixels.values())) as advance:
        if processes > 1:
            done = upscale_in_processes(generator, work, targets, processes)
        else:
            done = _in_turn(generator, partial(work, advance=advance), targets)
        for source, error in done:
            if error:
                refused += 1
                say(f"refused: {error}")
            elif processes > 1:
                advance(pixels[source])
    return refused
