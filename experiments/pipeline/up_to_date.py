"""Whether a stage is up to date: what decides its result, compared with the stage's record.

The settings that it reads and the hashes of its inputs decide it. Versions of packages are recorded
and decide nothing: where they differ, that is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.pipeline.registry import LATER, SPEED, STAGES, Stage, stage_of, stages_of
from experiments.runs.files import sha256
from experiments.runs.records import default_of, read_record
from experiments.runs.remembered import as_leaves
from experiments.settings.flags import Experiment
from experiments.settings.presets import flag_name
from jaxcurv.nested import flatten, nest

Identity = dict[str, Any]
"""What decides a stage's result, as JSON holds it: `settings`, nested, and `inputs`, a hash by
file."""


def identity_of(
    stage: Stage, experiment: Experiment, folder: Path, images: Mapping[str, str] = {}
) -> Identity:
    """What decides the stage's result: the settings that it reads and the hashes of its inputs.

    A stage that reads a folder of images has their listing as an input.

    Args:
      stage: the stage.
      experiment: every setting.
      folder: the run's folder.
      images: `jaxcurv.data.datasets.listing` of the data set.

    Raises:
      FileNotFoundError: an earlier stage has not run.
      ValueError: what it wrote has changed since, or was made with other settings or of other
        inputs than those that are there.
    """
    inputs = {}
    stages = stages_of(experiment, folder)
    before = _before(stage, stages)
    for name in before:
        if read_record(folder, name) is None:
            raise FileNotFoundError(
                f"{stage.name} needs the results of {name} in {folder}: run {name} first"
            )
    for name, why in contradictions(before, experiment, folder, images):
        raise ValueError(f"{name} in {folder} {why}, or run {name} again")
    for name in stage.after:
        record = read_record(folder, name)
        assert record is not None
        for output, digest in record["outputs"].items():
            if not (folder / output).exists() or sha256(folder / output) != digest:
                raise ValueError(
                    f"{folder / output} is not as {name} wrote it: run {name} again before "
                    f"{stage.name}"
                )
            inputs[output] = digest
    inputs |= {str(path): sha256(path) for path in stage.reads}
    inputs |= {name: sha256(folder / name) for name in stage.shows if (folder / name).exists()}
    inputs |= _images_of(stage, experiment, images)
    read = {name: value for name, value in as_leaves(experiment).items() if _reads(stage, name)}
    return {"settings": nest(read), "inputs": inputs}


def contradictions(
    names: Sequence[str], experiment: Experiment, folder: Path, images: Mapping[str, str] = {}
) -> Iterator[tuple[str, str]]:
    """Finished stages that do not belong to an experiment or to each other, and why in words.

    Args:
      names: the stages, in order; those that have not run are left out.
      experiment: every setting.
      folder: the run's folder.
      images: as for `identity_of`.
    """
    made: dict[str, tuple[str, str]] = {}
    for name in names:
        record = read_record(folder, name)
        if record is None:
            continue
        stage = stage_of(name, experiment)
        if differing := list(differences(stage, record, as_leaves(experiment))):
            yield name, f"was run with other flags ({', '.join(differing)}): give them as they were"
        now = _images_of(STAGES[name], experiment, images)
        for file, digest in record["inputs"].items():
            maker, new = made.get(file, (file, now.get(file, digest)))
            if new != digest:
                yield name, f"was run before {maker} was changed: make that as it was"
        made |= {file: (name, digest) for file, digest in record["outputs"].items()}


def _images_of(stage: Stage, experiment: Experiment, images: Mapping[str, str]) -> dict[str, str]:
    """The listings of a folder of images that a stage reads, by what they are called in records."""
    there = [split for split in stage.images if split in images]
    return {f"the {split} images of {experiment.data.name}": images[split] for split in there}


def deciding(identity: Identity) -> Identity:
    """An identity without the settings that change speed alone, for the key of unfinished work."""
    settings = {
        name: value
        for name, value in flatten(identity["settings"])
        if name not in SPEED and not (name in LATER and value is None)
    }
    return {"settings": settings, "inputs": identity["inputs"]}


def differences(
    stage: Stage, record: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[str]:
    """The settings that decide a stage's result and are not as its record has them, in words.

    A setting that is newer than the record has its default there.

    Args:
      stage: the stage.
      record: its record.
      settings: every setting by its dotted name.
    """
    recorded = dict(flatten(record["settings"]))
    for name, value in settings.items():
        if _reads(stage, name) and name not in SPEED:
            was = recorded[name] if name in recorded else default_of(name, recorded)
            if was != value:
                yield f"{flag_name(name)} was {was}, is {value}"
    for name in recorded.keys() - settings.keys():  # of another mapping, say
        if _reads(stage, name) and name not in SPEED:
            yield f"{flag_name(name)} was {recorded[name]}, is not set"


def is_up_to_date(stage: Stage, identity: Identity, folder: Path) -> bool:
    """Whether the stage's record has this identity and its outputs are as it wrote them.

    Args:
      stage: the stage.
      identity: what decides its result now, as `identity_of` returns it.
      folder: folder of the run.
    """
    return next(reasons(stage, identity, folder), None) is None


def reasons(stage: Stage, identity: Identity, folder: Path) -> Iterator[str]:
    """Why the stage is not up to date, one reason after the other; none where it is."""
    record = read_record(folder, stage.name)
    if record is None:
        yield "not run yet"
        return
    if stage.always:
        yield stage.always
    yield from differences(stage, record, dict(flatten(identity["settings"])))
    inputs = record["inputs"], identity["inputs"]
    for name in dict.fromkeys([*inputs[0], *inputs[1]]):
        if inputs[0].get(name) != inputs[1].get(name):
            how = "is new" if name not in inputs[0] else "has changed"
            yield f"{name} {how if name in inputs[1] else 'is not there'}"
    for name in stage.makes:
        if name not in record["outputs"]:
            yield f"{name} was not made yet"
    for name, digest in record["outputs"].items():
        path = folder / name
        if not path.exists() or sha256(path) != digest:
            yield f"{name} {'has changed' if path.exists() else 'is missing'}"


def other_versions(record: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """The packages that are not those which a record's stage was run with, in words; "" if none."""
    return ", ".join(
        f"{name} {was}, now {versions[name]}"
        for name, was in record["versions"].items()
        if versions.get(name, was) != was
    )


def _before(stage: Stage, stages: Mapping[str, Stage]) -> list[str]:
    """The stages of a run that lead to this one, in order."""
    needed = set(stage.after).union(*(_before(stages[name], stages) for name in stage.after))
    return [name for name in stages if name in needed]


def _reads(stage: Stage, name: str) -> bool:
    return any(name == read or name.startswith(f"{read}.") for read in stage.settings)
