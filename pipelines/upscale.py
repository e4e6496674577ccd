"""`bebygan upscale`: enlarge photographs with a registered model, a file of weights, or pretrained weights."""

import argparse
import glob
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path

import psutil
from PIL import Image as PillowImage

import bebygan
from bebygan.errors import ConfigError, DataError, WeightsError
from bebygan.imaging.picture_files import UPSCALED, WRITTEN, Picture, held_bytes, read_picture, write_upscaled
from bebygan.imaging.tiling import SMALLEST_TILE, band_bytes, out_of_memory, upscale_bands
from bebygan.networks.generator import Generator
from bebygan.networks.interpolation import interpolated
from bebygan.networks.naming import load_generator
from bebygan.precision import training_device
from bebygan.pretrained import GENERATORS
from bebygan.settings import Precision
from components.progress import printable, progress_bar, say
from components.stores.source import is_not_picture
from components.tracking.address import VARIABLE, use_registry
from pipelines.processes import upscale_in_processes

_ENDINGS = ", ".join(WRITTEN)


def _at_fidelity(generator: Generator, start: Path, share: float, fidelity: float) -> None:
    before = load_generator(start)
    if before.shape != generator.shape:
        raise WeightsError(f"{start} holds {before.shape}, the model is {generator.shape}: leave --fidelity out")
    generator.load_state_dict(interpolated(generator.state_dict(), before.state_dict(), share, fidelity))


def find_generator(model: str, name: str, workspace: Path, fidelity: float | None = None) -> tuple[Generator, str]:
    """Return a generator and what it is, in words.

    Args:
        model: see the option --model.
        name: registered model.
        workspace: of the runs.
        fidelity: see the option --fidelity.

    Raises:
        ConfigError: a fidelity is asked of a file of weights.
        WeightsError: there is no such model, or its weights are damaged.
        ServiceError: the registry is unreachable or refuses.
    """
    if model in GENERATORS or Path(model).is_file():
        if fidelity is not None:
            raise ConfigError(f"--fidelity needs a registered version; of {model} it is not known what it started from")
        return bebygan.load(model), model
    if Path(model).suffix in (".safetensors", ".pth"):
        raise WeightsError(f"the file {model} does not exist")
    # A database is not created to find nothing in it.
    if not os.environ.get(VARIABLE) and not (workspace / "mlflow.db").is_file():
        raise WeightsError(
            f"{workspace} has no models yet: train one with `bebygan run`, or name weights, such as {GENERATORS[0]}"
        )
    use_registry(workspace)
    # MLflow takes seconds to import.
    registry = import_module("components.tracking.registry")
    version = registry.find_version(model, name)
    share = float(version.tags.get("train.start_share", 0))
    with tempfile.TemporaryDirectory(prefix="model-") as scratch, tempfile.TemporaryDirectory(prefix="start-") as other:
        generator = bebygan.load(registry.download_generator(version, Path(scratch)))
        if fidelity is None or fidelity == share:
            return generator, version.uri
        _at_fidelity(generator, registry.download_start(version, Path(other)), share, fidelity)
    return generator, f"{version.uri} at fidelity {fidelity:g}"


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


def _refuse_link(source: Path, roots: Sequence[Path]) -> None:
    """Refuse what was found in a folder, but is a link to something outside of all inputs.

    Raises:
        DataError: it is.
    """
    if source not in roots and not any(source.resolve().is_relative_to(root.resolve()) for root in roots):
        raise DataError(f"{source} is a link out of the folder: name what it links to itself")


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
        generator, what = find_generator(
            options.model, options.params.evaluate.model_name, options.workspace, options.fidelity
        )
        generator.to(training_device())
        processes = min(options.processes, len(waiting))
        say(f"upscaling {len(waiting)} photographs with {what}{f', {processes} at a time' * (processes > 1)}")
        pixels = {source: _pixels(source) for source in waiting}
        work = partial(
            _upscale,
            precision=options.precision,
            tile=options.tile,
            max_memory=options.max_memory // processes if options.max_memory else None,
            roots=roots,
        )
        with progress_bar("upscale", "pixels", sum(pixels.values())) as advance:
            if processes > 1:
                done = upscale_in_processes(generator, work, waiting, processes)
            else:
                done = _in_turn(generator, partial(work, advance=advance), waiting)
            for source, error in done:
                if error:
                    refused += 1
                    say(f"refused: {error}")
                elif processes > 1:
                    advance(pixels[source])
    print(printable(f"{len(waiting) - refused} of {len(targets)} photographs written to {options.output}"))
    if kept:
        print(f"{kept} were there already: --overwrite writes them again")
    if refused:
        raise DataError(f"{refused} of {len(targets)} photographs were refused; the lines above say why")
