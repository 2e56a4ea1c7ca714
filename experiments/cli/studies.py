"""The command of a study: what it starts from, what it refuses, and what it says first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from experiments.cli.parsing import Options, parse_preset, say
from experiments.pipeline.registry import STAGES
from experiments.pipeline.up_to_date import differences
from experiments.runs.records import read_record
from experiments.runs.remembered import Remembered, as_leaves, recall, recall_run, remember
from experiments.settings.flags import Experiment
from experiments.studies.opening import Study
from experiments.system.errors import at_work
from experiments.system.processes import named_if_ended
from jaxcurv.storage.lock import lock

_FLAGS = "flags.json"


def run_study(study: Study[Any, Any], command: str, arguments: Sequence[str]) -> None:
    """Opens what a run left, and works on it in a folder of the command's own.

    Flags that are not given are as the run's folder and the study's remember them.

    Raises:
      ValueError: flags contradict what the run was made with.
    """
    options = _parse(study, command, arguments)
    settings = getattr(options, study.prefix)
    out = options.out / command if settings.out is None else settings.out
    stages = study.of if settings.out is not None else (*study.of, *study.beside)
    _require_recorded(options.experiment, options.out, stages, study)
    for line in _changes(study, options, settings, out):
        say(line)
    if options.dry_run:
        say(f"{command} would be computed into {out}")
        return
    given = {name: getattr(settings, name) for name in study.opened_with}
    opened = study.open(options.experiment, options.out, out, options.data_dir, **given)
    with lock(out), at_work(), named_if_ended(command):
        try:
            study.run(opened, options.experiment, settings, out)
        except Exception:
            raise  # perhaps for a flag
        except BaseException:  # an interruption: the same command goes on
            _remember(settings, out, arguments[0])
            raise
        _remember(settings, out, arguments[0])


def _remember(settings: Any, out: Path, preset: str) -> None:
    remember(out / _FLAGS, preset, asdict(replace(settings, out=None)))


def _parse(study: Study[Any, Any], command: str, arguments: Sequence[str]) -> Options:
    options = parse_preset(_kind(study, study.settings()), command, arguments)
    remembered = _recalled(options, study, command)
    if remembered is None:
        return options
    if remembered.preset != arguments[0]:
        raise ValueError(
            f"{remembered.path.parent} holds a study of {remembered.preset}: choose another folder "
            f"with --{study.prefix}.out"
        )
    start = remembered.applied_to(study.settings())
    return parse_preset(_kind(study, start), command, arguments)


def _kind(study: Study[Any, Any], start: Any) -> type[Options]:
    """The options of the command, its own flags with `start` as their default."""
    flags = [(study.prefix, study.settings, field(default_factory=lambda: start))]
    return make_dataclass("StudyOptions", flags, bases=(Options,), frozen=True)


def _recalled(options: Options, study: Study[Any, Any], command: str) -> Remembered | None:
    out = getattr(options, study.prefix).out
    return recall((options.out / command if out is None else out) / _FLAGS)


def _require_recorded(
    experiment: Experiment, folder: Path, stages: Sequence[str], study: Study[Any, Any]
) -> None:
    for name in stages:
        record = read_record(folder, name)
        if record and (differing := list(differences(STAGES[name], record, as_leaves(experiment)))):
            another = f", or give --{study.prefix}.out DIR" if name in study.beside else ""
            raise ValueError(
                f"{name} in {folder} was run with other flags ({', '.join(differing)}): leave them "
                f"out, or run {name} with them first{another}"
            )


def _changes(study: Study[Any, Any], options: Options, settings: Any, out: Path) -> list[str]:
    """A line for the run and one for the study, where flags change what they remember."""
    of_run = recall_run(options.out)
    own = recall(out / _FLAGS)
    changed = {
        options.out: of_run.changes(options.experiment) if of_run else [],
        out: own.changes(replace(settings, out=None), f"{study.prefix}.") if own else [],
    }
    return [f"{place} changes: {', '.join(flags)}" for place, flags in changed.items() if flags]
