"""The end that a scheduler asks for: SIGTERM as an exception, so that open files are finished."""

import signal
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
