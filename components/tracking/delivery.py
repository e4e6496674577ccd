"""Values and pictures on their way to MLflow: sent by a thread of their own, and late where the server was away.

What the server does not take is kept in memory, and in a file (one JSON object a line) in case the process ends before
the server is back; pictures wait as files in a folder beside it. What earlier processes left in the same folder is sent
first. The server takes a value that it has already for the same one, so that sending twice does no harm.
"""

import fcntl
import json
import logging
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from bebygan.errors import ServiceError
from bebygan.files import lock
from bebygan.imaging import Image

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

SECONDS_BETWEEN_TRIES = 30.0
_MOST_AT_ONCE = 1000
"""Values that the server takes in one request."""
_log = logging.getLogger(__name__)


def _line(run_id: str, metric: "Metric") -> dict[str, Any]:
    return {
        "run_id": run_id,
        "name": metric.key,
        "value": metric.value,
        "step": metric.step,
        "time": metric.timestamp,
    }


def _chunks(metrics: "list[Metric]") -> "Iterable[list[Metric]]":
    return (metrics[first : first + _MOST_AT_ONCE] for first in range(0, len(metrics), _MOST_AT_ONCE))


def spool_of(folder: Path, run_id: str) -> Path:
    """Return the path of a file for values of a run that no other process has, nor one before in the same run."""
    return folder / f"{run_id}.{time.time_ns()}.jsonl"


def _pictures_of(spool: Path) -> Path:
    """Return the folder in which the pictures wait that belong to a file of values."""
    return spool.with_suffix(".pictures")


def _remove(spool: Path) -> None:
    """Remove a file of values, and the folder of its pictures before it: without the file nobody would look there."""
    shutil.rmtree(_pictures_of(spool), ignore_errors=True)
    spool.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Picture:
    name: str
    image: Image


def _send_picture(client: "MlflowClient", run_id: str, path: Path) -> None:
    client.log_artifact(run_id, str(path), "pictures")
    path.unlink()


