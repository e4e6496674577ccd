"""Where the checkpoints of jobs are stored: a folder that outlives the machine, or a bucket and a local folder.

Each job has its own folder, named by the hash of its parameters, data, start weights and code: a new pod, or a new run
of the same job, resumes there. A thread copies the checkpoints to a bucket. If the bucket is unreachable, training
continues, and the missing checkpoints are copied later. Checkpoints of jobs that ended long ago are deleted, so that
retraining does not fill the volume.
"""

import io
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tenacity import RetryCallState, Retrying

from bebygan.differences import differences
from bebygan.errors import DataError, ServiceError, StorageError
from bebygan.files import json_digest, storage_errors
from bebygan.training.checkpoint import Keep, RunIdentity, Saved, checkpoints_in, header_in, iteration_of, name_of
from bebygan.training.loop import FAULTS
from components.stores import Store, StoredFile, check_writable, open_store
from components.stores.retries import IN_BACKGROUND

_log = logging.getLogger(__name__)
_FETCHED = 2
"""More than one, because the newest may be damaged."""
_SECONDS_AT_THE_END = 120.0
_SECONDS_WHEN_STOPPED = 10.0
"""Of the 25 to 30 seconds that a process gets between the request to stop and the kill."""
_SECONDS_AFTER_THE_END = 14 * 24 * 3600.0
"""How long an ended job is kept, so that a run whose later steps failed does not train it again."""
_HEADER_BYTES = 2**16
"""More than the first two lines of a checkpoint."""


def folder_name(job: RunIdentity) -> str:
    """Return the name of a job's folder: the same for the same job, wherever and whenever it runs."""
    return f"{job['step']}-{json_digest(job)[:16]}"


def _checkpoints(files: Iterable[StoredFile], folder: str = "") -> dict[int, StoredFile]:
    """Return the checkpoints among files of a folder by iteration."""
    found = {iteration_of(file.name.removeprefix(folder)): file for file in files}
    return {number: file for number, file in found.items() if number is not None}


class _Copies:
    """Copies checkpoints to a store in a thread. If the store is unreachable, it retries the newest one later."""

    def __init__(self, store: Store, retries: Retrying = IN_BACKGROUND) -> None:
        self._store = store
        self._newest: tuple[Path, Keep] | None = None
        self._copied: tuple[Path, Keep] | None = None
        self._changed = threading.Event()
        self._closing = False
        self._warned = False
        self._retries = retries.copy(
            sleep=self._pause, stop=lambda _: self._closing, after=self._warn, retry_error_callback=lambda _: False
        )
        self._thread = threading.Thread(target=self._run, name="checkpoint copies", daemon=True)
        self._thread.start()

    def __call__(self, path: Path, keep: Keep) -> None:
        self._newest = (path, keep)
        self._changed.set()

    def close(self, seconds: float) -> None:
        """Copy what has not been copied yet, for at most `seconds`."""
        self._closing = True
        self._changed.set()
        self._thread.join(seconds)
        if self._thread.is_alive():
            _log.warning("warning: %s did not take the last checkpoint within %.0f s", self._store.address, seconds)

    def _pause(self, seconds: float | None = None) -> None:
        """Wait for a newer checkpoint or the end."""
        self._changed.wait(seconds)
        self._changed.clear()

    def _warn(self, state: RetryCallState) -> None:
        if not self._warned and state.outcome and self._newest:
            _log.warning(
                "warning: %s is only on this machine: %s. Training continues; the copy is retried",
                *(self._newest[0], state.outcome.exception()),
            )
        self._warned = True

    def _run(self) -> None:
        done = False
        while not done:
            # Read before copying: a checkpoint written during the copy is copied in the next round.
            done = self._closing
            if self._newest is not self._copied and not self._retries(self._copy_newest):
                return
            if not done:
                self._pause()

    def _copy_newest(self) -> bool:
        newest = self._newest
        # Training may delete it before it is copied. Then there is a newer one.
        with suppress(FileNotFoundError):
            if newest:
                self._copy(*newest)
        if self._warned:
            _log.info("%s has all checkpoints again", self._store.address)
            self._warned = False
        self._copied = newest
        return True

    def _copy(self, path: Path, keep: Keep) -> None:
        """Copy a checkpoint and earlier ones that are missing in the store; delete those that `keep` drops."""
        here = checkpoints_in(path.parent)
        there = _checkpoints(self._store.files("iteration-"))
        stay = keep(here.keys() | there.keys())
        missing = {number for number in stay & here.keys() - there.keys() if here[number] != path}
        for each in [path, *(here[number] for number in sorted(missing, reverse=True))]:
            with each.open("rb") as file:
                self._store.write(each.name, file)
        for number in there.keys() - stay:
            self._store.delete(name_of(number))


def _fetch(store: Store, folder: Path) -> None:
    """Download the newest checkpoints, unless the folder has newer ones."""
    here = checkpoints_in(folder)
    there = _checkpoints(store.files("iteration-"))
    for number in sorted(there, reverse=True)[:_FETCHED]:
        path = folder / name_of(number)
        if number >= max(here, default=0) and not (path.is_file() and path.stat().st_size == there[number].size):
            store.download(path.name, path)


