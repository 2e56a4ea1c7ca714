"""Dataclasses of settings as command lines: every field a flag, its docstring the flag's help.

A field that is a dataclass makes a group of flags, `--group.field`. One that is one of several
dataclasses makes a flag that chooses among them and a group for the fields of all.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_type_hints

from experiments.cli.field_docs import field_docs, first_paragraph
from experiments.settings.values import (
    choices,
    class_word,
    dashed,
    place_holder,
    shown,
    takes_several,
    value_of,
)

Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Flag:
    """One setting that the command line can give."""

    setting: str
    """Its dotted name."""
    hint: Any
    """Its type."""
    about: str
    """The help, without the default."""
    default: str | None
    """The default in words; None where the flag must be given."""
    place: str | None = None
    """What stands for it in the help where it is given by its place."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        return self.place or f"--{dashed(self.setting)}"


@dataclass(frozen=True)
class Group:
    """Flags with a prefix in common."""

    prefix: str
    """The prefix, empty or ending in a dot."""
    about: str
    flags: tuple[Flag, ...]


class _Formatter(argparse.HelpFormatter):
    """Help in the whole width of the terminal, a flag's text below its name."""

    def __init__(self, prog: str) -> None:
        columns = shutil.get_terminal_size().columns
        super().__init__(prog, max_help_position=6, width=columns)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return textwrap.indent("\n".join(self._split_lines(text, width)), indent)

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        super().add_usage(usage, actions, groups, "Usage: " if prefix is None else prefix)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def _print_message(self, message: str, file: Any = None) -> None:
        print(message, end="", file=file)  # argparse's hides that nobody reads it any more

    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument (.*): expected .* arguments?$", r"\1 needs a value", message)
        message = re.sub("^the following .* required: (.*)$", r"\1 must be given", message)
        raise ValueError(f"{message.removeprefix('argument ')} {_see_help(self.prog)}")


def parse(
    kind: type[Parsed],
    prog: str,
    arguments: Sequence[str],
    *,
    default: Parsed | None = None,
    description: str | None = None,
) -> Parsed:
    """The settings that a command line gives.

    Args:
      kind: a dataclass.
      prog: what is typed before the flags.
      arguments: the words after it. A `_` in a flag's name is as good as a `-`.
      default: what is not given is as in this one, else as the dataclass has it.
      description: the first lines of the help; else the first paragraph of the class's docstring.

    Raises:
      ValueError: a flag is not known, or a value is refused.
      SystemExit: help was asked for, and printed.
    """
    groups = list(_groups(kind, default))
    flags = {flag.setting: flag for group in groups for flag in group.flags}
    parser = _parser(prog, groups, description or first_paragraph(kind))
    found, unknown = parser.parse_known_args([_with_dashes(word) for word in arguments])
    if unknown:
        raise ValueError(f"{_unknown(unknown, list(flags.values()))} {_see_help(prog)}")
    given: dict[str, Any] = {}
    for setting, raw in vars(found).items():
        flag = flags[setting]
        try:
            several = isinstance(raw, list)
            given[setting] = (
                raw if flag.hint is bool else value_of(flag.hint, raw if several else [raw])
            )
        except ValueError as error:
            raise ValueError(f"{flag.name} {error} {_see_help(prog)}") from None
    built: Parsed = _build(kind, default, given, "")
    return built


