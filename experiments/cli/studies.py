"""The command of a study: what it starts from, what it refuses, and what it says first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, field, make_dataclass, replace
from pathlib import Path
from typing import Any

from experiments.cli.parsing import Options, parse_preset
from experiments.cli.words import say
from experiments.pipeline.registry import stages_of
from experiments.pipeline.up_to_date import contradictions
from experiments.runs.files import require_writable
from experiments.runs.frameworks import require_chips
from experiments.runs.remembered import recall, recall_run, remember
from experiments.settings.presets import flag_name
from experiments.settings.renamed import RENAMED_COMMANDS
from experiments.studies.opening import Study
from experiments.system.errors import at_work
from experiments.system.processes import Terminated, named_if_ended
from jaxcurv.storage.lock import lock

_FLAGS, _STUDY, _RUN = "flags.json", "study", "run"


def run_study(study: Study[Any, Any], command: str, arguments: Sequence[str]) -> None:
    """Opens what a run left, and works on it in a folder of the command's own.

    Flags that are not given are as the run's folder and the study's remember them.

    Raises:
      ValueError: flags contradict what the run was made with.
    """
    options = _parse(study, command, arguments)
    settings = getattr(options, study.prefix)
    out = _folder(options, study, command)
    if "export" in study.of:
        require_chips(options.experiment, options.out, command)
    if out.resolve() == options.out.resolve():
        raise ValueError(
            f"{flag_name(study.prefix)}.out {out} is the run's own folder, whose files {command} "
            "would replace: choose another"
        )
    stages = study.of if settings.out is not None else (*study.of, *study.beside)
    of_run = stages_of(options.experiment, options.out)  # chips in JAX need no export
    there = [name for name in stages if name in of_run]
    for name, why in contradictions(there, options.experiment, options.out):
        another = f", or give {flag_name(study.prefix)}.out DIR" if name in study.beside else ""
        raise ValueError(f"{name} in {options.out} {why}, or run {name} again first{another}")
    for line in [*_changes(study, options, out), *_left_behind(out)]:
        say(line)
    if options.dry_run:
        say(f"{command} would be computed into {out}")
        return
    given = {name: getattr(settings, name) for name in study.opened_with}
    opened = study.open(options.experiment, options.out, options.data_dir, **given)
    require_writable(out, "--out" if settings.out is None else f"{flag_name(study.prefix)}.out")

    def remember_flags() -> None:
        own = {_STUDY: asdict(replace(settings, out=None)), _RUN: asdict(options.experiment)}
        remember(out / _FLAGS, arguments[0], own)

    with lock(out), at_work(), named_if_ended(command):
        try:
            study.run(opened, options.experiment, settings, out)
        except (KeyboardInterrupt, Terminated):  # the same command goes on
            remember_flags()
            raise
        remember_flags()


def _parse(study: Study[Any, Any], command: str, arguments: Sequence[str]) -> Options:
    options = parse_preset(_kind(study, study.settings()), command, arguments)
    remembered = recall(_folder(options, study, command) / _FLAGS)
    if remembered is None:
        return options
    if remembered.preset != arguments[0]:
        raise ValueError(
            f"{remembered.path.parent} holds a study of {remembered.preset}: choose another folder "
            f"with {flag_name(study.prefix)}.out"
        )
    kind = _kind(study, remembered.part(_STUDY).applied_to(study.settings()))
    if getattr(options, study.prefix).out is None:
        return parse_preset(kind, command, arguments)
    # A folder of its own may be of other chips than the run's.
    experiment = remembered.part(_RUN).applied_to(options.experiment)
    return parse_preset(kind, command, arguments, experiment=experiment)


def _kind(study: Study[Any, Any], start: Any) -> type[Options]:
    """The options of the command, its own flags with `start` as their default."""
    flags = [(study.prefix, study.settings, field(default_factory=lambda: start))]
    return make_dataclass("StudyOptions", flags, bases=(Options,), frozen=True)


def _left_behind(out: Path) -> list[str]:
    """A line where the results of this study lie under a name that it had once."""
    former = [out.parent / old for old, new in RENAMED_COMMANDS.items() if new == out.name]
    return [
        f"{old} has the results of an earlier version: rename it to {out.name} to go on from them, "
        "or delete it"
        for old in former
        if old.is_dir() and not out.exists()
    ]


def _folder(options: Options, study: Study[Any, Any], command: str) -> Path:
    out = getattr(options, study.prefix).out
    return options.out / command if out is None else out


def _changes(study: Study[Any, Any], options: Options, out: Path) -> list[str]:
    """A line for the run's settings and one for the study's, where they are not as remembered."""
    settings = replace(getattr(options, study.prefix), out=None)
    own, of_run = recall(out / _FLAGS), recall_run(options.out)
    flags = own.part(_STUDY).changes(settings, f"{study.prefix}.") if own else []
    if own and getattr(options, study.prefix).out is not None:
        flags += own.part(_RUN).changes(options.experiment)
        of_run = None
    others = of_run.changes(options.experiment) if of_run else []
    said = [f"other than in {options.out}: {', '.join(others)}"] if others else []
    return said + ([f"{out} changes: {', '.join(flags)}"] if flags else [])
