"""`dvc repro`, whose stages are processes that know nothing of each other."""

import os
import socket
from pathlib import Path

import psutil


def running_repro() -> str | None:
    """Return the identity of the `dvc repro` that started this process as a stage, or None if none did."""
    # DVC sets it for each stage.
    if "DVC_STAGE" not in os.environ:
        return None
    for process in psutil.Process().parents():
        try:
            if "dvc" in {Path(word).name for word in process.cmdline()[:4]}:
                return f"{socket.gethostname()} {process.pid} {process.create_time():.0f}"
        except psutil.Error:
            # The process ended, or belongs to another user.
            continue
    return None
