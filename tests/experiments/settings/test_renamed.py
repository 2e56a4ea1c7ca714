"""Names of earlier versions in files: settings and chips' profiles."""

from dataclasses import asdict
from pathlib import Path

import pytest

from bridge.chips.memories.conductances import Pairs
from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.reram import ReRamWan2022
from bridge.chips.profiles import PROFILES, Profile, from_json, to_json
from experiments.runs.records import default_of
from experiments.runs.remembered import Remembered, as_leaves
from experiments.runs.resume import key_of
from experiments.settings.flags import Experiment
from experiments.settings.presets import PRESETS, flag_name
from experiments.settings.renamed import (
    RENAMED_SETTINGS,
    RETIRED_SETTINGS,
    current_name,
    with_current_names,
)
from jaxcurv.nested import flatten


def test_settings_of_an_earlier_version() -> None:
    old = {
        "seed": 3,
        "simulate": {
            "calibration": 16,
            "pcm": {"g_max": 25.0, "converter": {"factors": [1.0, 4.0], "g_min": 0.0}},
        },
        "empty": {},
    }
    assert with_current_names(old) == {
        "seed": 3,
        "simulate": {
            "adc_calibration": 16,
            "pcm": {"g_max": 25.0, "mapping": {"factors": [1.0, 4.0], "g_min": 0.0}},
        },
        "empty": {},
    }
    assert current_name("simulate.calibrations") == "simulate.calibrations"


def test_settings_that_are_gone_are_left_out() -> None:
    """With their group, where nothing else is in it; a stage that had them is as it was."""
    old = {"seed": 3, "flip": {"programmings": 16}, "train": {"flip": True}}
    assert with_current_names(old) == {"seed": 3, "train": {"flip": True}}
    assert not set(RETIRED_SETTINGS) & set(as_leaves(Experiment()))


def test_a_report_of_before_is_about_the_paper_s_profile() -> None:
    """Also of a preset whose report is about another by now."""
    old = {"seed": 3, "analyse": {"bins": 5}}
    found = with_current_names(old)
    assert found == {"seed": 3, "analyse": {"bins": 5, "profile": "adc+wnoise+pcm"}}
    assert with_current_names(found) == found
    assert with_current_names({"seed": 3}) == {"seed": 3}
    other = {"analyse": {"profile": "pcm_gdc"}}
    assert with_current_names(other) == other
    stored = asdict(PRESETS["digits"].experiment)
    del stored["analyse"]["profile"]
    stored["simulate"]["profiles"] = ["ideal", "adc+wnoise+pcm"]
    remembered = Remembered(Path("settings.json"), "digits", with_current_names(stored))
    again = remembered.applied_to(PRESETS["digits"].experiment)
    assert again.analyse.profile == "adc+wnoise+pcm"


def test_new_names_are_settings_and_old_ones_are_not() -> None:
    known = {"rank_correlation", *as_leaves(Experiment())}
    groups = {name.rpartition(".")[0] for name in known}
    assert set(RENAMED_SETTINGS.values()) <= known | groups
    assert not set(RENAMED_SETTINGS) & (known | groups)


@pytest.mark.parametrize(
    ("profile", "key"),
    [
        (PROFILES["adc+wnoise+pcm"], "8abca9871ff7"),
        (Profile(memory=Hermes(mapping=Pairs((1.0, 4.0)))), "0ab8075d37f8"),
        (Profile(memory=ReRamWan2022()), "7b39a6b6153d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_finished_chips_keep_their_key(profile: Profile, key: str) -> None:
    """The keys are those that the version before the renaming gave these profiles."""
    assert key_of(to_json(profile)) == key
    assert from_json(to_json(profile)) == profile


def test_a_chip_s_file_may_have_either_name() -> None:
    pair = {"kind": "SinglePair", "settings": {"g_min": 2.0}}
    for name in ("converter", "mapping"):
        assert from_json({"kind": "PCM", "settings": {name: pair}}).mapping.g_min == 2.0
    assert from_json(to_json(PCM())) == PCM()


def test_flags_and_defaults_of_renamed_settings() -> None:
    assert flag_name("simulate.adc_calibration") == "--simulate.adc-calibration"
    assert default_of("simulate.adc_calibration", {}) == 256
    assert dict(flatten(as_leaves(Experiment())))["simulate.pcm.mapping.g_min"] == 0.0
