"""Times and levels of noise apart from a profile's other settings.

A compiled program takes them as arguments: a chip at another time or of other noise compiles
nothing anew.
"""

import copy
from dataclasses import replace
from typing import Any

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from bridge.chips.profiles import Profile

Levels = dict[str, Any]
"""A number, or an array of one, by the field of a memory, and that of the weight noise by
"sigma"."""

_PHASE_CHANGE = ("t_inference", "programming_noise", "drift", "read_noise")
_OF_MEMORIES = {
    PCM: _PHASE_CHANGE,
    Hermes: _PHASE_CHANGE,
    ReRamCMO: _PHASE_CHANGE,
    ReRamWan2022: ("noise",),  # which was measured at three times
}
"""Fields that a memory's formulas in JAX take as they come."""


def levels_of(profile: Profile) -> tuple[Profile, Levels]:
    """A profile whose levels are all 1, and the levels."""
    memory: Any = profile.memory
    found = {name: getattr(memory, name) for name in _OF_MEMORIES.get(type(memory), ())}
    if found:
        profile = replace(profile, memory=replace(memory, **dict.fromkeys(found, 1.0)))
    if profile.wnoise is not None:
        found["sigma"] = profile.wnoise.sigma
        profile = replace(profile, wnoise=replace(profile.wnoise, sigma=1.0))
    return profile, found


def with_levels(profile: Profile, levels: Levels) -> Profile:
    """The profile again; its levels may be traced, which its own checks would not take."""
    of_memory = {name: level for name, level in levels.items() if name != "sigma"}
    if of_memory:
        profile = _with(profile, memory=_with(profile.memory, **of_memory))
    if profile.wnoise is not None:
        profile = _with(profile, wnoise=_with(profile.wnoise, sigma=levels["sigma"]))
    return profile


def _with(settings: Any, **values: Any) -> Any:
    made = copy.copy(settings)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
