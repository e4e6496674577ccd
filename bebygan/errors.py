"""Errors that a user can act on. Each names what was wrong, where, and what to do, in one line.

The step runner prints them as `error: ...` and ends the process with the class's exit code.
"""


class BebyganError(Exception):
    """Base of the errors below."""

    exit_code = 1


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
