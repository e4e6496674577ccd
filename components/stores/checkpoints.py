"""Where a job's checkpoints are kept: a folder that outlives the machine, or a prefix of a bucket beside a local one.

Each job has its own place, named by the hash of its parameters, data, start weights and code: a new pod, or a new run
of the same job, goes on there. Copies to a bucket are made by a thread of their own; a bucket that is away holds
nothing up, and gets what it missed when it is back. Places of jobs that ended long ago are removed, lest retraining
fills the volume.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bebygan.differences import differences
from bebygan.errors import DataError, ServiceError
from bebygan.training.checkpoint import Job, Keep, Saved, checkpoints_in, iteration_of, job_in, name_of
from bebygan.training.loop import FAULTS
from components.stores.s3 import Prefix, StoredFile, is_bucket, open_prefix

_log = logging.getLogger(__name__)
_FETCHED = 2
"""The newest may be damaged."""
_SECONDS_BETWEEN_TRIES = 30.0
_SECONDS_AT_THE_END = 120.0
_SECONDS_WHEN_STOPPED = 10.0
"""Of the 25 to 30 seconds that are given to a process that is asked to stop."""
_SECONDS_AFTER_THE_END = 14 * 24 * 3600.0
"""For which a job that ended can be asked for again, by a run whose later steps failed, without being trained again."""
_HEADER_BYTES = 2**16
"""More than the first lines of a checkpoint take."""


def place_of(job: Job) -> str:
    """Return the name of a job's place: the same for the same job, wherever and whenever it runs."""
    digest = hashlib.sha256(json.dumps(dict(job), sort_keys=True).encode()).hexdigest()
    return f"{job['step']}-{digest[:16]}"


class _Copies:
    """Keeps a bucket's prefix as the local folder is: told of each checkpoint, it copies when it comes to it."""

    def __init__(self, prefix: Prefix) -> None:
        self._prefix = prefix
        self._changed = threading.Condition()
        self._newest: tuple[Path, Keep] | None = None
        self._due = False
        """Whether the newest is still to be copied."""
        self._failed = False
        """Whether the last try failed; it is repeated after a while."""
        self._closing = False
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="checkpoint copies", daemon=True)
        self._thread.start()

    def __call__(self, path: Path, keep: Keep) -> None:
        with self._changed:
            self._newest, self._due = (path, keep), True
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Copy what is still to be copied, for so long at most."""
        with self._changed:
            self._due = self._due or self._failed
            self._closing = True
            self._changed.notify()
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("warning: %s did not take the last checkpoint in %.0f s", self._prefix.address, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._due or self._closing, _SECONDS_BETWEEN_TRIES if self._failed else None
                )
                if self._newest is None or (self._closing and not self._due):
                    return
                self._due = self._failed = False
                path, keep = self._newest
            failed = not self._copied(path, keep)
            with self._changed:
                self._failed = failed

    def _copied(self, path: Path, keep: Keep) -> bool:
        """Copy, and warn of the first of several tries that fail; returns whether it went well."""
        try:
            self._copy(path, keep)
        except FileNotFoundError:
            # Removed before its turn came: there are newer ones, of which this is told.
            return True
        except (ServiceError, OSError) as error:
            if not self._warned:
                _log.warning(
                    "warning: %s is kept here alone: %s. Training goes on; copying is tried again", path, error
                )
            self._warned = True
            return False
        if self._warned:
            _log.info("%s has all checkpoints again", self._prefix.address)
        self._warned = False
        return True

    def _copy(self, path: Path, keep: Keep) -> None:
        """Copy a checkpoint, and others that the bucket missed; remove those that need not stay."""
        here = checkpoints_in(path.parent)
        there = _stored(self._prefix)
        stay = keep(here.keys() | there.keys())
        missing = {number for number in stay & here.keys() - there.keys() if here[number] != path}
        for each in [path, *(here[number] for number in sorted(missing, reverse=True))]:
            with each.open("rb") as file:
                self._prefix.upload(each.name, file)
        for number in there.keys() - stay:
            self._prefix.remove(name_of(number))


def _stored(prefix: Prefix) -> dict[int, int]:
    """Return the sizes of the checkpoints under a prefix by iteration."""
    return {number: file.size for number, file in _checkpoints_among(prefix.files()).items()}


def _checkpoints_among(files: Iterable[StoredFile]) -> dict[int, StoredFile]:
    found = {iteration_of(file.name.rpartition("/")[2]): file for file in files}
    return {number: file for number, file in found.items() if number is not None}


def _fetch(prefix: Prefix, folder: Path) -> None:
    """Fetch the newest checkpoints, unless the folder has newer ones."""
    here = checkpoints_in(folder)
    there = _stored(prefix)
    wanted = [number for number in sorted(there, reverse=True)[:_FETCHED] if number >= max(here, default=0)]
    for number in wanted:
        path = folder / name_of(number)
        if not path.is_file() or path.stat().st_size != there[number]:
            prefix.download(path.name, path)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where another job's checkpoints lie."""

    address: str
    newest: int
    """Iterations done at the newest of them."""
    written: float
    """When that was, in seconds since the epoch."""
    header: Callable[[], bytes]
    """Reads the first bytes of the newest."""
    remove: Callable[[], None]

    def job(self) -> Job | None:
        """Return what was trained there, or None where that cannot be read."""
        try:
            return job_in(io.BytesIO(self.header()))
        except (ServiceError, OSError) as error:
            _log.warning("warning: cannot see what was trained in %s: %s", self.address, error)
            return None

    def has_ended(self) -> bool:
        """Say whether the job was trained to its end, and asked for no checkpoint for other purposes than resuming."""
        job = self.job() or {}
        wanted = {"params.iterations": str(self.newest), "params.keep.every": "0", "params.keep.best": "None"}
        return all(job.get(name) == value for name, value in wanted.items())


