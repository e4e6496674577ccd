"""Where a job's checkpoints are kept: a folder that outlives the machine, or a prefix of a bucket beside a local one.

Each job has its own place, named by the hash of its parameters, data, start weights and code: a new pod, or a new run
of the same job, goes on there. Copies to a bucket are made by a thread of their own; a bucket that is away holds
nothing up, and gets what it missed when it is back.
"""

import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bebygan.errors import Preempted, ServiceError
from bebygan.training.checkpoint import Job, Keep, Saved, checkpoints_in, differences, iteration_of, job_in, name_of
from components.common.storage import Prefix, is_bucket, open_prefix

_log = logging.getLogger(__name__)
_FETCHED = 2
"""The newest may be damaged."""
_SECONDS_BETWEEN_TRIES = 30.0
_SECONDS_AT_THE_END = 120.0
_SECONDS_WHEN_STOPPED = 10.0
"""Of the 25 to 30 seconds that are given to a process that is asked to stop."""


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
    sizes = {iteration_of(file.name): file.size for file in prefix.files()}
    return {number: size for number, size in sizes.items() if number is not None}


def _fetch(prefix: Prefix, folder: Path) -> None:
    """Fetch the newest checkpoints, unless the folder has newer ones."""
    here = checkpoints_in(folder)
    there = _stored(prefix)
    wanted = [number for number in sorted(there, reverse=True)[:_FETCHED] if number >= max(here, default=0)]
    for number in wanted:
        path = folder / name_of(number)
        if not path.is_file() or path.stat().st_size != there[number]:
            prefix.download(path.name, path)


def _tell_of_others(root: Path, job: Job) -> None:
    """Say what is different where checkpoints of the same step lie, but none of this job."""
    places = [path for path in root.glob(f"{job['step']}-*") if path.is_dir()]
    for place in sorted(places, key=lambda path: path.stat().st_mtime, reverse=True):
        found = checkpoints_in(place)
        if found and (other := job_in(found[max(found)])) is not None:
            _log.info("%s begins anew: of the job in %s, %s", job["step"], place, differences(other, job))
            return


@contextmanager
def open_checkpoints(root: str, job: Job, *, first: bool) -> Iterator[tuple[Path, Saved | None]]:
    """Yield the folder of a job's checkpoints, and what is to be told of each one that is written.

    Args:
        root: folder or s3://bucket/prefix for the checkpoints of all jobs; or the folder of one job.
        job: what the run is made of.
        first: whether this process is the one that reads and writes checkpoints.

    Raises:
        ServiceError: at the start, when the bucket is away, unknown or refuses. Later that is only said.
    """
    if not is_bucket(root):
        chosen = Path(root)
        # Whoever names the place of one job means that one: where it is another's, `Checkpoints` says what differs.
        folder = chosen if checkpoints_in(chosen) else chosen / place_of(job)
        if first and not checkpoints_in(folder):
            _tell_of_others(chosen, job)
        yield folder, None
        return
    folder = Path(tempfile.gettempdir()) / f"bebygan-{os.getuid()}" / "checkpoints" / place_of(job)
    if not first:
        yield folder, None
        return
    prefix = open_prefix(f"{root.rstrip('/')}/{place_of(job)}", patient=False)
    prefix.write("writable", b"")
    prefix.remove("writable")
    _fetch(prefix, folder)
    copies = _Copies(prefix)
    seconds = _SECONDS_AT_THE_END
    try:
        yield folder, copies
    except (Preempted, KeyboardInterrupt):
        seconds = _SECONDS_WHEN_STOPPED
        raise
    finally:
        copies.close(seconds)