class Delivery:
    """Sends the values and pictures of one run, and at the end how it ended.

    Args:
        client: of the server.
        run_id: of the run.
        spool: file for what is not sent yet, of this process alone; see `spool_of`.
        errors: context that turns what the client raises into ServiceError; it is told what is being done.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        spool: Path,
        errors: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._spool = spool
        self._errors = errors
        self._new: queue.SimpleQueue[list[Metric] | _Picture | None] = queue.SimpleQueue()
        self._unsent: list[Metric] = []
        self._in_file = 0
        """How many of the unsent are in the file."""
        self._file: TextIO | None = None
        self._pictures: list[Path] = []
        self._status: str | None = None
        self._ended = False
        self._given_up = False
        self._changing = threading.Lock()
        """Held while the unsent or the file change: whoever gives up on a thread that hangs takes them over."""
        self._silent_until = -math.inf
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, metrics: "list[Metric]") -> None:
        """Send values soon; returns at once."""
        self._new.put(metrics)

    def put_picture(self, name: str, image: Image) -> None:
        """Send a picture (H, W, 3) soon, as an artifact below `pictures`; returns at once."""
        self._new.put(_Picture(name, image))

    def close(self, status: str, seconds: float) -> None:
        """Send what is unsent and end the run, for so long at most; what is left is in the file then."""
        self._status = status
        self._new.put(None)
        self._thread.join(seconds)
        if self._ended:
            return
        with self._changing:
            self._given_up = True
            while not self._new.empty():
                self._take(self._new.get())
            self._keep()
            self._write([{"run_id": self._run_id, "status": status, "time": time.time_ns() // 1_000_000}])
            if self._file is not None:
                self._file.close()
        _log.warning("warning: MLflow lacks the end of this run. It is in %s; the next run here sends it", self._spool)

    def _run(self) -> None:
        self._send_leftovers()
        while not self._collect():
            if self._waits() and time.monotonic() >= self._silent_until:
                self._send()
            with self._changing:
                if self._given_up:
                    return
                self._keep()
        # Once more, however short ago the last try was.
        self._send()
        if not self._waits() and not self._given_up:
            self._ended = self._attempt("ending the run", self._terminate)

    def _waits(self) -> bool:
        return bool(self._unsent or self._pictures)

    def _take(self, new: "list[Metric] | _Picture | None") -> None:
        """Take values over, or bring a picture to the disk."""
        if not isinstance(new, _Picture):
            self._unsent += new or []
            return
        from PIL import Image as PillowImage  # noqa: PLC0415

        folder = _pictures_of(self._spool)
        try:
            # First the file, whose lock is the folder's too.
            self._opened()
            folder.mkdir(exist_ok=True)
            # A reader must not find half a picture.
            PillowImage.fromarray(new.image).save(folder / "part", "PNG")
            (folder / "part").rename(folder / new.name)
        except OSError as error:
            _log.warning("warning: the picture %s cannot be kept in %s: %s", new.name, folder, error.strerror)
        else:
            self._pictures.append(folder / new.name)

    def _collect(self) -> bool:
        """Wait for values, or for the time of the next try; returns whether there will be no more."""
        waiting = max(self._silent_until - time.monotonic(), 0) if self._waits() else None
        try:
            new = self._new.get(timeout=waiting)
            while new is not None:
                with self._changing:
                    self._take(new)
                new = self._new.get_nowait()
        except queue.Empty:
            return False
        return True

    def _terminate(self) -> None:
        self._client.set_terminated(self._run_id, self._status)

    def _send_pictures(self) -> bool:
        """Send the pictures that wait; returns whether none is left."""
        while self._pictures:
            path = self._pictures[0]
            if not self._attempt("storing a picture", lambda: _send_picture(self._client, self._run_id, path)):  # noqa: B023
                return False
            del self._pictures[0]
        return True

    def _send(self) -> None:
        """Send all that is unsent, oldest first, and remove the file once nothing is left."""
        for chunk in list(_chunks(self._unsent)):
            if not self._attempt("logging values", lambda: self._client.log_batch(self._run_id, metrics=chunk)):  # noqa: B023
                self._silent_until = time.monotonic() + SECONDS_BETWEEN_TRIES
                return
            with self._changing:
                if self._given_up:
                    return
                del self._unsent[: len(chunk)]
                self._in_file = max(self._in_file - len(chunk), 0)
        if not self._send_pictures():
            self._silent_until = time.monotonic() + SECONDS_BETWEEN_TRIES
            return
        if self._warned:
            _log.info("MLflow has all values again")
        self._warned = False
        with self._changing:
            if self._file is not None and not self._given_up:
                _remove(self._spool)
                self._file.close()
                self._file = None

    def _attempt(self, doing: str, call: Callable[[], object]) -> bool:
        try:
            with self._errors(doing):
                call()
        except ServiceError as error:
            if not self._warned:
                _log.warning("warning: %s. The step goes on; values are kept in %s", error, self._spool)
            self._warned = True
            return False
        return True

    def _keep(self) -> None:
        """Put what is unsent into the file."""
        if new := self._unsent[self._in_file :]:
            self._write(_line(self._run_id, metric) for metric in new)
            self._in_file = len(self._unsent)

    def _opened(self) -> TextIO:
        if self._file is None:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._spool.open("a")
            # Held as long as this process lives: nobody takes the file for a leftover. Some file systems know no locks.
            lock(self._file)
        return self._file

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        try:
            file = self._opened()
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
        except OSError as error:
            _log.warning("warning: values cannot be kept in %s: %s", self._spool, error.strerror)

    def _send_leftovers(self) -> None:
        """Send what processes left that live no more: those that live hold a lock."""
        for path in sorted(self._spool.parent.glob("*.jsonl")):
            try:
                # NFS locks only files that are open for writing.
                with path.open("r+") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.exists():
                        with self._errors("sending what an earlier run left"):
                            self._send_leftover(path)
                        _log.info("MLflow has what an earlier run left in %s", path)
            except (BlockingIOError, FileNotFoundError):
                # Its process lives, or another run that begins here was quicker.
                continue
            except (ServiceError, OSError) as error:
                _log.warning("warning: %s. It stays in %s", error, path)

    def _send_leftover(self, path: Path) -> None:
        self._send_lines(path.read_text().splitlines())
        for picture in sorted(_pictures_of(path).glob("*.png")):
            _send_picture(self._client, path.name.partition(".")[0], picture)
        _remove(path)

    def _send_lines(self, lines: list[str]) -> None:
        from mlflow.entities import Metric  # noqa: PLC0415

        values: dict[str, list[Metric]] = {}
        ends: list[dict[str, Any]] = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                # The process was killed while it wrote this line, its last.
                continue
            if "status" in entry:
                ends.append(entry)
            else:
                metric = Metric(entry["name"], entry["value"], entry["time"], entry["step"])
                values.setdefault(entry["run_id"], []).append(metric)
        for run_id, metrics in values.items():
            for chunk in _chunks(metrics):
                self._client.log_batch(run_id, metrics=chunk)
        for end in ends:
            if end["run_id"] != self._run_id:
                self._client.set_terminated(end["run_id"], end["status"], end["time"])
