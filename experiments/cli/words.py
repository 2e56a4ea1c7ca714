"""What is typed, in the words of today, and what is said about it on standard error."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence

from experiments.settings.renamed import RENAMED_COMMANDS, RETIRED_SETTINGS, current_name

_CHOICE = re.compile(r"(simulate\.pcm\.converter):([a-z-]+)")
"""A word that chose a weight-to-conductance mapping once."""


def say(line: str) -> None:
    """Prints a line on what a command does, on standard error."""
    print(line, file=sys.stderr)


def with_current_words(arguments: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """A command line whose command and flags have the names of today; says each that had not, and
    each flag that is gone, which is left out with its value."""
    command, *rest = arguments
    if command in RENAMED_COMMANDS:
        say(f"note: {command} is now called {RENAMED_COMMANDS[command]}")
    words = [RENAMED_COMMANDS.get(command, command)]
    gone = False
    for word in rest:
        if gone and not word.startswith("--"):
            gone = False
            continue
        setting = _setting(word.partition("=")[0])
        gone = setting in RETIRED_SETTINGS
        if gone:
            say(f"note: {_flag(setting)} is gone, and left out: {RETIRED_SETTINGS[setting]}")
            gone = "=" not in word
            continue
        now = list(_current(word))
        if now != [word]:
            say(f"note: {word.partition('=')[0]} is now called {' '.join(now).partition('=')[0]}")
        words += now
    return words


def _current(word: str) -> Iterator[str]:
    if choice := _CHOICE.fullmatch(word):
        yield from (_flag(current_name(choice[1])), choice[2].replace("-", "_"))
    elif word.startswith("--"):
        flag, equals, value = word.partition("=")
        setting = _setting(flag)
        now = current_name(setting)
        yield word if now == setting else f"{_flag(now)}{equals}{value}"
    else:
        yield word


def _setting(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _flag(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"
