"""Finding the model that a user names, without torch, which is imported in the meantime."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

from bebygan.errors import BebyganError, ConfigError, ServiceError, WeightsError
from bebygan.pretrained import GENERATORS
from components.tracking.address import VARIABLE, use_registry


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A generator in a file."""

    weights: str | Path
    """Its file, or the name of pretrained weights."""
    what: str
    """The model, in words."""
    start: Path | None = None
    """Weights to mix in, which its training started from, if the fidelity is not that of the file."""
    share: float = 0
    """Of those weights in the file, 0 to 1."""
    fidelity: float = 0
    """Share of them that is asked for, 0 to 1."""


def _registered(model: str, name: str, workspace: Path, fidelity: float | None, folder: Path) -> NamedModel:
    use_registry(workspace)
    # MLflow takes seconds to import.
    registry = import_module("components.tracking.registry")
    version = registry.find_version(model, name)
    weights, share = registry.download_generator(version, folder), float(version.tags.get("train.start_share", 0))
    if fidelity is None or fidelity == share:
        return NamedModel(weights=weights, what=version.uri)
    start = folder / "start"
    start.mkdir()
    return NamedModel(
        weights=weights,
        what=f"{version.uri} at fidelity {fidelity:g}",
        start=registry.download_start(version, start),
        share=share,
        fidelity=fidelity,
    )


def _answer(connection: Connection, work: Callable[[], NamedModel]) -> None:
    # Ctrl-C reaches all processes; the first one ends the other.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        connection.send(work())
    except BebyganError as error:
        connection.send(error)


@contextmanager
def in_other_process(work: Callable[[], NamedModel]) -> Iterator[Callable[[], NamedModel]]:
    """Start work in another process, and yield what waits for its result, or raises the error that it raised.

    Raises:
        ServiceError: the process ended without an answer.
    """
    context = get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, work), daemon=True)
    process.start()
    # The other process has it now; an end without an answer is seen only if no one else has.
    sending.close()

    def found() -> NamedModel:
        try:
            answer: NamedModel | BebyganError = receiving.recv()
        except EOFError as error:
            raise ServiceError("the process that fetches the model was ended: run the command again") from error
        if isinstance(answer, BebyganError):
            raise answer
        return answer

    try:
        yield found
    finally:
        # By itself it takes most of a second to end.
        process.kill()
        process.join()


@contextmanager
def named_model(options: argparse.Namespace) -> Iterator[Callable[[], NamedModel]]:
    """Begin to find a model, and yield what waits for it; its files are deleted at the end.

    A registered one is found by another process: it imports MLflow while this one imports torch.

    Args:
        options: of the command: `model`, `workspace`, `fidelity` and `params`.

    Raises:
        ConfigError: a fidelity is asked of a file of weights.
        WeightsError: there is no such model, or its weights are damaged.
        ServiceError: the registry is unreachable or refuses.
    """
    model, workspace, fidelity = options.model, options.workspace, options.fidelity
    if model in GENERATORS or Path(model).is_file():
        if fidelity is not None:
            raise ConfigError(f"--fidelity needs a registered version; of {model} it is not known what it started from")
        yield lambda: NamedModel(weights=model, what=model)
        return
    if Path(model).suffix in (".safetensors", ".pth"):
        raise WeightsError(f"the file {model} does not exist")
    # A database is not created to find nothing in it.
    if not os.environ.get(VARIABLE) and not (workspace / "mlflow.db").is_file():
        raise WeightsError(
            f"{workspace} has no models yet: train one with `bebygan run`, or name weights, such as {GENERATORS[0]}"
        )
    with TemporaryDirectory(prefix="model-") as folder:
        work = partial(_registered, model, options.params.evaluate.model_name, workspace, fidelity, Path(folder))
        if "mlflow" in sys.modules:
            yield work
        else:
            with in_other_process(work) as found:
                yield found
