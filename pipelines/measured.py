"""Measurements that are kept in a file, and made again only if what they depend on has changed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bebygan.files import whole_file

Row = dict[str, Any]


def measured_once(file: Path, of: Mapping[str, object], measure: Callable[[], list[Row]]) -> list[Row]:
    """Return rows that were measured now or before.

    Args:
        file: keeps them.
        of: what they depend on, as JSON has it.
        measure: makes them.

    Raises:
        StorageError: the file cannot be written.
    """
    if file.is_file() and (found := json.loads(file.read_text()))["of"] == of:
        kept: list[Row] = found["rows"]
        return kept
    rows = measure()
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps({"of": of, "rows": rows}))
    return rows