def _parser(prog: str, groups: Sequence[Group], description: str) -> _Parser:
    places = [flag for group in groups for flag in group.flags if flag.place]
    usage = [prog, *(_placed(flag) for flag in places), "[flags]"]
    parser = _Parser(
        prog=prog,
        usage=" ".join(usage),
        description=_escaped(description),
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if places:
        arguments = parser.add_argument_group("Arguments")
        for flag in places:
            arguments.add_argument(
                flag.setting, metavar=flag.place, nargs=_nargs(flag), help=_help(flag)
            )
    for group in groups:
        named = [flag for flag in group.flags if not flag.place]
        shown_group = parser.add_argument_group(
            f"Flags --{dashed(group.prefix)}*" if group.prefix else "Flags",
            _escaped(group.about) or None,
        )
        if not group.prefix:
            shown_group.add_argument("-h", "--help", action="help", help="Show this help and stop.")
        for flag in named:
            add = partial(shown_group.add_argument, dest=flag.setting, help=_help(flag))
            if flag.hint is bool:
                before, dot, last = flag.name.removeprefix("--").rpartition(".")
                add(flag.name, f"--{before}{dot}no-{last}", action=_Switch, nargs=0)
            else:
                add(
                    flag.name,
                    nargs="*" if takes_several(flag.hint) else None,
                    metavar=place_holder(flag.hint),
                    required=flag.default is None,
                )
    return parser


class _Switch(argparse.Action):
    """`--flag` for true, `--no-flag` for false."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, option_string == self.option_strings[0])


def _groups(kind: Any, default: Any, prefix: str = "", about: str = "") -> Iterator[Group]:
    """The flags of a dataclass: its own first, then those of the dataclasses in it."""
    own: list[Flag] = []
    nested: list[Group] = []
    inline: list[Group] = []
    docs, hints = field_docs(kind), get_type_hints(kind)
    for field in fields(kind):
        hint, setting = hints[field.name], f"{prefix}{field.name}"
        value, text = _start(field, default), docs.get(field.name, "")
        if is_dataclass(hint):
            if field.metadata.get("inline"):
                inner, *inline = _groups(hint, value, prefix)
                own += inner.flags
            else:
                text = text or first_paragraph(hint)  # type: ignore[arg-type]
                nested += _groups(hint, value, f"{setting}.", text)
        elif classes := _classes(hint):
            nested.append(_choice(classes, value, setting, text))
        else:
            text += _choices_in_words(hint)
            place = field.metadata.get("positional")
            words = None if value is MISSING else "" if place else shown(value)
            own.append(Flag(setting, hint, text, words, place))
    yield Group(prefix, about, tuple(own))
    yield from (*nested, *inline)


def _choice(classes: Mapping[str, type], value: Any, setting: str, about: str) -> Group:
    """The flag that chooses one of several classes, and those for the fields of all of them."""
    present = class_word(type(value))
    flags = [Flag(setting, Literal[tuple(classes)], about, present)]
    names = dict.fromkeys(field.name for kind in classes.values() for field in fields(kind))
    for name in names:
        having = {word: kind for word, kind in classes.items() if name in _names(kind)}
        text = next(doc for kind in having.values() if (doc := field_docs(kind).get(name)))
        if len(having) < len(classes):
            text = f"Only with {' or '.join(having)}. {text}"
        defaults = {word: _start(_names(kind)[name], None) for word, kind in having.items()}
        words = "; ".join(
            f"{shown(one)} for {word}" for word, one in defaults.items() if one is not MISSING
        )
        if hasattr(value, name):
            words = shown(getattr(value, name))
        (kind, *_) = having.values()
        flags.append(Flag(f"{setting}.{name}", get_type_hints(kind)[name], text, words))
    return Group(f"{setting}.", "", tuple(flags))


def _build(kind: Any, default: Any, given: Mapping[str, Any], prefix: str) -> Any:
    """The dataclass, from what was given and the default for the rest."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for field in fields(kind):
        hint, setting = hints[field.name], f"{prefix}{field.name}"
        start = _start(field, default)
        if is_dataclass(hint):
            inner = prefix if field.metadata.get("inline") else f"{setting}."
            values[field.name] = _build(hint, start, given, inner)
        elif classes := _classes(hint):
            values[field.name] = _build_choice(classes, start, given, setting)
        else:
            values[field.name] = given.get(setting, start)
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(_of_flags(str(error), prefix, list(values))) from error


def _of_flags(message: str, prefix: str, names: Sequence[str]) -> str:
    """The message of a dataclass; a field's name that it begins with becomes the flag's."""
    first = re.match(r"\w+", message)
    if first and first[0] in names:
        return f"--{dashed(prefix + first[0])}{message.removeprefix(first[0])}"
    return f"--{dashed(prefix)}*: {message}" if prefix else message


def _build_choice(
    classes: Mapping[str, type], default: Any, given: Mapping[str, Any], setting: str
) -> Any:
    """One of several dataclasses."""
    word = given.get(setting, class_word(type(default)))
    kind, flag = classes[word], f"--{dashed(setting)}"
    for name in given:
        field = name.removeprefix(f"{setting}.")
        if field != name and field not in _names(kind):
            others = [other for other, one in classes.items() if field in _names(one)]
            raise ValueError(
                f"--{dashed(name)} is not for {word}: give {flag} {' or '.join(others)} with it"
            )
    start = default if type(default) is kind else None
    values = {
        name: given.get(f"{setting}.{name}", _start(field, start))
        for name, field in _names(kind).items()
    }
    if missing := [name for name, value in values.items() if value is MISSING]:
        flags = " and ".join(f"{flag}.{dashed(name)}" for name in missing)
        raise ValueError(f"{flag} {word} needs {flags}")
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{flag} {word}: {error}") from error


def _classes(hint: Any) -> dict[str, type]:
    """The dataclasses of a union, by the words that choose them; empty for any other type."""
    kinds = get_args(hint)
    return (
        {class_word(one): one for one in kinds} if kinds and all(map(is_dataclass, kinds)) else {}
    )


def _names(kind: Any) -> dict[str, Any]:
    return {field.name: field for field in fields(kind)}


def _start(field: Any, default: Any) -> Any:
    """A field's value in `default`; without one, its own default, MISSING if it has none."""
    if default is not None and default is not MISSING:
        return getattr(default, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _choices_in_words(hint: Any) -> str:
    names = choices(hint)
    several = " or several" if takes_several(hint) else ""
    return f" One{several} of {', '.join(names)}." if names and place_holder(hint) == "NAME" else ""


def _help(flag: Flag) -> str:
    text = flag.about.replace("`", '"')
    ending = "required" if flag.default is None else f"default: {flag.default}"
    return _escaped(f"{text} ({ending})") if flag.default != "" else _escaped(text)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _nargs(flag: Flag) -> str | None:
    if takes_several(flag.hint):
        return "*"
    return None if flag.default is None else "?"


def _placed(flag: Flag) -> str:
    return f"[{flag.place} ...]" if takes_several(flag.hint) else str(flag.place)


def _with_dashes(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"{dashed(name)}{equals}{value}"


def _unknown(words: Sequence[str], flags: Sequence[Flag]) -> str:
    first = words[0]
    if not first.startswith("-"):
        return f"unexpected {first!r}: names of flags begin with --"
    name = first.partition("=")[0]
    names = [flag.name for flag in flags]
    near = [other for other in names if other.endswith(f".{name.lstrip('-')}")]
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.75)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"there is no flag {name}{meant}"


def _see_help(prog: str) -> str:
    return f"(every flag: {prog} --help)"
