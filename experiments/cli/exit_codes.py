"""Exit codes: what a command's end tells the shell."""

import os
import sys
from collections.abc import Callable

from experiments.system import errors
from experiments.system.errors import WorkFailed
from experiments.system.processes import INTERRUPTED, TERMINATED, Terminated, rest


def exit_code_of(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """The exit code of a command, whose error is one line on standard error.

    Args:
      work: the command; returns its exit code, None for 0.
      debug: show tracebacks.
    """
    try:
        try:
            code = work() or 0
        except SystemExit as end:  # help was printed
            code = int(end.code or 0)
        sys.stdout.flush()  # now, while a reader that has gone can be told from an error
        return code
    except KeyboardInterrupt:
        rest()
        return INTERRUPTED
    except Terminated:
        rest()
        return TERMINATED
    except errors.StageFailed as failure:
        return failure.exit_code
    except Exception as error:
        shown = error.error if isinstance(error, WorkFailed) else error
        if isinstance(shown, BrokenPipeError) and _is_unread():
            return 1
        errors.show_error(shown, debug)
        return 2 if isinstance(error, ValueError | OSError | ImportError) else 1


def _is_unread() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; Python's end is then quiet.

    A broken pipe may be another one, such as that to a stage's process.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
