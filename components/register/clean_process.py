"""Running a script of this folder where neither this copy of the code nor its working folder can be imported."""

import os
import subprocess
import sys
from pathlib import Path


def fault_of(script: Path, *arguments: object, folder: Path) -> str | None:
    """Run a script in a clean process on the CPU, and return the last line of its error, or None if it succeeds.

    Args:
        script: file to run.
        arguments: of the script.
        folder: working folder.
    """
    # -I ignores PYTHONPATH and the working folder, which hold this copy. Results of a GPU differ in the last bits.
    command = [sys.executable, "-I", str(script), *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    if not done.returncode:
        return None
    return (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