@dataclass(frozen=True, slots=True)
class _JobFolder:
    """The folder of another job in a store."""

    root: Store
    name: str
    files: list[StoredFile]
    """Named relative to `root`."""
    iterations: int
    """Of the newest checkpoint."""
    newest: StoredFile

    @property
    def address(self) -> str:
        return f"{self.root.address}/{self.name}"

    def job(self) -> tuple[RunIdentity | None, bool]:
        """Return the job that was trained there, None if it cannot be read, and whether it stopped itself."""
        try:
            return header_in(io.BytesIO(self.root.read(self.newest.name, first=_HEADER_BYTES)))
        except (ServiceError, OSError) as error:
            _log.warning("warning: cannot read which job was trained in %s: %s", self.address, error)
            return None, False

    def delete_if_ended(self) -> None:
        """Delete the folder if the job was trained to its end and its checkpoints only served to resume it."""
        job, stopped = self.job()
        wanted = {"params.keep.every": "0", "params.keep.best": "None"}
        if not stopped:
            wanted["params.iterations"] = str(self.iterations)
        if job is None or any(job.get(name) != value for name, value in wanted.items()):
            return
        try:
            # The newest last: without it an interrupted deletion would look like a job that has not ended.
            for file in sorted(self.files, key=lambda file: (file == self.newest, file.name)):
                self.root.delete(file.name)
        except (ServiceError, OSError) as error:
            _log.warning("warning: cannot delete %s, whose training ended long ago: %s", self.address, error)
        else:
            _log.info("%s is deleted: its training ended long ago", self.address)


def _other_jobs(root: Store, job: RunIdentity) -> list[_JobFolder]:
    """Return the folders of other jobs of the same step, newest first."""
    by_folder: dict[str, list[StoredFile]] = {}
    for file in root.files(f"{job['step']}-"):
        by_folder.setdefault(file.name.partition("/")[0], []).append(file)
    found = []
    for name, files in by_folder.items():
        checkpoints = _checkpoints(files, f"{name}/")
        if checkpoints and name != folder_name(job):
            newest = max(checkpoints)
            found.append(_JobFolder(root, name, files, newest, checkpoints[newest]))
    return sorted(found, key=lambda folder: folder.newest.written, reverse=True)


def _clean_up(root: Store, job: RunIdentity, *, resumes: bool) -> None:
    """Delete the folders of jobs that ended long ago; log how a job that does not resume differs from the last one."""
    others = _other_jobs(root, job)
    for folder in () if resumes else others:
        if (last := folder.job()[0]) is not None:
            changed = ", ".join(differences(last, job))
            _log.info(
                "%s starts from the beginning; changed since the job in %s: %s", job["step"], folder.address, changed
            )
            break
    for folder in others:
        if time.time() - folder.newest.written > _SECONDS_AFTER_THE_END:
            folder.delete_if_ended()


def _private_folder() -> Path:
    """Return the folder for checkpoints of this user on this machine, after a check that nobody else may write there.

    Its name is known and the folder around it often open to all: another user may have created it with a forged
    checkpoint, from which training would resume.

    Raises:
        StorageError: it cannot be created, or is a link, another user's, or open to others.
    """
    path = Path(tempfile.gettempdir()) / f"bebygan-{os.getuid()}"
    with storage_errors(path):
        path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise StorageError(
            f"{path} is a link, belongs to another user, or others may write there: checkpoints in it may be forged. "
            "Remove it, or name a folder of your own in TMPDIR"
        )
    # Earlier versions let others read it.
    path.chmod(0o700)
    return path / "checkpoints"


@contextmanager
def _faults_kept(store: Store, folder: Path) -> Iterator[None]:
    """Copy the files that describe why training diverged to a store: the folder may be lost with this pod."""
    try:
        yield
    except DataError:
        try:
            for path in folder.glob(FAULTS):
                with path.open("rb") as file:
                    store.write(path.name, file)
                _log.info("%s is also in %s", path, store.address)
        except (ServiceError, OSError) as error:
            _log.warning("warning: the files on the divergence are only on this machine, in %s: %s", folder, error)
        raise


@contextmanager
def open_checkpoints(address: str, job: RunIdentity, *, first: bool) -> Iterator[tuple[Path, Saved | None]]:
    """Yield the local folder of a job's checkpoints, and what to call with each one that is written.

    Args:
        address: folder or s3://bucket/prefix for the checkpoints of all jobs, or that of one job.
        job: the job to train.
        first: whether this is the process that reads and writes checkpoints.

    Raises:
        ServiceError: at the start, if the bucket is unreachable, unknown or refuses access. Later this is only logged.
        StorageError: the local folder for a bucket's checkpoints cannot be created, or others may write there.
    """
    root = open_store(address, patient=False)
    store = root.below(folder_name(job))
    if root.folder is None and not first:
        # Only the first process contacts the bucket, but any process that diverges copies its files.
        folder = _private_folder() / folder_name(job)
        with _faults_kept(store, folder):
            yield folder, None
        return
    if _checkpoints(root.files("iteration-")):
        # The address is that of one job. If it is another job, `fit` reports the differences.
        store = root
    elif first:
        _clean_up(root, job, resumes=bool(_checkpoints(store.files("iteration-"))))
    if store.folder is not None:
        yield store.folder, None
        return
    check_writable(store)
    local = _private_folder()
    folder = local / store.address.rpartition("/")[2]
    _clean_up(open_store(str(local)), job, resumes=True)
    _fetch(store, folder)
    copies = _Copies(store)
    seconds = _SECONDS_WHEN_STOPPED
    try:
        with _faults_kept(store, folder):
            yield folder, copies
        seconds = _SECONDS_AT_THE_END
    finally:
        copies.close(seconds)
