"""Names that a package imports when they are first used (PEP 562), so that importing the package needs no torch."""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any


def lazy_names(
    package: str, names: Sequence[str], modules: Sequence[str]
) -> tuple[Callable[[str], Any], Callable[[], Sequence[str]]]:
    """Return a package's `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        names: its `__all__`.
        modules: those of the package that define the names, the ones without torch first; they are imported in this
            order until one has the name.
    """

    def get(name: str) -> Any:
        for module in modules if name in names else ():
            found = getattr(import_module(f"{package}.{module}"), name, None)
            if found is not None:
                return found
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get, lambda: names
