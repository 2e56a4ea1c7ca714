"""The flags of commands; those of the stages are defined in `experiments.settings.flags`."""

import argparse
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TypeVar

from experiments.cli import arguments as command_line
from experiments.cli.descriptions import DOES
from experiments.runs.remembered import recall_run
from experiments.settings.flags import Experiment
from experiments.settings.presets import OWN, PRESETS
from experiments.settings.values import INLINE, dashed, positional

Parsed = TypeVar("Parsed")

ParsedOptions = TypeVar("ParsedOptions", bound="Options")


@dataclass(frozen=True)
class Options:
    """What a command is given besides its preset's name."""

    experiment: Experiment = field(metadata=INLINE)
    out: Path
    """Folder of the run. It keeps finished work and remembers the settings: later commands on it
    start from them."""
    data_dir: Path | None = None
    """Folder of the data sets; `none` is $TFDS_DATA_DIR if that is set, else
    ~/tensorflow_datasets."""
    dry_run: bool = False
    """Print what would change and what would be computed, then stop."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Merge:
    """Joins the shards that `score --shard` computed into one table."""

    out: Path = field(metadata=positional("OUT"))
    """Table to make: the path that `score --shard` was given as --out."""
    debug: bool = False
    """Show the traceback of an error."""


def parse(kind: type[Parsed], command: str, arguments: Sequence[str]) -> Parsed:
    """A command's flags.

    Raises:
      ValueError: a flag is not known, or a value is refused.
      SystemExit: help was asked for, and printed.
    """
    return command_line.parse(kind, f"python -m experiments {command}", arguments)


def parse_preset(
    kind: type[ParsedOptions],
    command: str,
    arguments: Sequence[str],
    *,
    experiment: Experiment | None = None,
) -> ParsedOptions:
    """The flags of a command that takes a preset's name first.

    Those not given are as in `experiment`, else as the folder --out remembers them, else the
    preset's.

    Raises:
      ValueError: no preset, an unknown one or another than the folder's is named, a flag is not
        known, or a value is refused.
      SystemExit: help was asked for, and printed.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"Usage: python -m experiments {command} PRESET [flags]")
        print(f"       python -m experiments {command} --model FACTORY --data FOLDER [flags]\n")
        print(f"{wrapped(f'{command}: {DOES[command]}', indent='')}\n")
        print("Presets, listed with what they run by `python -m experiments presets`:")
        print(wrapped(", ".join(PRESETS)))
        print(f"\nEvery flag: python -m experiments {command} PRESET --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        remembered = recall_run(folder_of(["", *arguments]))
        if remembered and remembered.preset:
            raise ValueError(f"{command} needs the run's preset: {command} {remembered.preset} ...")
        raise ValueError(
            f"{command} needs a preset: {', '.join(PRESETS)}; its flags: {command} PRESET --help"
        )
    name, *flags = arguments
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    out = folder_of(arguments)
    start = kind(PRESETS[name].experiment, out=Path("runs") / name)
    if remembered := recall_run(out):
        if remembered.preset not in (None, name):
            raise ValueError(
                f"{out} holds a run of {remembered.preset}: name that preset, or choose another "
                "folder with --out"
            )
        start = replace(start, experiment=remembered.applied_to(start.experiment))
    if experiment is not None:
        start = replace(start, experiment=experiment)
    starts = (
        f"Defaults are what {out} remembers: a flag changes one, and its former value changes it "
        "back."
        if remembered
        else f"Defaults are those of the preset {name}."
    )
    require = _require_own if name == OWN else lambda options: options
    what = f"{command}: {DOES[command]} Preset {name}: {PRESETS[name].description}."
    return require(
        command_line.parse(
            kind,
            f"python -m experiments {command} {name}",
            flags,
            description=f"{what} {_reads(start, command)}{starts}",
            default=start,
        )
    )


def with_own_preset(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with the preset of an own network, where `--model` or `--data` is among
    them, or no preset is named and the folder --out remembers it.

    Raises:
      ValueError: `--model` or `--data` has no value.
      FileNotFoundError: the folder of `--data` is not there.
    """
    given = list(arguments)
    if given[:1] == [OWN]:
        given = given[1:]
    elif not given or not given[0].startswith("-") or given[0] in ("-h", "--help"):
        return given
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--model")
    only.add_argument("--data")
    try:
        found, rest = only.parse_known_args(given)
    except argparse.ArgumentError as error:
        raise ValueError(f"{error.argument_name} needs a value") from error
    flags = [] if found.model is None else ["--model.factory", found.model]
    if found.data is not None:
        folder = Path(found.data).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no folder {folder} (--data)")
        flags += ["--data.name", str(folder.resolve())]
    if not flags and arguments[0] != OWN:
        remembered = recall_run(folder_of([OWN, *given]))
        if remembered is None or remembered.preset != OWN:
            return given
    return [OWN, *flags, *rest]


def _require_own(options: ParsedOptions) -> ParsedOptions:
    """Refuses the preset of an own network without one, or without images."""
    if options.experiment.model.factory is None or not options.experiment.data.name:
        raise ValueError(
            f"{OWN} is for a network of your own: give --model PACKAGE.MODULE:FACTORY and --data "
            "FOLDER, or the --out of a run that remembers them"
        )
    return options


def _reads(start: Options, command: str) -> str:
    """Which of the flags a stage or a study takes; "" where it is all of them."""
    from experiments.pipeline.registry import STAGES, stage_of

    common = {one.name for one in fields(Options)}
    if own := [one.name for one in fields(start) if one.name not in common]:
        return f"Its own flags are --{dashed(own[0])}.*; the others are the run's. "
    if command not in STAGES or command == "report":
        return ""
    named = []
    for setting in stage_of(command, start.experiment).settings:
        value = reduce(getattr, setting.split("."), start.experiment)
        named.append(f"--{dashed(setting)}{'.*' * is_dataclass(value)}")
    return f"It reads the flags {', '.join(named)}; the others are those of other stages. "


def wrapped(text: str, indent: str = "  ") -> str:
    """A text in lines that fit the terminal."""
    columns = shutil.get_terminal_size().columns
    return textwrap.fill(text, columns, initial_indent=indent, subsequent_indent=indent)


def folder_of(arguments: Sequence[str]) -> Path:
    """The folder --out among a command's arguments, the first of which is a preset's name."""
    default = Path("runs") / arguments[0]
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--out", type=Path, default=default)
    try:
        return Path(only.parse_known_args(list(arguments[1:]))[0].out)
    except argparse.ArgumentError:  # which is told when all flags are parsed
        return default
