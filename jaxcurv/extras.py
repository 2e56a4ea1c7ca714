"""Packages that come with an extra, such as `jaxcurv[data]`, and the error where they are missing.

Nothing is imported here but what Python brings.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def require(what: str, extra: str, modules: Sequence[str]) -> None:
    """Checks that top-level modules can be found, and imports none.

    Args:
      what: what needs them, such as "jaxcurv.fit"; the message begins with it.
      extra: the extra that installs them.
      modules: their names.

    Raises:
      ModuleNotFoundError: names all that are missing, and the command that installs them.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise not_installed(what, extra, missing)


@contextmanager
def needs(what: str, extra: str) -> Iterator[None]:
    """A block of imports, of modules that come with an extra.

    Args:
      what: what needs them, such as "jaxcurv.fit"; the message begins with it.
      extra: the extra that installs them.

    Raises:
      ModuleNotFoundError: names the one that is missing, and the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None:  # which names no package
            raise
        raise not_installed(what, extra, [error.name]) from error


def not_installed(what: str, extra: str, missing: Sequence[str]) -> ModuleNotFoundError:
    """The error for `missing` modules or packages, with the first as its name."""
    be = "is" if len(missing) == 1 else "are"
    try:
        version("jaxcurv")
        target = f'"jaxcurv[{extra}]"'  # of the one that is installed: pip looks for no other
    except PackageNotFoundError:
        target = f'".[{extra}]" in its checkout'
    return ModuleNotFoundError(
        f"{what} needs {', '.join(missing)}, which {be} not installed: pip install {target}",
        name=missing[0],
    )
