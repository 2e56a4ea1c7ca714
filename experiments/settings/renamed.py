"""Settings, commands and flags that were called otherwise once, or are gone: one table of each.

Settings files and records of earlier versions are read under the new names, and without what is
gone; on the command line an old name is understood, and the new one said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_SETTINGS = {
    "simulate.calibration": "simulate.adc_calibration",
    "simulate.pcm.converter": "simulate.pcm.mapping",
    "agreement": "rank_correlation",
}
"""New name by old name, in the same group; the name of a group stands for everything in it."""

_NO_ACCURACY = "it was an accuracy; noises are now matched by --compare.failure-rate"

RETIRED_SETTINGS = {
    "flip.programmings": "mean and variance of programmed weights are computed, no chip is sampled",
    "compare.target": _NO_ACCURACY,
    "study.target": _NO_ACCURACY,  # the same, as the folder of a study remembers it
}
"""Why a setting is gone, by its name."""

NEWER_SETTINGS = {("analyse", "profile"): "adc+wnoise+pcm"}
"""Group and name of a setting that a preset sets by now, and what was done before it was there."""

RENAMED_COMMANDS = {"agreement": "rank-correlation"}
"""New name by old name; results in a folder of the old name belong to the new one."""


def current_name(name: str) -> str:
    """The name that a setting has now, given its dotted name in any version."""
    for old, new in RENAMED_SETTINGS.items():
        if name == old or name.startswith(f"{old}."):
            return new + name.removeprefix(old)
    return name


def with_current_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings of any version, under the names that they have now."""
    found = _renamed(settings, "")
    for (group, name), before in NEWER_SETTINGS.items():
        if isinstance(found.get(group), Mapping):
            found[group].setdefault(name, before)
    return found


def _renamed(settings: Mapping[str, Any], group: str) -> dict[str, Any]:
    found = {}
    for name, value in settings.items():
        if group + name in RETIRED_SETTINGS:
            continue
        if isinstance(value, Mapping):
            inner = _renamed(value, f"{group}{name}.")
            if value and not inner:
                continue  # a group of which nothing is left
            value = inner
        found[current_name(group + name).rpartition(".")[2]] = value
    return found
