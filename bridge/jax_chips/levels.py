"""Times and levels of noise apart from a profile's other settings.

Compiled programming takes them as arguments: weights at another time, or of other noise, compile
nothing anew. What still does: another time of `ReRamWan2022`, which was measured at three; settings
of a memory of your own; and the logits where noise is drawn at each operation.
"""

import copy
from typing import Any, NamedTuple

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from bridge.chips.profiles import Profile


class Levels(NamedTuple):
    """Numbers, or arrays of one."""

    memory: dict[str, Any]
    """By the memory's field."""
    wnoise: Any
    """Sigma of the weight noise; None without."""
    out_noise: Any
    """Sigma of the output noise; None without."""


_PHASE_CHANGE = ("t_inference", "programming_noise", "drift", "read_noise")
_OF_MEMORIES = {
    PCM: _PHASE_CHANGE,
    Hermes: _PHASE_CHANGE,
    ReRamCMO: _PHASE_CHANGE,
    ReRamWan2022: ("noise",),
}
"""Fields that a memory's formulas in JAX take as they come."""


def levels_of(profile: Profile) -> tuple[Profile, Levels]:
    """A profile whose levels are all 1, and the levels."""
    memory: Any = profile.memory
    of_memory = {name: getattr(memory, name) for name in _OF_MEMORIES.get(type(memory), ())}
    sigmas = [one and one.sigma for one in (profile.wnoise, profile.out_noise)]
    ones = Levels(dict.fromkeys(of_memory, 1.0), *(None if s is None else 1.0 for s in sigmas))
    return with_levels(profile, ones), Levels(of_memory, *sigmas)


def with_levels(profile: Profile, levels: Levels) -> Profile:
    """The profile with these levels, which may be traced: its own checks would not take them."""
    found = {}
    if levels.memory:
        found["memory"] = _with(profile.memory, **levels.memory)
    for name in ("wnoise", "out_noise"):
        if (sigma := getattr(levels, name)) is not None:
            found[name] = _with(getattr(profile, name), sigma=sigma)
    return _with(profile, **found)


def _with(settings: Any, **values: Any) -> Any:
    made = copy.copy(settings)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
