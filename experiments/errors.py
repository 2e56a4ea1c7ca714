"""What went wrong when: at work, or already at the start. `experiments.cli` shows it."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxcurv.lock import FolderInUse


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
