"""Delivery of values and pictures to MLflow by a thread, which never blocks the step and retries an unreachable server.

Values that the server did not receive stay in memory and in a file with one JSON object per line (the spool), in case
the process ends before the server is back; pictures stay in a folder beside it. A later process sends what earlier
ones left in the same folder. The server ignores a value that it already has, so values may be sent twice.

MLflow's asynchronous logging is not used, because it drops what it cannot send. The history of a training is no
replacement for the spool: it lacks values after the last checkpoint, system metrics, pictures and the final status.
"""

import fcntl
import json
import logging
import queue
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image as PillowImage
from tenacity import RetryCallState, Retrying

from bebygan.errors import ServiceError
from bebygan.files import json_digest, lock
from bebygan.imaging import Image
from components.stores.retries import IN_BACKGROUND
from components.tracking.client import service_errors, uploading

_MOST_AT_ONCE = 1000
"""Values that the server accepts in one request."""
_DIGEST = "digest"
"""Key of a line's digest of itself."""
_KEYS = {"run_id", "name", "value", "step", "time", "status", _DIGEST}
_log = logging.getLogger(__name__)


def _chunks(metrics: list[Metric]) -> list[list[Metric]]:
    return [metrics[first : first + _MOST_AT_ONCE] for first in range(0, len(metrics), _MOST_AT_ONCE)]


def _pictures_of(spool: Path) -> Path:
    """Return the folder of the pictures that belong to a spool."""
    return spool.with_suffix(".pictures")


def _remove(spool: Path) -> None:
    """Remove the pictures, then the spool: without the spool, no later process finds the pictures."""
    shutil.rmtree(_pictures_of(spool), ignore_errors=True)
    spool.unlink(missing_ok=True)


def _send_picture(client: MlflowClient, run_id: str, path: Path) -> None:
    with service_errors("storing a picture"), uploading():
        client.log_artifact(run_id, str(path), "pictures")
    path.unlink()


