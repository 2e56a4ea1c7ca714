"""Public faces: the names of a package's stub, imported when first used, and names that moved."""

import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from operator import attrgetter
from typing import Any

import lazy_loader

from jaxcurv.extras import needs

Face = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]
"""`__getattr__`, `__dir__` and `__all__` of a package."""


def attach(
    package: str, file: str, *, extra: str | None = None, moved: Mapping[str, str] | None = None
) -> Face:
    """The face of a package with a stub `__init__.pyi`, which holds lines `from .x import y as y`.

    Args:
      package: `__name__` of the package.
      file: `__file__` of the package; the stub lies beside it.
      extra: what installs the packages that a name may need, as "bridge"; None where all are there.
      moved: new place of each earlier name, as {"ADC": "bridge.chips.ADC"}. An earlier name works
        with a DeprecationWarning, and neither `dir()` nor `__all__` shows it.
    """
    in_stub, __dir__, __all__ = lazy_loader.attach_stub(package, file)
    places = moved or {}

    def __getattr__(name: str) -> Any:
        if name in places:
            return _at_new_place(package, name, places[name])
        with needs(f"{package}.{name}", extra) if extra else nullcontext():
            return in_stub(name)

    return __getattr__, __dir__, __all__


def earlier(module: str, moved: Mapping[str, str]) -> Callable[[str], Any]:
    """`__getattr__` of a module all of whose names have moved; see `attach`."""

    def __getattr__(name: str) -> Any:
        if name not in moved:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return _at_new_place(module, name, moved[name])

    return __getattr__


def _at_new_place(module: str, name: str, place: str) -> Any:
    """Called by a module's `__getattr__`, so that the warning names the line that asked for it."""
    warnings.warn(
        f"{module}.{name} is {place} now; the earlier name works until version 0.3",
        DeprecationWarning,
        stacklevel=3,
    )
    package, _, path = place.partition(".")
    return attrgetter(path)(sys.modules[package])
