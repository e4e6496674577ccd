"""Digests of finished outputs: a run on one machine compares them before it takes the outputs from its cache."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bebygan.files import sha256_of, whole_file

_SUFFIX = ".sha256"


def _digest(output: Path) -> str:
    files = sorted(path for path in output.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        found = zip((path.relative_to(output).as_posix() for path in files), pool.map(sha256_of, files), strict=True)
        return hashlib.sha256(json.dumps(list(found)).encode()).hexdigest()


def record_digest(output: Path) -> None:
    """Write the digest of a finished output, a folder, into a file beside it; raises StorageError if it cannot."""
    with whole_file(output.with_name(f"{output.name}{_SUFFIX}")) as temporary:
        temporary.write_text(_digest(output))


def damaged_outputs(folder: Path) -> Iterator[Path]:
    """Yield the outputs of tasks, at `folder`/run/task/output, that differ from their recorded digests."""
    for record in sorted(folder.glob(f"*/*/*{_SUFFIX}")):
        output = record.with_suffix("")
        try:
            intact = not output.exists() or _digest(output) == record.read_text()
        except (OSError, UnicodeDecodeError):
            intact = False
        if not intact:
            yield output
