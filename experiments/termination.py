"""How a process ends: by SIGTERM, as an exception so that files are whole, or with its parent."""

import multiprocessing
import os
import signal
import threading
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""


class Terminated(BaseException):
    """SIGTERM has come. Like KeyboardInterrupt no Exception: nothing takes it for a failure."""


def raise_on_sigterm() -> None:
    """Lets SIGTERM raise `Terminated` in this process's main thread.

    A second one, which finds the first at work, has no effect.
    """
    signal.signal(signal.SIGTERM, _raise)


def _raise(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def end_with_parent() -> None:
    """Lets this process, one of multiprocessing, end at once when the one that started it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
