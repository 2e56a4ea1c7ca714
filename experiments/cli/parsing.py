"""Parsing of flags by tyro; those of the stages are defined in `experiments.settings.flags`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from experiments.settings.flags import Experiment
from experiments.settings.presets import PRESETS

Parsed = TypeVar("Parsed")

ParsedOptions = TypeVar("ParsedOptions", bound="Options")


@dataclass(frozen=True)
class Options:
    """What a command is given besides its preset's name."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the results; an interrupted or changed run goes on from what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Merge:
    """Which table is made of its pieces."""

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
    kind: type[ParsedOptions], command: str, arguments: Sequence[str]
) -> ParsedOptions:
    """The flags of a command that takes a preset's name first; those not given are the preset's.

    Raises:
      ValueError: no preset or an unknown one is named, or a setting is refused.
      SystemExit: a flag is, or help was asked for; both were printed.
    """
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m experiments {command} PRESET [flags]")
        print(f"presets: {', '.join(PRESETS)}; every flag: {command} PRESET --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(
            f"{command} needs a preset: {', '.join(PRESETS)}; its flags: {command} PRESET --help"
        )
    name, *flags = arguments
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    default = kind(preset.experiment, out=Path("runs") / name)
    return parse(
        kind,
        f"{command} {name}",
        flags,
        description=preset.description,
        default=default,
        # Where a setting is one of several classes: the fields of its default are flags too.
        config=(tyro.conf.CascadeSubcommandArgs,),
    )
