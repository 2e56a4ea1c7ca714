"""Settings of chips as a study's flag takes them: a profile and when its memory is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

from bridge.checks import require_finite
from bridge.chips.profiles import PROFILES, Profile
from experiments.settings.flags import ProfileName, Simulate
from experiments.settings.values import shown
from experiments.studies.drift import duration


def named_settings(profiles: Sequence[str], simulate: Simulate, flag: str) -> dict[str, Profile]:
    """The profile of each setting, by the setting's name.

    Args:
      profiles: settings as the flag takes them.
      simulate: the devices, and the time where a setting has none.
      flag: the flag that gave them, for messages.

    Returns:
      Names such as pcm_gdc@3600, with the time where the profile has a memory.

    Raises:
      ValueError: two settings are the same.
    """
    found: dict[str, Profile] = {}
    for given in profiles:
        name, time = split_setting(given, flag)
        profile = simulate.every_profile[name]
        if profile.memory is not None:
            time = profile.memory.t_inference if time is None else time
            profile = replace(profile, memory=replace(profile.memory, t_inference=time))
            name = f"{name}@{shown(float(time))}"
        if name in found:
            raise ValueError(f"{flag} names {name} twice: give each setting once")
        found[name] = profile
    return found


def split_setting(given: str, flag: str) -> tuple[str, float | None]:
    """A setting's profile, and its time in seconds, None where it has none.

    Args:
      given: the setting as the flag takes it.
      flag: the flag, for messages.

    Raises:
      ValueError: there is no such profile, the time is none, or every chip would be the same.
    """
    name, at, seconds = given.partition("@")
    known = get_args(ProfileName)
    if name not in known:
        raise ValueError(f"{flag} has no {name!r}: give one of {', '.join(known)}")
    profile = PROFILES[name]
    if profile.draws_nothing:
        raise ValueError(f"{flag} has {given}, which draws no noise: all its chips are the same")
    if not at:
        return name, None
    if profile.memory is None:
        raise ValueError(f"{flag} has {given}, but {name} has no memory that ages: leave out @")
    if not re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", seconds):
        raise ValueError(f"{flag} has {given}: after @ give seconds, such as {name}@3600")
    return name, float(require_finite(f"the time of {given} in {flag}", float(seconds)))


def title_of(name: str) -> str:
    """What figures call a setting, such as "pcm_gdc, 1 h"."""
    profile, at, seconds = name.partition("@")
    return f"{profile}, {duration(float(seconds))}" if at else profile


def words_of(name: str) -> str:
    """A setting within a sentence, such as "pcm_gdc (read 1 h after programming)"."""
    profile, at, seconds = name.partition("@")
    return f"{profile} (read {duration(float(seconds))} after programming)" if at else profile
