"""Errors that a user can act on. Each names what was wrong, where, and what to do, in one line.

The step runner prints them as `error: ...` and ends the process with the class's exit code.
"""

import re

_CREDENTIALS = re.compile(
    # Of an address, up to its last @: passwords may contain one.
    r"(?<=://)[^\s'\"]*@"
    # Of an address without a scheme. The digest in `image:tag@sha256:...` is not an address.
    r"|(?<![^\s'\"(=])[^\s'\"/:@(=]+:[^\s'\"/@]+@(?!sha256:)"
    r"|(?<=password=)[^\s'\"&]+"
)


def without_password(text: str) -> str:
    """Remove users and passwords from all addresses in a text."""
    return _CREDENTIALS.sub("", text)


class BebyganError(Exception):
    """Base of the errors below. No message contains the user or password of an address."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


class ConfigError(BebyganError):
    """A parameter is unknown, out of range, or contradicts another one."""

    exit_code = 2


class DataError(BebyganError):
    """Photographs, a manifest or patches are missing, damaged or unfit."""

    exit_code = 3


class ServiceError(BebyganError):
    """A bucket, tracker or registry is unreachable, unknown or refuses a request."""

    exit_code = 4


class WeightsError(BebyganError):
    """Network weights are not available, are damaged, or belong to another architecture."""

    exit_code = 5


class StorageError(BebyganError):
    """Output cannot be written: the disk is full, read-only or over quota."""

    exit_code = 6


class Preempted(BebyganError):  # noqa: N818 - a request to stop is not an error
    """The process was asked to stop and saved its state: run the same command again (EX_TEMPFAIL)."""

    exit_code = 75


def error_of(exit_code: int, message: str) -> BebyganError | RuntimeError:
    """Return the error for which another process ended with an exit code; a RuntimeError if it met a bug."""
    kinds = {kind.exit_code: kind for kind in BebyganError.__subclasses__()}
    return kinds.get(exit_code, RuntimeError)(message)
