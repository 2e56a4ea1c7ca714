"""Whether the drift of a profile is compensated, and which profile to show beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import pandas as pd

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.reram import ReRamCMO
from bridge.chips.profiles import FULL_PROFILE, Profile


@dataclass(frozen=True)
class Beside:
    """A profile to show beside the one that a report is about."""

    profile: str
    """Its name."""
    compensated: bool
    """Whether its drift is compensated."""


def settings_of(profile: str, profiles: Mapping[str, Profile | None]) -> Profile | None:
    """The settings of a profile whose name may end in a time, such as "pcm at 3,600 s".

    Args:
        profile: its name.
        profiles: settings by name, without a time; None where they are not known.

    Returns:
        None where they are not known, or the name is not there.
    """
    name, _, _ = profile.partition(" at ")
    return profiles.get(name)


def is_uncompensated(settings: Profile | None) -> bool:
    """Whether the chips of a profile drift without compensation; False where its settings are None.

    >>> from bridge.chips.profiles import PROFILES
    >>> [name for name, settings in PROFILES.items() if is_uncompensated(settings)]
    ['pcm', 'adc+pcm', 'wnoise+pcm', 'adc+wnoise+pcm']
    """
    memory = None if settings is None else settings.memory
    return (
        isinstance(memory, PCM | Hermes | ReRamCMO)
        and memory.drift > 0
        and memory.compensation is None
    )


def counterparts(profile: str, profiles: Mapping[str, Profile | None]) -> list[str]:
    """The profiles with drift compensated and all else equal, or, of a compensated one, without.

    >>> from bridge.chips.profiles import PROFILES
    >>> [counterparts(one, PROFILES) for one in ("pcm", "adc+wnoise+pcm_gdc at 3,600 s", "adc")]
    [['pcm_gdc'], ['adc+wnoise+pcm at 3,600 s'], []]

    Args:
        profile: the profile's name; a time at its end is that of the others too.
        profiles: settings by name, without a time; None where they are not known.
    """
    this = settings_of(profile, profiles)
    if this is None:
        return []
    _, at, time = profile.partition(" at ")
    return [
        f"{name}{at}{time}"
        for name, other in profiles.items()
        if other is not None
        and _is_compensated(this) != _is_compensated(other)
        and _uncompensated(this) == _uncompensated(other)
    ]


def shown_beside(
    table: pd.DataFrame,
    profiles: Mapping[str, Profile | None],
    *,
    profile: str,
    fold: str = "test",
) -> Beside | None:
    """The profile to show beside the one that a report is about: the first of its counterparts,
    else the paper's if its drift is not compensated; None where none is there.

    Args:
        table: fold and profile of the chips that there are.
        profiles: settings by name, without a time; None where they are not known.
        profile: the profile that the report is about.
        fold: the fold that the report is about.
    """
    there = set(table.loc[table["fold"] == fold, "profile"])
    for other in counterparts(profile, profiles):
        if other in there:
            return Beside(other, _is_compensated(settings_of(other, profiles)))
    paper = profiles.get(FULL_PROFILE)
    if paper is None or _is_compensated(paper) or FULL_PROFILE not in there - {profile}:
        return None
    return Beside(FULL_PROFILE, compensated=False)


def _is_compensated(settings: Profile | None) -> bool:
    memory = None if settings is None else settings.memory
    return memory is not None and memory.compensation is not None


def _uncompensated(settings: Profile) -> Profile:
    if settings.memory is None:
        return settings
    return replace(settings, memory=replace(settings.memory, compensation=None))
