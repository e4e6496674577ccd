"""Validation of cron expressions in the syntax of Kubeflow's schedules: six fields, the first one seconds.

Kubeflow's API server and its controller of schedules use the parser robfig/cron 1.2. That parser also accepts five
fields, but reads minutes as seconds: "0 2 * * *" would start a run every hour. This module rejects five fields. Times
are in the controller's time zone: UTC, unless its CRON_SCHEDULE_TIMEZONE is set.
"""

import re

_FIELDS = (
    ("second", 0, 59, ""),
    ("minute", 0, 59, ""),
    ("hour", 0, 23, ""),
    ("day of the month", 1, 31, ""),
    ("month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"),
    ("day of the week", 0, 6, "sun mon tue wed thu fri sat"),
)
"""Name, lowest and highest value, and the names of all values."""
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_PART = re.compile(r"(?P<all>[*?])?(?:(?P<low>\w+)(?:-(?P<high>\w+))?)?(?:/(?P<step>\d+))?", re.ASCII)


def _values(text: str, field: str, lowest: int, highest: int, names: str) -> set[int]:
    """Return the values that a field matches; a ValueError names the wrong part."""

    def number(value: str) -> int:
        if value.lower() in names.split():
            return lowest + names.split().index(value.lower())
        if not value.isdecimal():
            known = f" or one of {', '.join(names.split())}" if names else ""
            raise ValueError(f"{field}: {value!r} is not a number{known}")
        return int(value)

    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if not match or bool(match["all"]) == bool(match["low"]):
            raise ValueError(f"{field}: {part!r} is none of *, 5, 1-5, */5, 1-30/5, or several with commas between")
        low = lowest if match["all"] else number(match["low"])
        # A single value with a step is a range up to the highest value.
        to_the_end = match["all"] or (match["step"] and not match["high"])
        high = highest if to_the_end else number(match["high"] or match["low"])
        step = int(match["step"] or 1)
        if low < lowest or high > highest:
            raise ValueError(f"{field}: {part!r} is not within {lowest}-{highest}")
        if low > high:
            raise ValueError(f"{field}: {part!r} starts after it ends")
        if step < 1:
            raise ValueError(f"{field}: the step of {part!r} must be at least 1")
        found.update(range(low, high + 1, step))
    return found


def checked(expression: str) -> str:
    """Return a cron expression, its fields separated by one space.

    Raises:
        ValueError: there are not six fields, a field is invalid, or no month has the day; names the field.
    """
    fields = expression.split()
    if len(fields) != len(_FIELDS):
        hint = "; put the seconds before them, mostly 0" if len(fields) == len(_FIELDS) - 1 else ""
        raise ValueError(
            f"{expression!r} has {len(fields)} fields; six are needed: second, minute, hour, day of the month, month, "
            f"day of the week{hint}"
        )
    *_, days, months, _ = (
        _values(text, field, lowest, highest, names)
        for text, (field, lowest, highest, names) in zip(fields, _FIELDS, strict=True)
    )
    # If the day of the week is given too, cron starts a run on either of the two.
    if fields[5][0] in "*?" and all(day > _LONGEST[month - 1] for day in days for month in months):
        raise ValueError(f"day of the month: no month of {fields[4]!r} has a day {fields[3]}, so it would never start")
    return " ".join(fields)
