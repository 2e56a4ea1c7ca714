"""Which profile stands beside the one that a report is about, and whether its chips drift."""

from dataclasses import replace

import pandas as pd

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.reram import ReRamWan2022
from bridge.chips.profiles import FULL_COMPENSATED, PROFILES, Profile, named_profiles, to_json
from bridge.chips.profiles import FULL_PROFILE as FULL
from bridge.report.tables.compensation import Beside, is_uncompensated, shown_beside
from bridge.report.tables.given import simulated_profiles


def beside(profile, *there, **profiles):
    """What stands beside a profile where these are there, with these settings."""
    table = pd.DataFrame({"fold": "test", "profile": [profile, *there]})
    return shown_beside(table, {**PROFILES, **profiles}, profile=profile)


def test_compensated_and_uncompensated_stand_beside_each_other():
    assert beside("pcm", "pcm_gdc", FULL) == Beside("pcm_gdc", compensated=True)
    assert beside("pcm_gdc", "pcm", FULL) == Beside("pcm", compensated=False)
    assert beside("pcm_gdc", FULL) == beside("adc", FULL) == Beside(FULL, compensated=False)
    assert beside(FULL, "adc") is None
    late = f"{FULL} at 3,600 s"
    other = f"{FULL_COMPENSATED} at 3,600 s"
    assert beside(late, other) == Beside(other, compensated=True)
    assert beside(late, FULL_COMPENSATED) is None
    table = pd.DataFrame({"fold": ["test", "train"], "profile": ["pcm", "pcm_gdc"]})
    assert shown_beside(table, PROFILES, profile="pcm") is None


def test_settings_and_not_names_say_what_stands_beside():
    every = named_profiles(pcm=PCM(compensation="global"))
    assert beside("pcm", "pcm_gdc", FULL, **every) is None  # both are compensated
    assert beside("pcm", "pcm_gdc", pcm=Profile(memory=PCM(drift=2.0))) is None
    mine = Profile(memory=PCM())
    own = {"mine": mine, "also": replace(mine, memory=PCM(compensation="per_column"))}
    assert beside("mine", "also", **own) == Beside("also", compensated=True)
    assert beside("also", "mine", **own) == Beside("mine", compensated=False)


def test_chips_drift_without_compensation_by_their_settings():
    for memory, drifts in (
        (PCM(), True),
        (Hermes(), True),
        (PCM(drift=0.0), False),
        (PCM(compensation="per_column"), False),
        (ReRamWan2022(), False),
        (None, False),
    ):
        assert is_uncompensated(Profile(memory=memory)) == drifts, memory
    assert not is_uncompensated(None)


def test_settings_are_read_from_what_a_simulation_said():
    own = Profile(memory=PCM(drift=2.0))
    said = {"pcm": to_json(own), "mine": {"kind": "MyMemory", "settings": {}}, "text": repr(own)}
    assert simulated_profiles({"profiles": said}) == {"pcm": own, "mine": None, "text": None}
    assert simulated_profiles({}) == {}
    # Of what cannot be read nothing is known, also where bridge has a profile of that name.
    assert beside("pcm", "pcm_gdc", pcm=None) is None
