"""Whether a stage is up to date: what decides its result, compared with the stage's record."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.pipeline.registry import STAGES, Stage
from experiments.runs.files import sha256
from experiments.runs.records import read_record
from experiments.settings.flags import Experiment
from experiments.system.environment import package_versions


def identity_of(stage: Stage, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """What decides the stage's result: settings, versions and the hashes of its inputs.

    Raises:
      FileNotFoundError: an earlier stage has not run.
      ValueError: what it wrote has changed since, or was made with other settings.
    """
    # Through JSON, so that it compares equal to what is read back from a record.
    settings = json.loads(json.dumps(dataclasses.asdict(experiment)))
    inputs = {}
    for name in _before(stage):
        record = read_record(folder, name)
        if record is None:
            raise FileNotFoundError(
                f"{stage.name} needs the results of {name} in {folder}: run {name} first"
            )
        for key, value in record["settings"].items():
            if settings[key] != value:
                differing = ", ".join(_differing(key, value, settings[key]))
                raise ValueError(
                    f"{name} in {folder} was run with other flags ({differing}): give the same, or "
                    f"run {name} again"
                )
        for output, digest in record["outputs"].items() if name in stage.after else ():
            if not (folder / output).exists() or sha256(folder / output) != digest:
                raise ValueError(
                    f"{folder / output} is not as {name} wrote it: run {name} again before "
                    f"{stage.name}"
                )
            inputs[output] = digest
    inputs |= {str(path): sha256(path) for path in stage.reads}
    inputs |= {name: sha256(folder / name) for name in stage.shows if (folder / name).exists()}
    return {
        "settings": {name: settings[name] for name in stage.settings},
        "inputs": inputs,
        "versions": package_versions(stage.packages),
    }


def _before(stage: Stage) -> list[str]:
    """The stages that lead to this one, in order."""
    needed = set(stage.after).union(*(_before(STAGES[name]) for name in stage.after))
    return [name for name in STAGES if name in needed]


def _differing(name: str, was: Any, now: Any) -> Iterator[str]:
    """The flags of a setting, or of a group of settings, that are not as they were."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            yield from _differing(f"{name}.{key}", was.get(key), now.get(key))
    elif was != now:
        yield f"--{name.replace('_', '-')} was {was}, is {now}"


def is_up_to_date(stage: Stage, identity: dict[str, Any], folder: Path) -> bool:
    """Whether the stage's record has this identity and its outputs are as it wrote them.

    Args:
      stage: the stage.
      identity: what decides its result now, as `identity_of` returns it.
      folder: folder of the run.
    """
    record = read_record(folder, stage.name)
    return (
        record is not None
        and all(record[key] == value for key, value in identity.items())
        and all(
            (folder / name).exists() and sha256(folder / name) == digest
            for name, digest in record["outputs"].items()
        )
    )
