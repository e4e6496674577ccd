"""Output of a training step, for the tests of warm-up and GAN training."""

import json
from pathlib import Path

from bebygan.files import sha256_of


def ignore(*_: object) -> None:
    return


def contents(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file: pytest would take minutes to show the differences between weights."""
    return {path.name: sha256_of(path) for path in folder.iterdir()}


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
