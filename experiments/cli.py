"""The command line: `python -m experiments COMMAND PRESET [flags]`, also installed as `jaxcurv`.

Exit codes: 0 done, 1 an error in a stage, 2 a wrong command line or a run that cannot start,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

from experiments import pipeline
from experiments.presets import PRESETS
from experiments.records import STAGE_NAMES, recorded_settings
from experiments.settings import Experiment

_USAGE = f"""\
usage: python -m experiments run PRESET [flags]      the whole path, from images to report
       python -m experiments STAGE PRESET [flags]    one of: {", ".join(STAGE_NAMES)}
       python -m experiments presets                 the presets
       python -m experiments run PRESET --help       every flag"""


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


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns the process's exit code."""
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    if command == "presets":
        _print_presets()
        return 0
    if command not in ("run", *STAGE_NAMES):
        return _refuse(f"unknown command {command!r}; use run, presets, {', '.join(STAGE_NAMES)}")
    if len(arguments) < 2 or arguments[1].startswith("-"):
        return _refuse(f"{command} needs a preset: {', '.join(PRESETS)}")
    preset = arguments[1]
    if preset not in PRESETS:
        return _refuse(f"unknown preset {preset!r}; the presets are {', '.join(PRESETS)}")

    default = Options(PRESETS[preset].experiment, out=Path("runs") / preset)
    try:
        options = tyro.cli(
            Options,
            prog=f"python -m experiments {command} {preset}",
            description=PRESETS[preset].description,
            default=default,
            args=arguments[2:],
        )
    except ValueError as error:
        return _refuse(str(error))
    names = STAGE_NAMES if command == "run" else (command,)
    console = Console(stderr=True, highlight=False)
    try:
        pipeline.run(
            options.experiment,
            options.out,
            names,
            data_dir=options.data_dir,
            debug=options.debug,
            say=console.print,
        )
    except pipeline.StageFailed as failure:
        return failure.exit_code
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 2
    if names[-1] == "report":
        _print_result(options.out)
    return 0


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _print_presets() -> None:
    table = Table("preset", "what it runs")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    Console().print(table)


def _print_result(folder: Path) -> None:
    import pandas as pd

    from experiments import analysis

    deciles = pd.read_parquet(folder / "deciles.parquet")
    correlations = pd.read_parquet(folder / "correlations.parquet")
    drift_seconds = recorded_settings(folder)["simulate"]["pcm"]["t_inference"]
    analysis.render_deciles(deciles, drift_seconds=drift_seconds)
    for sentence in analysis.answers(deciles, correlations, drift_seconds=drift_seconds):
        print(sentence)
    print(f"\nReport: {folder / 'report.html'}")
