"""The settings that a folder remembers: later commands on it start from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.runs.records import default_of, recorded_settings
from experiments.settings.presets import flag_name
from experiments.settings.renamed import with_current_names
from experiments.settings.restore import restore
from jaxcurv.nested import flatten
from jaxcurv.storage.checksums import read_json, write_json

_PRESET = "preset"


Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Remembered:
    """What the last command on a folder was given."""

    path: Path
    """The file that remembers."""
    preset: str | None
    """The preset's name; None where a run from before does not say it."""
    settings: Mapping[str, Any]
    """Every setting, nested as JSON has them; of a run from before those of its finished stages."""

    def part(self, group: str) -> Remembered:
        """What is remembered of one group of settings."""
        settings = with_current_names(self.settings.get(group, {}))
        return Remembered(self.path, self.preset, settings)

    def applied_to(self, start: Settings) -> Settings:
        """The settings as they are remembered, `start`'s where nothing is.

        Raises:
          ValueError: one is not known, or its value is refused.
        """
        try:
            return restore(start, self.settings)
        except ValueError as error:
            raise ValueError(
                f"{self.path} has settings that cannot be taken ({error}): use the version that "
                "wrote it, or delete it and give your flags again"
            ) from error

    def changes(self, settings: Any, prefix: str = "") -> list[str]:
        """The flags of settings that are not as they are remembered, in words.

        Args:
          settings: a dataclass of settings.
          prefix: what their flags begin with.
        """
        before, after = dict(flatten(self.settings)), as_leaves(settings)
        if not prefix:  # a run's settings: those newer than it did what their default does
            newer = {name: default_of(name, before) for name in after.keys() - before.keys()}
            before |= {name: value for name, value in newer.items() if value == after[name]}
        names = [*after, *before] if self.preset is not None else after.keys() & before.keys()
        return [
            f"{flag_name(prefix + name)} {before.get(name, 'not set')} -> "
            f"{after.get(name, 'not set')}"
            for name in dict.fromkeys(names)
            if name not in before or name not in after or before[name] != after[name]
        ]


def as_leaves(settings: Any) -> dict[str, Any]:
    """Every setting of a dataclass by its dotted name, as it is read back from JSON."""
    return dict(flatten(json.loads(json.dumps(asdict(settings)))))


def remember(path: Path, preset: str, settings: Mapping[str, Any]) -> None:
    """Writes a preset's name and nested settings to a JSON file, atomically."""
    write_json(path, {_PRESET: preset, **settings})


def recall(path: Path) -> Remembered | None:
    """What `remember` left in a file; None if there is no file.

    Raises:
      ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    value = read_json(path)
    return Remembered(path, value.pop(_PRESET, None), with_current_names(value))


def recall_run(folder: Path) -> Remembered | None:
    """What a run's folder remembers; None where nothing was run.

    Raises:
      ValueError: a file is damaged.
    """
    if found := recall(settings_file(folder)):
        return found
    settings = recorded_settings(folder)
    return Remembered(folder / "stages", None, settings) if settings else None


def settings_file(folder: Path) -> Path:
    """The file in which a run's folder remembers its settings."""
    return folder / "settings.json"
