"""Parsing of flags by tyro; those of the stages are defined in `experiments.settings.flags`."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from experiments.runs.remembered import recall_run
from experiments.settings.flags import Experiment
from experiments.settings.presets import PRESETS

Parsed = TypeVar("Parsed")

ParsedOptions = TypeVar("ParsedOptions", bound="Options")


@dataclass(frozen=True)
class Options:
    """What a command is given besides its preset's name."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the results. Finished work is kept, and the settings are remembered: later commands
    there start from them, and a flag changes one."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    dry_run: bool = False
    """Say what would change and be computed, and stop."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Merge:
    """The table to make from what `score --shard` left."""

    out: tyro.conf.Positional[Path]
    """The table that `score --shard` was given as --out."""
    debug: bool = False
    """Show tracebacks."""


def parse(kind: type[Parsed], command: str, arguments: Sequence[str], **options: Any) -> Parsed:
    """A command's flags.

    Raises:
      ValueError: a setting is refused.
      SystemExit: a flag is, or help was asked for; both were printed.
    """
    return tyro.cli(kind, prog=f"python -m experiments {command}", args=arguments, **options)


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
      ValueError: no preset, an unknown one or another than the folder's is named, or a setting is
        refused.
      SystemExit: a flag is, or help was asked for; both were printed.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m experiments {command} PRESET [flags]")
        print(f"presets: {', '.join(PRESETS)}; every flag: {command} PRESET --help")
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
    return parse(
        kind,
        f"{command} {name}",
        flags,
        description=PRESETS[name].description,
        default=start,
        # Where a setting is one of several classes: the fields of its default are flags too.
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def say(line: str) -> None:
    """Prints a line on what a command does, on standard error."""
    print(line, file=sys.stderr)


def folder_of(arguments: Sequence[str]) -> Path:
    """The folder --out among a command's arguments, the first of which is a preset's name."""
    default = Path("runs") / arguments[0]
    only = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    only.add_argument("--out", type=Path, default=default)
    try:
        return Path(only.parse_known_args(list(arguments[1:]))[0].out)
    except argparse.ArgumentError:  # which is told when all flags are parsed
        return default
