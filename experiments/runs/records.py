"""What a finished stage leaves in `stages/NAME.json`: what made its results, and their hashes."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs.stage_names import STAGE_NAMES
from experiments.settings.flags import Experiment
from experiments.settings.renamed import with_current_names
from jaxcurv.nested import flatten, nest
from jaxcurv.storage.checksums import read_json, write_json

_FIELDS = {
    *("name", "settings", "inputs", "outputs", "versions"),
    *("device", "platform", "environment", "seconds", "measured"),
}


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Writes a stage's record: name, settings, inputs and outputs (file -> sha256), versions,
    device, platform, environment (the variables that change what JAX, XLA or torch compute), the
    seconds that its last process took, and what it measured."""
    assert record.keys() == _FIELDS
    write_json(_path(folder, record["name"]), record)


def read_record(folder: Path, name: str) -> dict[str, Any] | None:
    """A stage's record, its settings under their names of today; None if it has not finished.

    Raises:
      ValueError: the file is damaged.
    """
    path = _path(folder, name)
    if not path.exists():
        return None
    record = read_json(path)
    if record.keys() != _FIELDS:
        raise ValueError(f"{path} is damaged or of another version: delete it and run {name} again")
    return record | {"settings": with_current_names(record["settings"])}


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all finished stages, in order."""
    found = (read_record(folder, name) for name in STAGE_NAMES)
    return [record for record in found if record is not None]


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings that made the results in a folder, nested, as the finished stages recorded them.

    In a group of which one is recorded, those newer than the records have their default. The
    report's record is left out: it has them all, and may be of an earlier run in the folder.
    """
    recorded: dict[str, Any] = {}
    for record in read_records(folder):
        if record["name"] != "report":
            recorded |= flatten(record["settings"])
    groups = {name.partition(".")[0] for name in recorded}
    for name in _DEFAULTS:
        if name not in recorded and name.partition(".")[0] in groups:
            recorded[name] = default_of(name, recorded)
    ordered = {name: recorded[name] for name in (*_DEFAULTS, *recorded) if name in recorded}
    return nest({name: value for name, value in ordered.items() if value != UNKNOWN})


def default_of(name: str, recorded: Mapping[str, Any]) -> Any:
    """The value of a setting that is newer than a record: its default does what was done before.

    Not so for resized images, whose pixels have changed since, and for the settings of another
    weight-to-conductance mapping: there it is `UNKNOWN`.

    Args:
      name: the setting's dotted name.
      recorded: the record's settings by dotted name.
    """
    if name.startswith("data.") and recorded.get("data.image_size"):
        return UNKNOWN
    return _DEFAULTS.get(name, UNKNOWN)


UNKNOWN = "unknown"
"""Stands for a setting that no value is known of."""

_DEFAULTS = dict(flatten(json.loads(json.dumps(asdict(Experiment())))))


def _path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"
