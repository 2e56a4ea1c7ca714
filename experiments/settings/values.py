"""The values of flags: from the words of a command line, and back into words for its help."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

NONE = "none"
"""The word for None."""

INLINE = {"inline": True}
"""Metadata of a field whose own fields are flags without a prefix."""

_KINDS: dict[type, tuple[str, str]] = {
    int: ("N", "a whole number such as 10"),
    float: ("NUMBER", "a number such as 0.5"),
    str: ("TEXT", "a text"),
    Path: ("PATH", "a path"),
}
"""For each plain type its place holder in a help, and what is asked for in an error."""

_LONG = 40
"""Characters of choices beyond which they do not stand beside the flag's name."""


def positional(name: str) -> dict[str, str]:
    """Metadata of a field that is given by its place, with what stands for it in the help."""
    return {"positional": name}


def value_of(hint: Any, words: Sequence[str]) -> Any:
    """The value that words on the command line stand for.

    Args:
      hint: the setting's type: a plain type or path, a Literal, a tuple of these of any length, or
        a union of them with each other or None. A tuple within a tuple is one word with commas.
      words: the words; one, unless the type is a tuple. In one of several choices `-` and `_` are
        the same.

    Raises:
      ValueError: they are no such value; says which are.
    """
    kinds = list(_kinds(hint))
    if NoneType in kinds and [word.lower() for word in words] == [NONE]:
        return None
    if (items := _items(hint)) is not None:
        return tuple(_one(items, word) for word in words)
    (word,) = words
    return _one(hint, word)


def takes_several(hint: Any) -> bool:
    """Whether a setting of this type takes any number of words."""
    return _items(hint) is not None


def choices(hint: Any) -> tuple[str, ...]:
    """The words that a setting takes, or each word of a tuple; empty where others are taken too."""
    items = _items(hint)
    kinds = [kind for kind in _kinds(hint if items is None else items) if kind is not NoneType]
    if all(get_origin(kind) is Literal for kind in kinds):
        return tuple(str(choice) for kind in kinds for choice in get_args(kind))
    return ()


def place_holder(hint: Any) -> str:
    """What stands for a value in the help, such as `N` or `fast|slow`."""
    items = _items(hint)
    kinds = [*_kinds(hint if items is None else items)]
    if items is not None and NoneType in _kinds(hint):
        kinds.append(NoneType)
    words = [_placed(kind) for kind in kinds]
    return "|".join(words) if len("|".join(words)) <= _LONG else "NAME"


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if value is None:
        return NONE
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(shown, value)) or "no value"
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)


def words(value: Any) -> list[str]:
    """The words that give a value, exactly, on the command line."""
    if isinstance(value, tuple | list):
        return [
            ",".join(map(str, one)) if isinstance(one, tuple | list) else str(one) for one in value
        ]
    return [NONE if value is None else str(value)]


def class_word(kind: type) -> str:
    """The word that chooses a class of settings, such as `mapped_pairs`."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower()


def dashed(setting: str) -> str:
    """A setting's name as its flag has it."""
    return setting.replace("_", "-")


def _one(hint: Any, word: str) -> Any:
    for kind in _kinds(hint):
        try:
            return _read(kind, word)
        except ValueError:
            continue
    asked = [_asked(kind) for kind in _kinds(hint) if kind is not NoneType]
    if NoneType in _kinds(hint):
        asked.append(NONE)
    raise ValueError(f"cannot be {word!r}: give {', or '.join(asked)}")


def _read(kind: Any, word: str) -> Any:
    if get_origin(kind) is Literal:
        named = {dashed(str(choice)): choice for choice in get_args(kind)}
        if dashed(word) not in named:
            raise ValueError
        return named[dashed(word)]
    if get_origin(kind) is tuple:
        return tuple(_one(get_args(kind)[0], part) for part in word.split(","))
    if kind is NoneType:
        raise ValueError
    return kind(word)


def _kinds(hint: Any) -> Iterator[Any]:
    """The alternatives of a union; else the type itself."""
    if get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from _kinds(one)
    else:
        yield NoneType if hint is None else hint


def _items(hint: Any) -> Any:
    """The type of a tuple's items; None where the type is no tuple."""
    return next((get_args(kind)[0] for kind in _kinds(hint) if get_origin(kind) is tuple), None)


def _placed(kind: Any) -> str:
    if kind is NoneType:
        return NONE
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"{_placed(get_args(kind)[0])},..."
    return _KINDS[kind][0]


def _asked(kind: Any) -> str:
    if get_origin(kind) is Literal:
        one, *more = map(str, get_args(kind))
        return f"one of {', '.join((one, *more))}" if more else one
    if get_origin(kind) is tuple:
        return "numbers with commas between them such as 0,12.5,25"
    return _KINDS[kind][1]
