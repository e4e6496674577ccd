"""How each cell of the table of faults ends, and why some have no meaning."""

HARMLESS, REPAIRED, TOLD, NOT_BEHIND = "harmless", "repaired", "told", "not behind a server"
WORDS = {code: f"detected ({code})" for code in range(2, 7)}

ROWS_IN_ORDER = (
    "kill -9", "SIGTERM", "disk full", "read-only", "network cut", "server dies", "two at once", "flipped bit",
    "truncated", "deleted", "older",
)  # fmt: skip
_WRITTEN = (REPAIRED, REPAIRED, WORDS[6], WORDS[6], HARMLESS, HARMLESS)
"""Of what this project writes as a whole."""


def _any(*outcomes: str) -> str:
    """One of these, which depends on the place of the damage."""
    return " or ".join(outcomes)


_CUT = _any(WORDS[2], TOLD, HARMLESS)
_OF_DVC = _any(WORDS[3], HARMLESS)
_TAG = _any(*[WORDS[code] for code in (2, 3, 4, 5)])
_OUTCOMES: dict[str, tuple[str, ...]] = {
    "source": (*[_any(TOLD, HARMLESS)] * 2, TOLD, TOLD, HARMLESS, HARMLESS, *[TOLD] * 4),
    "manifest": (*_WRITTEN, *[WORDS[3]] * 4),
    "dataset": (*_WRITTEN, *[WORDS[3]] * 4),
    "DVC cache": (*[_OF_DVC] * 4, HARMLESS, HARMLESS, *[_OF_DVC] * 4),
    "DVC remote": (*_WRITTEN, *[WORDS[3]] * 4),
    "shards": (*_WRITTEN, *[WORDS[3]] * 4),
    "index": (*_WRITTEN, *[WORDS[3]] * 4),
    "start weights": (*_WRITTEN, *[WORDS[5]] * 3, REPAIRED),
    "checkpoints": (*_WRITTEN, *[HARMLESS] * 4),
    "challenger": (*_WRITTEN, *[WORDS[3]] * 4),
    "history": (*_WRITTEN, *[WORDS[3]] * 4),
    "metrics": (*_WRITTEN, *[WORDS[3]] * 4),
    "verdict": (*_WRITTEN, *[WORDS[3]] * 4),
    "report": (*_WRITTEN, *[REPAIRED] * 4),
    "model artifact": (*_WRITTEN, *[WORDS[5]] * 4),
    "tags": (*_WRITTEN, _TAG, _TAG, _any(WORDS[3], TOLD, HARMLESS), _TAG),
    "aliases": (*_WRITTEN, _any(WORDS[4], TOLD), WORDS[4], WORDS[4], TOLD),
    "ledger": (*_WRITTEN, *[WORDS[3]] * 4),
    "database": (*_WRITTEN, _any(HARMLESS, TOLD, *[WORDS[code] for code in (3, 4, 5)]), WORDS[4], WORDS[4], TOLD),
    "params": (_CUT, _CUT, _CUT, TOLD, HARMLESS, HARMLESS, _CUT, _CUT, TOLD, TOLD),
    "cached outputs": (*_WRITTEN, REPAIRED, REPAIRED, _any(REPAIRED, HARMLESS), REPAIRED),
    "fetched weights": (*_WRITTEN, *[REPAIRED] * 4),
    "unsent values": (REPAIRED, REPAIRED, TOLD, TOLD, HARMLESS, HARMLESS, TOLD, _any(TOLD, HARMLESS), TOLD, TOLD),
}
_BEHIND = (
    "source", "DVC remote", "checkpoints", "model artifact", "tags", "aliases", "ledger", "database", "unsent values",
)  # fmt: skip
"""In a bucket, or in a tracking server."""
_PLACE = ROWS_IN_ORDER.index("network cut")


def _all_of(column: str) -> tuple[str, ...]:
    outcomes = _OUTCOMES[column]
    here = outcomes[_PLACE]
    cut, dies = (_any(here, WORDS[4]), WORDS[4]) if column in _BEHIND else (here, NOT_BEHIND)
    return (*outcomes[:_PLACE], cut, dies, *outcomes[_PLACE + 1 :])


OUTCOMES = {
    (column, row): outcome for column in _OUTCOMES for row, outcome in zip(ROWS_IN_ORDER, _all_of(column), strict=True)
}