def _read_start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEADER_BYTES)


def _remove_folder(folder: Path) -> None:
    # The newest last: without it the job would seem to be one that never ended.
    for path in checkpoints_in(folder).values():
        path.unlink(missing_ok=True)
    shutil.rmtree(folder)


def _remove_stored(root: Prefix, files: Iterable[StoredFile]) -> None:
    for file in sorted(files, key=lambda file: file.name):
        root.remove(file.name)


def _places_in_folder(root: Path, job: Job) -> Iterator[_Place]:
    """Yield the places of other jobs of the same step."""
    for folder in root.glob(f"{job['step']}-*"):
        if folder.name == place_of(job) or not (found := checkpoints_in(folder)):
            continue
        try:
            written = folder.stat().st_mtime
        except FileNotFoundError:
            # Another training has just removed it.
            continue
        newest = max(found)
        yield _Place(str(folder), newest, written, partial(_read_start, found[newest]), partial(_remove_folder, folder))


def _places_in_bucket(root: Prefix, files: Iterable[StoredFile], job: Job) -> Iterator[_Place]:
    """Yield the places of other jobs of the same step; `files` are all that lie under `root`."""
    by_place: dict[str, list[StoredFile]] = {}
    for file in files:
        by_place.setdefault(file.name.partition("/")[0], []).append(file)
    for name, inside in by_place.items():
        found = _checkpoints_among(inside)
        if found and name.startswith(f"{job['step']}-") and name != place_of(job):
            newest = max(found)
            header = partial(root.read_start, found[newest].name, _HEADER_BYTES)
            remove = partial(_remove_stored, root, inside)
            yield _Place(f"{root.address}/{name}", newest, found[newest].written, header, remove)


def _look_around(others: Iterable[_Place], job: Job, *, anew: bool) -> None:
    """Say what is different from the job that was trained last, where one begins anew; remove what ended long ago."""
    others = sorted(others, key=lambda place: place.written, reverse=True)
    for place in others if anew else ():
        if (last := place.job()) is not None:
            changed = ", ".join(differences(last, job))
            _log.info("%s begins anew: of the job in %s, %s", job["step"], place.address, changed)
            break
    for place in others:
        if time.time() - place.written > _SECONDS_AFTER_THE_END and place.has_ended():
            try:
                place.remove()
            except (ServiceError, OSError) as error:
                _log.warning("warning: cannot remove %s, whose training ended long ago: %s", place.address, error)
            else:
                _log.info("%s is removed: its training ended long ago", place.address)


@contextmanager
def _faults_kept(prefix: Callable[[], Prefix], folder: Path) -> Iterator[None]:
    """Copy what was at fault when training diverged to a bucket: the folder may be gone with this pod."""
    try:
        yield
    except DataError:
        try:
            for path in folder.glob(FAULTS):
                with path.open("rb") as file:
                    prefix().upload(path.name, file)
                _log.info("%s is also in %s", path, prefix().address)
        except (ServiceError, OSError) as error:
            _log.warning("warning: what was at fault is kept here alone, in %s: %s", folder, error)
        raise


def _prefix_of(chosen: Prefix, job: Job) -> Prefix:
    """Return the prefix of a job's checkpoints, and see after those of others."""
    files = chosen.files()
    if any(iteration_of(file.name) is not None for file in files):
        return chosen
    prefix = chosen.below(place_of(job))
    ours = [file for file in files if file.name.startswith(f"{place_of(job)}/")]
    _look_around(_places_in_bucket(chosen, files, job), job, anew=not _checkpoints_among(ours))
    return prefix


@contextmanager
def open_checkpoints(root: str, job: Job, *, first: bool) -> Iterator[tuple[Path, Saved | None]]:
    """Yield the folder of a job's checkpoints, and what is to be told of each one that is written.

    Args:
        root: folder or s3://bucket/prefix for the checkpoints of all jobs; or that of one job.
        job: what the run is made of.
        first: whether this process is the one that reads and writes checkpoints.

    Raises:
        ServiceError: at the start, when the bucket is away, unknown or refuses. Later that is only said.
    """
    if not is_bucket(root):
        chosen = Path(root)
        # Whoever names the place of one job means that one: where it is another's, `Checkpoints` says what differs.
        folder = chosen if checkpoints_in(chosen) else chosen / place_of(job)
        if first and folder != chosen:
            _look_around(_places_in_folder(chosen, job), job, anew=not checkpoints_in(folder))
        yield folder, None
        return
    local = Path(tempfile.gettempdir()) / f"bebygan-{os.getuid()}" / "checkpoints"
    if not first:
        folder = local / place_of(job)
        with _faults_kept(lambda: open_prefix(root, patient=False).below(place_of(job)), folder):
            yield folder, None
        return
    prefix = _prefix_of(open_prefix(root, patient=False), job)
    prefix.write("writable", b"")
    prefix.remove("writable")
    folder = local / prefix.address.rpartition("/")[2]
    _look_around(_places_in_folder(local, job), job, anew=False)
    _fetch(prefix, folder)
    copies = _Copies(prefix)
    seconds = _SECONDS_WHEN_STOPPED
    try:
        with _faults_kept(lambda: prefix, folder):
            yield folder, copies
        seconds = _SECONDS_AT_THE_END
    finally:
        copies.close(seconds)
