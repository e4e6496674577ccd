"""Checkpoints: all that a training needs to resume as if it had never been stopped, written while it continues.

A file consists of a line with the SHA-256 of the rest, a line of JSON (format number, iteration, whether the run
stopped itself there, and the run's identity as "job"), and the state as written by `torch.save`: networks, average,
optimisers, iteration, history, the best average, sums of values to be logged, and every random generator of every
process. Loaders have no state: the next sample is a function of seed and iteration, see `sampling`.
"""

import hashlib
import io
import json
import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor, distributed

from bebygan.differences import differences
from bebygan.distributed import processes, rank
from bebygan.errors import BebyganError, ConfigError, DataError, StorageError
from bebygan.files import storage_errors, whole_file
from bebygan.networks.weights import refuse_not_finite
from bebygan.settings import HIGHER_IS_BETTER, Retention

_log = logging.getLogger(__name__)
FORMAT = 2
_DIGEST_LENGTH = 64

RunIdentity = Mapping[str, str]
"""What determines the result of a run, by name: parameters, data version, code, start weights."""
Keep = Callable[[Iterable[int]], set[int]]
"""Returns which of the checkpoints of these iterations are kept."""
Saved = Callable[[Path, Keep], None]
"""Called with each written checkpoint, in the writing thread, which waits for it."""


def name_of(iteration: int) -> str:
    """Return the file name of an iteration's checkpoint."""
    return f"iteration-{iteration:08d}.checkpoint"


def iteration_of(name: str) -> int | None:
    """Return the iteration of a checkpoint's file name, or None for other names."""
    number = name.removeprefix("iteration-").removesuffix(".checkpoint")
    return int(number) if number.isdecimal() and name == name_of(int(number)) else None


