"""Checkpoints: written whole, checked when read, the newest good one wins."""

import hashlib
import io
import logging
from pathlib import Path
from typing import Any

import torch

from bebygan.errors import ConfigError, DataError
from bebygan.files import whole_file

_log = logging.getLogger(__name__)
FORMAT = 1
# The last one may have been written while the disk failed: one before it always stays.
_KEPT = 2
_DIGEST_BYTES = 32


def _numbered(folder: Path) -> list[Path]:
    return sorted(folder.glob("iteration-*.checkpoint"))


def save(folder: Path, iteration: int, state: dict[str, Any], job: dict[str, str]) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Args:
        folder: of the run; made when missing.
        iteration: iterations done.
        state: what `torch.save` takes.
        job: what the run is made of (hash of configuration, data version, code); `load_newest` compares it.

    Raises:
        StorageError: the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "job": job, "state": state}, buffer)
    path = folder / f"iteration-{iteration:08d}.checkpoint"
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())
    for old in _numbered(folder)[:-_KEPT]:
        old.unlink(missing_ok=True)
    return path


def _read(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        raise DataError(f"{path} is damaged: its checksum does not fit")
    checkpoint: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    if checkpoint["format"] > FORMAT:
        raise DataError(f"{path} has format {checkpoint['format']}, this version reads up to {FORMAT}: update bebygan")
    return checkpoint


def load_newest(folder: Path, job: dict[str, str]) -> dict[str, Any] | None:
    """Return the state of the newest undamaged checkpoint, or None when there is none.

    Raises:
        ConfigError: the checkpoint belongs to another job; says what differs.
        DataError: every checkpoint is damaged, or the newest was written by a newer version.
    """
    paths = _numbered(folder)
    for path in reversed(paths):
        try:
            checkpoint = _read(path)
        except DataError as error:
            if path == paths[0]:
                raise
            _log.warning("%s; falling back to the one before", error)
            continue
        differing = {
            name for name in job.keys() | checkpoint["job"].keys() if job.get(name) != checkpoint["job"].get(name)
        }
        if differing:
            raise ConfigError(
                f"{path} belongs to another run: {', '.join(sorted(differing))} differ; choose another folder"
            )
        state: dict[str, Any] = checkpoint["state"]
        return state
    return None