class Delivery:
    """Sends the values and pictures of one run, and finally its status.

    Args:
        client: of the server.
        run_id: of the run.
        spools: folder for the spools of all runs.
        retrying: when to retry while the server is unreachable.
    """

    def __init__(self, client: MlflowClient, run_id: str, spools: Path, retrying: Retrying = IN_BACKGROUND) -> None:
        self._client = client
        self._run_id = run_id
        # Unique also among the processes of one run.
        self._spool = spools / f"{run_id}.{time.time_ns()}.jsonl"
        # Between two attempts the thread writes new values to the spool.
        self._retrying = retrying.copy(
            sleep=self._collect,
            stop=lambda _: self._closing or self._given_up,
            after=self._warn,
            retry_error_callback=lambda _: None,
        )
        self._new: queue.SimpleQueue[list[Metric] | tuple[str, Image] | None] = queue.SimpleQueue()
        self._unsent: list[Metric] = []
        self._in_file = 0
        """Number of unsent values that are in the spool."""
        self._file: TextIO | None = None
        self._pictures: list[Path] = []
        self._status: str | None = None
        self._closing: bool = False
        self._given_up: bool = False
        self._ended = False
        self._warned = False
        self._changing = threading.Lock()
        """Held while unsent values or the spool change: `close` may take over from a thread that hangs."""
        self._thread = threading.Thread(target=self._run, name="mlflow", daemon=True)
        self._thread.start()

    def put(self, metrics: list[Metric]) -> None:
        """Send values soon; returns at once."""
        self._new.put(metrics)

    def put_picture(self, name: str, image: Image) -> None:
        """Send a picture (H, W, 3) soon, as an artifact below `pictures`; returns at once."""
        self._new.put((name, image))

    def close(self, status: str, seconds: float) -> None:
        """Send all and end the run, within `seconds`; the spool keeps what could not be sent."""
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
            self._write([{"status": status, "time": time.time_ns() // 1_000_000}])
            self._close_file()
        _log.warning(
            "warning: MLflow did not receive the end of this run. It is in %s; the next run here sends it", self._spool
        )

    def _run(self) -> None:
        self._send_leftovers()
        while not (self._closing or self._given_up):
            self._collect(None)
            self._retrying(self._send)

    def _take(self, new: list[Metric] | tuple[str, Image] | None) -> None:
        """Keep values in memory and pictures on disk."""
        if new is None:
            self._closing = True
        elif isinstance(new, list):
            self._unsent += new
        else:
            self._write_picture(*new)

    def _write_picture(self, name: str, image: Image) -> None:
        folder = _pictures_of(self._spool)
        try:
            # The spool first: its lock also protects the folder.
            self._opened()
            folder.mkdir(exist_ok=True)
            # A later process must not send an incomplete picture.
            PillowImage.fromarray(image).save(folder / "part", "PNG")
            self._pictures.append((folder / "part").rename(folder / name))
        except OSError as error:
            _log.warning("warning: the picture %s cannot be kept in %s: %s", name, folder, error.strerror)

    def _collect(self, seconds: float | None) -> None:
        """Take new values and pictures for `seconds`, or if None, until the queue is empty after the first."""
        end = None if seconds is None else time.monotonic() + seconds
        first = True
        while not (self._closing or self._given_up):
            left = None if end is None else max(end - time.monotonic(), 0)
            try:
                new = self._new.get(timeout=left) if end or first else self._new.get_nowait()
            except queue.Empty:
                return
            first = False
            with self._changing:
                self._take(new)
                if end:
                    self._keep()

    def _send(self) -> None:
        """Send all values and pictures, oldest first; then remove the spool and, when closing, end the run."""
        for chunk in _chunks(self._unsent):
            with service_errors("logging values"):
                self._client.log_batch(self._run_id, metrics=chunk)
            with self._changing:
                if self._given_up:
                    return
                del self._unsent[: len(chunk)]
                self._in_file = max(self._in_file - len(chunk), 0)
        while self._pictures:
            _send_picture(self._client, self._run_id, self._pictures[0])
            del self._pictures[0]
        if self._warned:
            _log.info("MLflow has all values again")
            self._warned = False
        with self._changing:
            if self._given_up:
                return
            if self._file is not None:
                _remove(self._spool)
                self._close_file()
        if self._closing:
            with service_errors("ending the run"):
                self._client.set_terminated(self._run_id, self._status)
            self._ended = True

    def _warn(self, state: RetryCallState) -> None:
        """Keep what a failed attempt could not send; warn after the first one."""
        if not self._warned and state.outcome:
            error = state.outcome.exception()
            _log.warning("warning: %s. The step continues; values are kept in %s", error, self._spool)
        self._warned = True
        with self._changing:
            if not self._given_up:
                self._keep()

    def _keep(self) -> None:
        """Write unsent values to the spool."""
        if new := self._unsent[self._in_file :]:
            self._write(
                {"name": each.key, "value": each.value, "step": each.step, "time": each.timestamp} for each in new
            )
            self._in_file = len(self._unsent)

    def _opened(self) -> TextIO:
        if self._file is None:
            self._spool.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._spool.open("a")
            # Held while this process runs: other processes do not send the spool.
            lock(self._file)
        return self._file

    def _close_file(self) -> None:
        if self._file is not None:
            # On a full disk it fails again to write what `_write` told about.
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _write(self, lines: Iterable[dict[str, Any]]) -> None:
        try:
            file = self._opened()
            file.writelines(_line({"run_id": self._run_id, **line}) for line in lines)
            file.flush()
        except OSError as error:
            _log.warning("warning: values cannot be kept in %s: %s", self._spool, error.strerror)

    def _send_leftovers(self) -> None:
        """Send the spools of processes that ended; running processes hold a lock."""
        for path in sorted(self._spool.parent.glob("*.jsonl")):
            try:
                # NFS locks only files that are open for writing.
                with path.open("r+b") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if path.exists():
                        self._send_leftover(path, file.read())
            except (BlockingIOError, FileNotFoundError):
                # Its process is running, or another process has sent it.
                continue
            except (ServiceError, OSError) as error:
                _log.warning("warning: %s. It stays in %s", error, path)

    def _send_leftover(self, path: Path, content: bytes) -> None:
        values, ends, damaged = _parsed(content)
        with service_errors("sending what an earlier run left"):
            for run_id, metrics in values.items():
                for chunk in _chunks(metrics):
                    self._client.log_batch(run_id, metrics=chunk)
            for run_id, status, when in ends:
                if run_id != self._run_id:
                    self._client.set_terminated(run_id, status, when)
        for picture in sorted(_pictures_of(path).glob("*.png")):
            _send_picture(self._client, path.name.partition(".")[0], picture)
        if damaged:
            aside = path.rename(path.with_suffix(".damaged"))
            _log.warning("warning: %d lines that an earlier run left are damaged. They stay in %s", damaged, aside)
        _remove(path)
        _log.info("MLflow has what an earlier run left in %s", path)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps({**entry, _DIGEST: json_digest(entry)}) + "\n"


def _verified(line: bytes) -> dict[str, Any]:
    """Return the entry in a line; raise a ValueError if it is damaged. Lines of earlier versions have no digest."""
    entry: dict[str, Any] = json.loads(line)
    if not entry.keys() <= _KEYS:
        raise ValueError("it has other keys")
    if entry.pop(_DIGEST, None) not in (None, json_digest(entry)):
        raise ValueError("it differs from its digest")
    return entry


def _parsed(content: bytes) -> tuple[dict[str, list[Metric]], list[tuple[str, str, int]], int]:
    """Return the values in a spool by run; run, status and time of runs that ended; and the number of damaged lines."""
    values: dict[str, list[Metric]] = {}
    ends: list[tuple[str, str, int]] = []
    damaged = 0
    complete, _, cut = content.rpartition(b"\n")
    for line in filter(None, [*complete.split(b"\n"), cut]):
        try:
            entry = _verified(line)
            run_id, when = str(entry["run_id"]), int(entry["time"])
            if "status" in entry:
                ends.append((run_id, str(entry["status"]), when))
            else:
                metric = Metric(str(entry["name"]), float(entry["value"]), when, int(entry["step"]))
                values.setdefault(run_id, []).append(metric)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            # A killed process may leave an incomplete last line.
            damaged += line != cut
    return values, ends, damaged