def checkpoints_in(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of a folder by iteration, oldest first; none if the folder does not exist."""
    found = {iteration_of(path.name): path for path in folder.glob("iteration-*.checkpoint")}
    return {iteration: found[iteration] for iteration in sorted(number for number in found if number is not None)}


def kept(iterations: Iterable[int], keep: Retention, history: Sequence[Mapping[str, float]], now: int) -> set[int]:
    """Return the iterations whose checkpoints are kept.

    Args:
        iterations: that have a checkpoint. Those after `now` are not kept: they were skipped as damaged.
        keep: see `Retention`.
        history: logged values. A checkpoint's is the newest that was logged up to its iteration.
        now: iterations done.
    """
    ordered = sorted(iteration for iteration in iterations if iteration <= now)
    stay = set(ordered[-keep.newest :])
    if keep.every:
        stay |= {iteration for iteration in ordered if iteration % keep.every == 0}
    if keep.best is not None:
        logged = [(entry["iteration"], entry[keep.best]) for entry in history if keep.best in entry]
        sign = 1 if keep.best in HIGHER_IS_BETTER else -1
        values = {
            iteration: [sign * value for at, value in logged if at <= iteration][-1]
            for iteration in ordered
            if logged and logged[0][0] <= iteration
        }
        if values:
            stay.add(max(values, key=lambda iteration: (values[iteration], -iteration)))
    return stay


def identity_in(file: BinaryIO) -> dict[str, str] | None:
    """Return the identity in a checkpoint's header, or None if it has none, without reading the state."""
    return header_in(file)[0]


def header_in(file: BinaryIO) -> tuple[dict[str, str] | None, bool]:
    """Return the identity in a checkpoint's header, see `identity_in`, and whether the run stopped itself there."""
    try:
        file.readline()
        header = json.loads(file.readline())
        return header["job"], bool(header.get("stopped", False))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None, False


class _Hashed:
    """A file for torch.save that computes the digest of what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        self.digest.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(path: Path, header: Mapping[str, object], state: Mapping[str, Any]) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(b"0" * _DIGEST_LENGTH + b"\n")
        hashed = _Hashed(file)
        hashed.write(json.dumps(header, sort_keys=True).encode() + b"\n")
        try:
            torch.save(state, cast(BinaryIO, hashed))
        except RuntimeError:
            # torch's error about a file that cannot be written hides the reason of the operating system.
            if hashed.failure is None:
                raise
            raise hashed.failure from None
        file.seek(0)
        file.write(hashed.digest.hexdigest().encode())


def _read(path: Path) -> tuple[dict[str, Any], io.BytesIO] | None:
    """Return header and state of an undamaged checkpoint, the state still in bytes; None of a damaged one."""
    try:
        with path.open("rb") as file:
            digest = file.readline()
            line = file.readline()
            body = file.read()
        if hashlib.sha256(line + body).hexdigest().encode() + b"\n" != digest:
            return None
    except OSError as error:
        _log.warning("warning: %s cannot be read: %s", path, error.strerror)
        return None
    return json.loads(line), io.BytesIO(body)


def _random_states() -> dict[str, Any]:
    numbers = np.random.get_state(legacy=False)
    keys = numbers["state"]["key"].astype(np.int64)
    states = {
        "python": random.getstate(),
        "numpy": {**numbers, "state": {"key": torch.from_numpy(keys), "pos": numbers["state"]["pos"]}},
        "torch": torch.get_rng_state(),
    }
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random_states(states: Mapping[str, Any]) -> None:
    random.setstate(states["python"])
    inner = states["numpy"]["state"]
    np.random.set_state({**states["numpy"], "state": {**inner, "key": inner["key"].numpy().astype(np.uint32)}})
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _on_host(value: Any, before: Any) -> Any:
    """Copy a tree of containers and tensors to the host.

    The tensors of `before`, an earlier copy, are reused if they fit: allocating memory costs more than copying, and
    allocating page-locked memory, which fast copies from a GPU need, costs far more.
    """
    if isinstance(value, Tensor):
        fits = isinstance(before, Tensor) and before.shape == value.shape and before.stride() == value.stride()
        if not fits or before.dtype != value.dtype:
            before = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
        return before.copy_(value.detach(), non_blocking=True)
    if isinstance(value, Mapping):
        earlier = before if isinstance(before, Mapping) else {}
        return {name: _on_host(item, earlier.get(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        rest = before if isinstance(before, list | tuple) else ()
        padded = [*rest, *[None] * (len(value) - len(rest))]
        return type(value)(_on_host(item, old) for item, old in zip(value, padded, strict=False))
    return value


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in a tree of containers with their paths, such as `generator.conv_first.weight`."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


class Checkpoints:
    """The checkpoints of one run in one folder, at most one being written at a time.

    All processes call `load` and `save`; only the first reads and writes. As a context manager it waits at the end for
    the checkpoint that is being written.

    A checkpoint that cannot be written causes a warning and does not stop training.

    Args:
        folder: of this run alone; created if missing.
        identity: checkpoints of a run with another identity are rejected.
        keep: which checkpoints stay.
        saved: see `Saved`.
    """

    def __init__(self, folder: Path, identity: RunIdentity, keep: Retention, saved: Saved | None = None) -> None:
        self.folder = folder
        self._identity = dict(identity)
        self._keep = keep
        self._saved = saved
        self._snapshot: dict[str, Any] = {}
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[StorageError | None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._writer.shutdown()
        if self._writing is not None and error is None:
            self._writing.result()

    def load(self) -> dict[str, Any] | None:
        """Return the state of the newest undamaged checkpoint, or None when there is none.

        Restores every random generator of this process, if the checkpoint has them for as many processes.

        Raises:
            ConfigError: the checkpoint belongs to another run; the message says what differs.
            DataError: every checkpoint is damaged, or the newest undamaged one has another format.
            WeightsError: a tensor of the newest undamaged one is not finite.
            StorageError: nothing can be written to the folder.
        """
        found: list[dict[str, Any] | BebyganError | None] = [None]
        if rank() == 0:
            try:
                found = [self._newest()]
            except BebyganError as error:
                found = [error]
        if processes() > 1:
            # The error is sent too: otherwise the other processes would wait for the first one.
            distributed.broadcast_object_list(found)
        [state] = found
        if isinstance(state, BebyganError):
            raise state
        if state is not None and rank() < len(generators := state.pop("random")):
            _set_random_states(generators[rank()])
        return state

    def _newest(self) -> dict[str, Any] | None:
        with storage_errors(self.folder), whole_file(self.folder / ".writable") as probe:
            probe.write_bytes(b"0")
        (self.folder / ".writable").unlink(missing_ok=True)
        paths = checkpoints_in(self.folder)
        for path in reversed(paths.values()):
            if (content := _read(path)) is None:
                _log.warning(
                    "warning: %s is damaged: its checksum does not match; falling back to the one before", path
                )
                continue
            header, body = content
            if header["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {header['format']}, this version of bebygan reads {FORMAT}: continue with the "
                    "version that wrote it, or choose another folder"
                )
            if changed := differences(header["job"], self._identity):
                raise ConfigError(f"{path} belongs to another run: {', '.join(changed)}; choose another folder")
            state: dict[str, Any] = torch.load(body, map_location="cpu", weights_only=True)
            refuse_not_finite(dict(_tensors(state)), f"{path}, remove it to continue from the one before")
            return state
        if paths:
            raise DataError(f"every checkpoint in {self.folder} is damaged: remove them to start from the beginning")
        return None

    def save(self, iteration: int, state: Mapping[str, Any], *, stopped: bool = False) -> None:
        """Copy the state to the host and return; a thread writes it and removes checkpoints that need not stay.

        Waits first until the previous checkpoint is written.

        Args:
            iteration: iterations done.
            state: containers, numbers, text and tensors, as `TrainState.state_dict` returns; "history" must be in it.
            stopped: whether the run ends here, before its last iteration.
        """
        generators = [_random_states()]
        if processes() > 1:
            generators = [{}] * processes()
            distributed.all_gather_object(generators, _random_states())
        if rank():
            return
        if self._writing is not None:
            self._writing.result()
        self._snapshot = _on_host({**state, "random": generators}, self._snapshot)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self._writing = self._writer.submit(self._write, iteration, stopped)

    def wait(self) -> None:
        """Wait until the newest checkpoint is written.

        Raises:
            StorageError: it could not be.
        """
        if self._writing is not None and (failure := self._writing.result()) is not None:
            raise failure

    def _write(self, iteration: int, stopped: bool) -> StorageError | None:
        history = self._snapshot["history"]
        path = self.folder / name_of(iteration)

        def keep(iterations: Iterable[int]) -> set[int]:
            return kept(iterations, self._keep, history, iteration)

        try:
            with storage_errors(self.folder):
                header = {"format": FORMAT, "iteration": iteration, "job": self._identity, "stopped": stopped}
                _write(path, header, self._snapshot)
                there = checkpoints_in(self.folder)
                for number in there.keys() - keep(there):
                    there[number].unlink(missing_ok=True)
        except (StorageError, OSError) as error:
            failure = error if isinstance(error, StorageError) else StorageError(f"cannot write {path}: {error}")
            _log.warning("warning: no checkpoint of iteration %d: %s. Training continues", iteration, failure)
            return failure
        if self._saved is not None:
            self._saved(path, keep)
        return None
