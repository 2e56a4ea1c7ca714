"""Profiles that differ in the compensation of drift alone, to show one beside the other."""

from __future__ import annotations

from collections.abc import Collection

from bridge.chips.profiles import COMPENSATED, FULL_COMPENSATED, FULL_PROFILE

_COMPENSATION = {
    FULL_PROFILE: FULL_COMPENSATED,
    FULL_COMPENSATED: FULL_PROFILE,
    "pcm": COMPENSATED,
    COMPENSATED: "pcm",
}
"""Profiles that differ in compensation of drift alone."""


def counterpart(profile: str) -> str:
    """The profile with its drift compensated, or, of a compensated one, without; else "".

    >>> counterpart("pcm"), counterpart("adc+wnoise+pcm_gdc at 3,600 s"), counterpart("adc")
    ('pcm_gdc', 'adc+wnoise+pcm at 3,600 s', '')
    """
    name, at, time = profile.partition(" at ")
    other = _COMPENSATION.get(name, "")
    return f"{other}{at}{time}" if other else ""


def is_uncompensated(profile: str, compensation: str | None = None) -> bool:
    """Whether the chips of a named profile drift without compensation.

    Args:
        profile: its name.
        compensation: drift compensation of the PCM in profiles that do not name their own.
    """
    name, _, _ = profile.partition(" at ")
    return compensation is None and "pcm" in name.split("+")


def shown_beside(profile: str, there: Collection[str], compensation: str | None = None) -> str:
    """The profile to show beside the one that a report is about: the same with drift compensated,
    or without, else the paper's; "" where there is none, or where the chips of both are
    compensated.

    Args:
        profile: the profile that the report is about.
        there: the profiles whose chips were simulated.
        compensation: drift compensation of the PCM in profiles that do not name their own.
    """
    if compensation is not None:
        return ""
    for other in (counterpart(profile), FULL_PROFILE):
        if other in there and other != profile:
            return other
    return ""
