"""A private view of a folder for each test: real mounts, a real full or read-only disk, real killed processes.

A test runs in a process that forkserver starts, in a mount namespace of its own. Over the folder lies an overlay whose
upper side is a small tmpfs: what the test changes is seen by its own processes alone and ends with them. This takes
root, or the right to create user namespaces.
"""

import ctypes
import errno
import os
import pickle
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.cli import report_errors

_NEW_MOUNTS, _NEW_USER, _NEW_NETWORK = 0x00020000, 0x10000000, 0x40000000
_READ_ONLY, _REMOUNT, _PRIVATE = 1, 32, (1 << 18) | 16384
_C = ctypes.CDLL(None, use_errno=True)
_MEBIBYTES = 96
SECONDS_TO_END = 60.0


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: Path | str, kind: str, flags: int = 0, options: str = "") -> None:
    arguments = (source.encode(), os.fsencode(target), kind.encode(), flags, options.encode())
    _checked(_C.mount(*arguments), f"mount {kind} {target}")


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; negative is a signal; 70 stands for a traceback."""
    value: Any
    said: str
    """What it wrote to standard output and error."""


@dataclass(frozen=True)
class Started:
    """A process that works in the sandbox."""

    process: int
    _said: Path
    _value: Path

    def kill(self, number: int) -> None:
        os.kill(self.process, number)

    def ended(self) -> Ended:
        """Wait for its end."""
        deadline = time.monotonic() + SECONDS_TO_END
        while (found := os.waitpid(self.process, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self.process, signal.SIGKILL)
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(found[1])
        value = pickle.loads(self._value.read_bytes()) if code == 0 and self._value.exists() else None  # noqa: S301
        return Ended(code, value, self._said.read_text(errors="replace"))


class Sandbox:
    """The view of `folder` that this process and its children have."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._disk = folder.with_name(f"{folder.name}.disk")
        self._filler = self._disk / "filler"
        self._count = 0
        identity = os.geteuid(), os.getegid()
        _checked(_C.unshare(_NEW_MOUNTS | (_NEW_USER if identity[0] else 0)), "unshare")
        if identity[0]:
            Path("/proc/self/setgroups").write_text("deny")
            for name, number in zip(("uid_map", "gid_map"), identity, strict=True):
                Path("/proc/self", name).write_text(f"0 {number} 1")
        _mount("none", "/", "none", _PRIVATE)
        self._disk.mkdir(exist_ok=True)
        _mount("tmpfs", self._disk, "tmpfs", 0, f"size={_MEBIBYTES}m")
        (self._disk / "ended").mkdir()
        # Reports about processes must not need room on the full disk.
        _mount("tmpfs", self._disk / "ended", "tmpfs", 0, "size=16m")
        # Without it no folder of the lower side can be renamed. User namespaces do not have it.
        self._options = ",userxattr" if identity[0] else ",redirect_dir=on"
        self._open()

    def _open(self) -> None:
        for name in ("upper", "work", "tmp"):
            (self._disk / name).mkdir()
        places = f"lowerdir={self.folder},upperdir={self._disk / 'upper'},workdir={self._disk / 'work'}"
        _mount("overlay", self.folder, "overlay", 0, places + self._options)
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._disk / "tmp")
        os.chdir(self.folder)

    def reset(self) -> None:
        """Take back all changes."""
        os.chdir("/")
        _checked(_C.umount2(os.fsencode(self.folder), 2), "umount")
        for name in ("upper", "work", "tmp"):
            shutil.rmtree(self._disk / name)
        self._open()

    def start(self, work: Callable[[], Any]) -> Started:
        """Run a function in a process of its own, with the errors and exit codes of a command."""
        self._count += 1
        said, value = (self._disk / "ended" / f"{self._count}.{name}" for name in ("said", "value"))
        said.touch()  # a signal may end the process before it opens this
        if process := os.fork():
            return Started(process, said, value)
        code = 70
        try:
            os.setpgid(0, 0)
            output = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            found: list[Any] = []
            code = report_errors(lambda: found.append(work()))
            if found:
                value.write_bytes(pickle.dumps(found[0]))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 70
        except BaseException:  # noqa: BLE001 - reported by the test
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def call(self, work: Callable[[], Any]) -> Ended:
        """Run a function in a process of its own to its end."""
        return self.start(work).ended()

    def interrupt(self, work: Callable[[], Any], seconds: float, number: int, chance: random.Random) -> Ended:
        """Run a function and send its process a signal at a random moment of the time that it takes."""
        started = self.start(work)
        time.sleep(chance.uniform(0, seconds))
        started.kill(number)
        return started.ended()

    def fill(self) -> None:
        """Leave no byte on the disk."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def make_room(self) -> None:
        """Empty the disk again."""
        self._filler.unlink()

    def make_read_only(self, read_only: bool = True) -> None:
        """Mount the folder read-only, or writable again."""
        flags = _REMOUNT | (_READ_ONLY if read_only else 0)
        _mount("overlay", self.folder, "overlay", flags)

    @staticmethod
    def cut_network() -> None:
        """Take the network of this process and of what it starts, also the loopback interface."""
        _checked(_C.unshare(_NEW_NETWORK), "unshare the network")
