"""`bebygan upscale`: enlarge photographs with a registered model, a file of weights, or pretrained weights."""

import argparse
import glob
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

from PIL import Image as PillowImage

from bebygan.errors import ConfigError, DataError
from bebygan.imaging.picture_files import WRITTEN
from components.progress import printable, say
from components.stores.source import is_not_picture
from pipelines.named_model import named_model

_ENDINGS = ", ".join(WRITTEN)


def _found(folder: Path, output: Path) -> Iterator[Path]:
    """Yield the files in a folder that may be photographs, except those in the output folder, and links out of it."""
    for path in sorted(folder.rglob("*")):
        end = path.resolve()
        link = path.is_symlink() and not end.is_relative_to(folder.resolve())
        inside = end.is_relative_to(output.resolve())
        if (path.is_file() or link) and not inside and not is_not_picture(path.relative_to(folder).as_posix()):
            yield path


def _named(place: Path) -> list[Path]:
    """Return what an input names: itself, or what matches if it is a pattern and no such file exists.

    Raises:
        ConfigError: nothing.
    """
    matching = [Path(each) for each in sorted(glob.glob(str(place), recursive=True))]
    if place.exists() or not matching:
        matching = [place]
    for each in matching:
        if not each.exists():
            raise ConfigError(f"{each} does not exist: name files, folders or patterns of photographs")
        # A pipe or a device may never end.
        if not each.is_file() and not each.is_dir():
            raise ConfigError(f"{each} is neither a file nor a folder: name files, folders or patterns of photographs")
    return matching


def _is_file_name(output: Path) -> bool:
    """Return whether an output that need not exist has an ending of pictures."""
    return output.suffix.lower() in {*WRITTEN, *PillowImage.registered_extensions()} and not output.is_dir()


def plan(inputs: Iterable[Path], output: Path) -> dict[Path, Path]:
    """Return the file to write for each file to read, ordered as they are read.

    A folder is mirrored below `output`. Names keep their endings if the format can be written, and get .png otherwise.

    Args:
        inputs: files, folders and patterns.
        output: a folder; for a single file also a file, which its ending shows.

    Raises:
        ConfigError: an input is missing or contains nothing, two inputs have the same output, a photograph would be
            replaced by its own enlargement, or the output is a file of a format that is not written, or for several
            photographs.
    """
    inputs = [each for place in inputs for each in _named(place)]
    if _is_file_name(output):
        if output.suffix.lower() not in WRITTEN:
            raise ConfigError(f"{output.suffix} is not written: name a folder, or a file that ends in {_ENDINGS}")
        if len(inputs) > 1 or inputs[0].is_dir():
            raise ConfigError(f"{output} is the name of one file, and there are several photographs: name a folder")
        targets = [(inputs[0], output)]
    else:
        targets = []
        for place in inputs:
            if output.resolve() == place.resolve() and place.is_dir():
                raise ConfigError(f"{output} is the folder of the photographs: choose another --output")
            files = _found(place, output) if place.is_dir() else [place]
            targets += [(path, output / path.relative_to(place if place.is_dir() else place.parent)) for path in files]
    sources: dict[Path, Path] = {}
    for source, named in targets:
        target = named if named.suffix.lower() in WRITTEN else named.with_name(f"{named.name}.png")
        if target.resolve() == source.resolve():
            raise ConfigError(f"{source} would be replaced by its own enlargement: choose another --output")
        if target in sources:
            raise ConfigError(f"{sources[target]} and {source} would both be written to {target}: upscale them apart")
        sources[target] = source
    if not sources:
        raise ConfigError(f"there are no photographs in {', '.join(map(str, inputs))}")
    return {source: target for target, source in sources.items()}


def upscale(options: argparse.Namespace) -> None:
    """Upscale the named photographs, and print how many were written, kept and refused.

    Raises:
        ConfigError: see `plan`.
        WeightsError, ServiceError: the model is missing, damaged or unreachable.
        DataError: at least one photograph was refused; all others are written.
        StorageError: the output cannot be written; the same command continues there.
    """
    targets = plan(options.inputs, options.output)
    roots = [each for place in options.inputs for each in _named(place)]
    for root in roots:
        if root.is_dir() and options.output.resolve().is_relative_to(root.resolve()):
            say(f"{options.output} is inside of {root}: what is there already is not upscaled")
    waiting = {source: target for source, target in targets.items() if options.overwrite or not target.exists()}
    kept, refused = len(targets) - len(waiting), 0
    if waiting:
        with named_model(options) as found:
            # Torch takes a second to import.
            upscaling = import_module("pipelines.upscaling")
            generator = upscaling.load_named(model := found())
        refused = upscaling.upscale_files(generator, model.what, waiting, roots, options)
    print(printable(f"{len(waiting) - refused} of {len(targets)} photographs written to {options.output}"))
    if kept:
        print(f"{kept} were there already: --overwrite writes them again")
    if refused:
        raise DataError(f"{refused} of {len(targets)} photographs were refused; the lines above say why")
