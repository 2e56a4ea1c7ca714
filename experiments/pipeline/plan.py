"""What a command will compute: said before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.pipeline.registry import stage_of
from experiments.pipeline.up_to_date import identity_of, reasons
from experiments.runs.records import read_record
from experiments.settings.flags import Experiment

_SHOWN = 3
"""Reasons that are named for a stage."""


@dataclass(frozen=True)
class Step:
    """One stage as it is planned."""

    stage: str
    why: str
    """Why it runs; empty where it is up to date."""
    seconds: float | None
    """How long it took last time; None where it never ran."""


def plan(
    experiment: Experiment, folder: Path, names: Sequence[str], data_dir: Path | None = None
) -> list[Step]:
    """Which stages will run, as far as is known before.

    A stage that reads what another will make runs only if that comes out different.

    Raises:
      FileNotFoundError: an earlier stage has not run and is not among `names`.
      ValueError: an earlier stage's settings or results are others, and it is not among `names`.
    """
    steps: list[Step] = []
    running: list[str] = []
    for name in names:
        stage = stage_of(name, experiment)
        record = read_record(folder, name)
        if before := [other for other in stage.after if other in running]:
            why = f"if {' or '.join(before)} comes out different" if record else "not run yet"
        else:
            identity = identity_of(stage, experiment, folder, data_dir)
            found = list(reasons(stage, identity, folder))
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            why = ", ".join(found[:_SHOWN]) + more
        if why:
            running.append(name)
        steps.append(Step(name, why, record["seconds"] if record else None))
    return steps


def in_words(steps: Sequence[Step]) -> list[str]:
    """A line a stage: whether it runs, why, and how long it took last time."""
    width = max(len(step.stage) for step in steps)
    return [
        f"  {step.stage:{width}}  "
        + (
            "up to date"
            if not step.why
            else step.why
            + ("" if step.seconds is None else f" (took {step.seconds:,.0f} s last time)")
        )
        for step in steps
    ]
