"""How a process ends: by SIGTERM, as an exception so that files are whole, or with its parent."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT
"""Exit code after Ctrl-C."""

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""

AGAIN_SECONDS = 0.05
"""Until a signal whose exception was lost is sent again: what loses it is over by then."""


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

    A second one, which finds the first at work, has no effect. Where the exception, or that of
    Ctrl-C, would be lost, in a callback of the garbage collector, say, it comes again.
    """
    signal.signal(signal.SIGTERM, _raise)
    sys.unraisablehook = _raise_again


def raise_on_sigint() -> None:
    """Lets SIGINT raise KeyboardInterrupt, also where this process was started with it ignored.

    Shells do so for what they start in the background, and Python leaves it so.
    """
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: object) -> NoReturn:
    logging.disable()  # as below
    raise KeyboardInterrupt


def _raise(signum: int, frame: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.disable()  # libraries would log, with a traceback, that they are interrupted
    raise Terminated


def _raise_again(lost: "sys.UnraisableHookArgs") -> None:
    sent = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}.get(lost.exc_type)
    if sent is None:
        sys.__unraisablehook__(lost)
        return
    if sent == signal.SIGTERM:
        signal.signal(signal.SIGTERM, _raise)
    threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), sent)).start()


def end_with_parent() -> None:
    """Lets this process, one of multiprocessing, end at once when the one that started it does."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
