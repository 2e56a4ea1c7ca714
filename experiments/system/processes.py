"""How a process ends: by SIGTERM, as an exception so that files are whole, or with its parent."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""

AGAIN_SECONDS = 0.2
"""Until a signal whose exception was lost comes again, and from then on."""


class Terminated(BaseException):
    """SIGTERM has come. Like KeyboardInterrupt no Exception: nothing takes it for a failure."""


@contextmanager
def named_if_ended(name: str) -> Iterator[None]:
    """Says which work an interruption has ended, and how it goes on."""
    try:
        yield
    except (KeyboardInterrupt, Terminated) as end:
        how = "terminated" if isinstance(end, Terminated) else "interrupted"
        print(f"{name} {how}; the same command goes on from here", file=sys.stderr)
        raise


def raise_on_sigterm() -> None:
    """Lets SIGTERM raise `Terminated` in this process's main thread.

    A second one, which finds the first at work, has no effect. An exception that is lost on its
    way, as Ctrl-C's is too, comes again until `rest` is called: Python ignores what callbacks of
    the garbage collector raise, and some libraries catch everything.
    """
    signal.signal(signal.SIGTERM, _raise)


def raise_on_sigint() -> None:
    """Lets SIGINT raise KeyboardInterrupt, also where this process was started with it ignored.

    Shells do so for what they start in the background, and Python leaves it so.
    """
    signal.signal(signal.SIGINT, _raise)


def rest() -> None:
    """Says that the exception has arrived where it ends the work."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _raise(signum: int, frame: object) -> NoReturn:
    if signum == signal.SIGTERM:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.disable()  # libraries would log, with a traceback, that they are interrupted
    kind = Terminated if signum == signal.SIGTERM else KeyboardInterrupt
    sys.unraisablehook = partial(_unless_of, kind)
    signal.signal(signal.SIGALRM, partial(_raise_again, kind))
    signal.siginterrupt(signal.SIGALRM, False)
    signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
    raise kind


def _raise_again(kind: type[BaseException], signum: int, frame: object) -> None:
    """Raises an exception unless it is on its way: then something is being tidied up."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, kind):
            return
        error = error.__context__
    raise kind


def _unless_of(kind: type[BaseException], lost: "sys.UnraisableHookArgs") -> None:
    """Says what Python ignores, except an exception that comes again."""
    if lost.exc_type is not kind:
        sys.__unraisablehook__(lost)


def end_with_parent() -> None:
    """Lets this process, one of multiprocessing, end at once when the one that started it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
