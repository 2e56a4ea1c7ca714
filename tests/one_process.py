"""The command line with its stages in this process: each in a process of its own imports anew."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.cli import commands
from experiments.pipeline import runner


class _EndedError(Exception):
    pass


@contextlib.contextmanager
def stages_in_this_process() -> Iterator[None]:
    def end(code: int) -> None:
        raise _EndedError(code)

    def exit_code_of(name: str, *work: object) -> int:
        try:
            runner._work(name, *work)  # type: ignore[arg-type]
        except _EndedError as ended:
            return ended.args[0]
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")  # which some stages set
        patch.setattr(runner, "_exit_code_of", exit_code_of)
        patch.setattr(runner, "_end", end)
        patch.setattr(runner, "raise_on_sigterm", lambda: None)
        patch.setattr(runner, "raise_on_sigint", lambda: None)
        patch.setattr(runner, "end_with_parent", lambda: None)
        yield


def succeed(*arguments: str | Path) -> tuple[str, str]:
    """What a command prints to standard output and to standard error; it must succeed."""
    output, errors = io.StringIO(), io.StringIO()
    with (
        stages_in_this_process(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        code = commands.run([str(argument) for argument in arguments])
    assert code == 0, errors.getvalue()
    return output.getvalue(), errors.getvalue()


def refuse(*arguments: str | Path) -> str:
    """What a command says to standard error; it must fail."""
    errors = io.StringIO()
    with (
        stages_in_this_process(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(errors),
    ):
        assert commands.run([str(argument) for argument in arguments])
    return errors.getvalue()
