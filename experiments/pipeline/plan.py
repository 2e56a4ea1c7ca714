"""The plan of a command: which stages will run, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.pipeline.registry import OF_CHIPS, stages_of
from experiments.pipeline.up_to_date import differences, identity_of, reasons
from experiments.runs.frameworks import framework_of, in_jax
from experiments.runs.records import read_record
from experiments.runs.remembered import as_leaves
from experiments.settings.flags import Experiment
from jaxcurv.nested import flatten

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
    experiment: Experiment,
    folder: Path,
    names: Sequence[str],
    images: Mapping[str, str] = {},
) -> list[Step]:
    """Which stages will run, as far as is known before.

    A stage that reads what another will make, and whose settings are as recorded, runs only if that
    comes out different. Stages that the run does not have are left out.

    Args:
      experiment: every setting.
      folder: the run's folder.
      names: which stages, in order.
      images: as for `identity_of`.

    Raises:
      FileNotFoundError: an earlier stage has not run and is not among `names`.
      ValueError: an earlier stage's settings or results are others, and it is not among `names`.
    """
    steps: list[Step] = []
    running: list[str] = []
    stages = stages_of(experiment, folder)
    unsure = framework_of(experiment, folder) is None and not in_jax(experiment)
    for name in filter(stages.__contains__, names):
        stage = stages[name]
        record = read_record(folder, name)
        before = [other for other in stage.after if other in running]
        if not before:
            identity = identity_of(stage, experiment, folder, images)
            found = list(reasons(stage, identity, folder))
        elif record is None:
            only = f", only if {experiment.model.factory} returns a torch module"
            found = ["not run yet" + only * (unsure and name in OF_CHIPS)]
        else:
            found = list(differences(stage, record, as_leaves(experiment)))
            found = found or [f"if {' or '.join(before)} comes out different"]
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        if why := ", ".join(found[:_SHOWN]) + more:
            running.append(name)
        steps.append(Step(name, why, record["seconds"] if record else None))
    return steps


def epochs_gone(experiment: Experiment, folder: Path) -> str:
    """A line where a finished training did not keep the epochs that are to be kept by now, which is
    no reason to train again; "" where it did.

    Args:
      experiment: every setting.
      folder: the run's folder.
    """
    record, every = read_record(folder, "train"), experiment.train.keep_every
    if record is None or every is None or not experiment.model.trained:
        return ""
    before = dict(flatten(record["settings"])).get("train.keep_every")
    if before is not None and every % before == 0:
        return ""
    kept = "the best and the newest epoch" if before is None else f"every {before} epochs"
    return (
        f"--train.keep-every {every} comes too late for {folder}: its finished training kept only "
        f"{kept}; to have more, train into another folder (--out)"
    )


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
