"""What a finished stage leaves in `stages/NAME.json`: what made its results, and their hashes."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.runs.stage_names import STAGE_NAMES
from experiments.settings.flags import Experiment
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
    """A stage's record; None if the stage has not finished.

    Settings that are newer than the record have their defaults, which do what was done before (but
    for resized images, whose pixels have changed since: those records are left as they are).

    Raises:
      ValueError: the file is damaged.
    """
    path = _path(folder, name)
    if not path.exists():
        return None
    record = read_json(path)
    if record.keys() != _FIELDS:
        raise ValueError(f"{path} is damaged or of another version: delete it and run {name} again")
    defaults = json.loads(json.dumps(asdict(Experiment())))
    for key, value in record["settings"].items():
        if isinstance(value, dict) and not value.get("image_size"):
            record["settings"][key] = defaults.get(key, {}) | value
    return record


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all finished stages, in order."""
    found = (read_record(folder, name) for name in STAGE_NAMES)
    return [record for record in found if record is not None]


def recorded_settings(folder: Path) -> dict[str, Any]:
    """The settings that made the results in a folder, as the finished stages recorded them.

    The report's record is left out: it has them all, and may be of an earlier run in the folder.
    """
    settings: dict[str, Any] = {}
    for name in STAGE_NAMES:
        if name != "report" and (record := read_record(folder, name)) is not None:
            settings |= record["settings"]
    return settings


def _path(folder: Path, name: str) -> Path:
    return folder / "stages" / f"{name}.json"
