"""Errors: whether work had begun, and how one is shown. Exit codes are in `experiments.cli`."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from jaxcurv.storage.lock import FolderInUse


class WorkFailed(Exception):
    """Work that had begun came to nothing."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error
        """What stopped it."""


@contextmanager
def at_work() -> Iterator[None]:
    """Whatever is raised within failed at work: what the work needs had been found good.

    Raises:
      FolderInUse: as it is.
      WorkFailed: in place of any other exception.
    """
    try:
        yield
    except FolderInUse:  # which is found before the work
        raise
    except Exception as error:
        raise WorkFailed(error) from error


class StageFailed(Exception):
    """A stage ended with an error that it has already shown."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def show_error(error: Exception, debug: bool) -> None:
    """One line on standard error, or the whole traceback."""
    if debug:
        traceback.print_exception(error)
        return
    expected = isinstance(error, ValueError | OSError | ImportError | FloatingPointError)
    what = "" if expected else f"unexpected {type(error).__name__}: "
    hint = "" if expected else " (--debug shows where)"
    print(f"error: {what}{' '.join(str(error).split())}{hint}", file=sys.stderr)
