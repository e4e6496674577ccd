"""Which names of two flat mappings have different values, as text."""

import re
from collections.abc import Mapping

_LONGEST_VALUE = 80
_DIGEST_SHOWN = 12


def differences(before: Mapping[str, object], now: Mapping[str, object], limit: int | None = None) -> list[str]:
    """Return one text per name whose value differs, sorted by name: `name old -> new`.

    A missing value is shown as `unset`, a SHA-256 by its first 12 digits, and other text by its first 80 characters.

    Args:
        before: the old values.
        now: the new values.
        limit: the number of names to show; the last text then counts the others. None shows all.
    """
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    shown = [f"{name} {_shown(before, name)} -> {_shown(now, name)}" for name in names[:limit]]
    return shown if len(shown) == len(names) else [*shown, f"and {len(names) - len(shown)} more"]


def _shown(values: Mapping[str, object], name: str) -> str:
    text = str(values.get(name, "unset"))
    return text[: _DIGEST_SHOWN if re.fullmatch("[0-9a-f]{64}", text) else _LONGEST_VALUE]
