"""Noise at matched failure rates: the search by hand, chips tried one by one, resuming."""

import json
import logging
import shutil
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import bridge
from bridge.analysis.overlap import COLUMNS, SystematicShare, failure_overlap, systematic_share
from bridge.chips.profiles import ADC, from_json
from bridge.report.figures.overlap import draw
from bridge.report.tables.profile_overlap import profile_overlap
from experiments.chips.in_torch import TorchNetwork
from experiments.cli.words import with_current_words
from experiments.runs.remembered import recall, remember
from experiments.settings.presets import PRESETS
from experiments.studies import compare_noise
from experiments.studies.compare_noise import (
    FACTORS,
    TOLERANCE,
    Bench,
    CompareNoise,
    Match,
    match_factor,
    run,
    seeds,
    with_step,
)
from experiments.studies.exported import Exported, open_exported
from jaxcurv import data
from tests.chips import digits_network
from tests.described import require_described
from tests.exported_run import write_exported_digits

DIGITS = PRESETS["digits"].experiment
EXPERIMENT = replace(DIGITS, analyse=replace(DIGITS.analyse, resamples=20))
SETTINGS = CompareNoise(
    memories=("pcm", "reram_cmo"), chips=2, limit=200, tune_limit=100, tune_chips=1, bins=5
)
NAMES = ["pcm", "reram_cmo", "wnoise", "wnoise_mvm", "adc"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_exported_digits(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exported:
    """What the command opens, with a smaller network."""
    opened = open_exported(EXPERIMENT, folder, None, profile=SETTINGS.profile, limit=SETTINGS.limit)
    calibration = opened.network.calibration
    network = TorchNetwork(digits_network(), "fast", "cpu", calibration, None)
    return replace(opened, network=network)


@pytest.fixture(scope="module")
def out(folder: Path, exported: Exported) -> Path:
    """What the command leaves."""
    run(exported, EXPERIMENT, SETTINGS, folder / "compare-noise")
    return folder / "compare-noise"


# --- the factor


def rising(factor: float) -> float:
    return factor / (1 + factor)


@pytest.mark.parametrize("factor", [0.013, 0.2, 0.9, 1.0, 4.0, 70.0])
@pytest.mark.parametrize("shape", [1.0, 2.0, 0.5], ids=lambda shape: f"power {shape}")
def test_factor_is_found(factor: float, shape: float) -> None:
    """Whatever power of the factor the rate grows with, in few trials."""
    asked: list[float] = []

    def rate(one: float) -> float:
        asked.append(one)
        return rising(one**shape)

    match = match_factor(rate, rising(factor**shape))
    assert match.reached
    assert abs(match.failure_rate - rising(factor**shape)) <= TOLERANCE / 4
    assert match.failure_rate == rising(match.factor**shape)
    assert match.target == rising(factor**shape)
    assert len(asked) <= 9


def test_first_memory_is_its_own_target() -> None:
    asked: list[float] = []

    def rate(factor: float) -> float:
        asked.append(factor)
        return rising(factor)

    assert match_factor(rate, rising(1.0)).factor == 1.0
    assert asked == [1.0]


@pytest.mark.parametrize(("target", "factor"), [(0.0001, FACTORS[0]), (0.9999, FACTORS[1])])
def test_target_out_of_reach_takes_the_nearest(target: float, factor: float) -> None:
    match = match_factor(lambda one: 0.5 * rising(one) + 0.2, target)
    assert (match.factor, match.reached) == (factor, False)
    assert match.failure_rate == 0.5 * rising(factor) + 0.2


def test_rate_that_jumps_over_the_target_takes_the_nearest() -> None:
    match = match_factor(lambda factor: 0.1 if factor < 3 else 0.8, 0.5)
    assert (match.failure_rate, match.reached) == (0.8, False)
    assert match.factor == pytest.approx(3, rel=0.1)


def test_noise_that_does_nothing_stays_as_it_is() -> None:
    match = match_factor(lambda factor: 0.3, 0.5)
    assert (match.factor, match.failure_rate, match.reached) == (1.0, 0.3, False)
    assert match_factor(lambda factor: 0.0, 0.1).factor == 1.0


def test_a_rate_within_a_point_is_reached() -> None:
    for off, reached in ((0.009, True), (0.011, False)):
        match = match_factor(lambda factor, off=off: 0.2 + off, 0.2)
        assert (match.reached, match.factor) == (reached, 1.0)


def test_of_a_small_rate_a_tenth_is_near() -> None:
    for off, reached in ((0.0004, True), (0.0006, False)):
        assert match_factor(lambda factor, off=off: 0.005 + off, 0.005).reached is reached
    with pytest.raises(ValueError, match=r"no validation image fails .* --compare\.failure-rate"):
        match_factor(lambda factor: 0.0, 0.0)


def test_model_that_breaks_counts_as_too_noisy() -> None:
    match = match_factor(lambda factor: rising(factor) if factor < 4 else np.nan, rising(9.0))
    assert not match.reached
    assert match.factor == pytest.approx(4, rel=0.05)
    assert match.factor < 4 <= match.breaks_at
    assert match_factor(lambda factor: np.nan if factor > 4 else rising(factor), 0.75).reached
    assert "(at 4.0" in compare_noise._not_reached("pcm", match)
    with pytest.raises(ValueError, match="no finite weights at factors"):
        match_factor(lambda factor: np.nan, 0.5)


# --- the chips


def test_all_noise_is_scaled(exported: Exported) -> None:
    bench = Bench(exported, EXPERIMENT, "global", Path())
    for name in ("pcm", "hermes", "reram_cmo"):
        memory = bench.profile(name, 3.0).memory
        assert memory is not None
        levels = (memory.programming_noise, memory.read_noise, memory.drift)
        assert (levels, memory.compensation) == ((3.0, 3.0, 3.0), "global")
    assert bench.profile("reram_wan2022", 3.0).memory == bridge.chips.ReRamWan2022(
        noise=3.0, compensation="global"
    )
    sigma = 3 * EXPERIMENT.simulate.wnoise.sigma
    frozen, drawn = (bench.profile(name, 3.0) for name in ("wnoise", "wnoise_mvm"))
    assert frozen == bridge.Profile(wnoise=bridge.chips.WeightNoise(sigma))
    assert drawn == bridge.Profile(wnoise=bridge.chips.WeightNoise(sigma, drawn="per_mvm"))
    plain = Bench(exported, EXPERIMENT, "none", Path())
    assert plain.profile("hermes", 1.0) == bridge.Profile(memory=bridge.chips.Hermes())


@pytest.mark.parametrize("adc", [ADC(), ADC(6, 12.0), ADC(8, headroom=1.5)], ids=str)
@pytest.mark.parametrize("factor", [0.01, 0.3, 1.0, 7.3, 100.0])
def test_a_factor_on_an_adc_is_one_on_its_step(adc: ADC, factor: float) -> None:
    def step_and_range(one: ADC) -> tuple[float, float]:
        wide = one.headroom * (1.0 if one.range == "calibrated" else one.range)
        return wide / (2 ** (one.bits - 1) - 1), wide

    made = with_step(adc, factor)
    (step, wide), (step_before, wide_before) = map(step_and_range, (made, adc))
    assert step == pytest.approx(factor * step_before)
    assert wide >= wide_before * (1 - 1e-12)  # nothing more saturates
    assert wide <= max(factor, 2.1) * wide_before
    assert (made == adc) is (factor == 1)


def test_an_adc_of_no_more_bits_is_refused() -> None:
    assert with_step(ADC(bits=17), 0.02).bits == 23
    with pytest.raises(ValueError, match=r"an ADC of 23 bits with 0.5 of its step .* --simulate"):
        with_step(ADC(bits=23), 0.5)


def test_settings_of_the_simulation_count(exported: Exported) -> None:
    simulate = replace(
        EXPERIMENT.simulate,
        pcm=bridge.chips.PCM(read_noise=2.0, t_inference=60.0),
        clipping=bridge.chips.Clipping("layer_gaussian"),
    )
    bench = Bench(exported, replace(EXPERIMENT, simulate=simulate), "none", Path())
    profile = bench.profile("pcm", 0.5)
    assert profile.memory == bridge.chips.PCM(
        programming_noise=0.5, drift=0.5, read_noise=1.0, t_inference=60.0
    )
    assert profile.clipping == bench.profile("hermes", 1.0).clipping == simulate.clipping


def test_no_two_noises_share_a_seed() -> None:
    every = [one for name in CompareNoise().names for one in seeds(name, 7, 1000)]
    assert len(set(every)) == len(every) == 7000
    assert seeds("pcm", 7, 2) == range(7, 9)


def test_validation_images_are_those_held_out(exported: Exported) -> None:
    validation = exported.validation(100)
    assert (len(validation), len(exported.test)) == (100, 200)
    whole = exported.validation(None)
    assert set(validation.indices) < set(whole.indices)
    official = data.load("digits").train
    indices = data.read(official, range(len(official)), description="train").indices
    held_out = data.split_validation(indices, EXPERIMENT.data.validation_fraction, 0)[1]
    assert set(whole.indices) == set(indices[held_out])


def programmed_as(exported: Exported, profile: Any, seed: int) -> bridge.chips.Chip:
    network = exported.network
    made = from_json(profile)
    return bridge.program(network.module, made, seed=seed, calibration=network.calibration)


def test_failures_are_those_of_the_chips(exported: Exported, out: Path) -> None:
    failures = pd.read_parquet(out / "failures.parquet")
    table = bridge.predict(exported.network.module, exported.test)
    correct = table["correct"].to_numpy()
    assert correct.sum() > 10
    settings = json.loads((out / "settings.json").read_text())
    matched = pd.read_csv(out / "matched.csv").set_index("name")
    for name in NAMES:
        noise = settings["noises"][name]
        for seed in noise["seeds"]:
            chip = programmed_as(exported, noise["profile"], seed)
            analog = bridge.predict(chip, exported.test)["correct"].to_numpy()
            rows = failures[(failures["name"] == name) & (failures["chip"] == seed)]
            assert rows["index"].tolist() == table["index"][correct].tolist()
            assert rows["failed"].tolist() == (~analog[correct]).tolist()
            assert matched["test_accuracy_min"][name] <= analog.mean()
            assert analog.mean() <= matched["test_accuracy_max"][name]
    chips = {**dict.fromkeys(NAMES, 2), "adc": 1}  # of which nothing is drawn
    assert failures.groupby("name")["chip"].nunique().to_dict() == chips
    assert (failures.groupby("name")["failed"].sum() > 5).all()
    rates = failures.groupby("name")["failed"].mean()
    pd.testing.assert_series_equal(
        matched["test_failure_rate"].sort_index(), rates, check_names=False
    )
    assert matched["chips"].to_dict() == chips


def test_factors_come_from_validation_images(exported: Exported, out: Path) -> None:
    settings = json.loads((out / "settings.json").read_text())
    tuning = exported.validation(100)
    assert (settings["tune_samples"], settings["samples"]) == (100, 200)
    right = bridge.predict(exported.network.module, tuning)["correct"].to_numpy()
    for name in NAMES:
        noise = settings["noises"][name]
        chip = programmed_as(exported, noise["profile"], noise["seeds"][0])
        analog = bridge.predict(chip, tuning)["correct"].to_numpy()
        assert noise["failure_rate"] == pytest.approx(1 - analog[right].mean())
        assert noise["reached"] is (abs(noise["failure_rate"] - settings["target"]) <= TOLERANCE)
    assert settings["noises"]["pcm"]["factor"] == 1.0
    assert settings["target"] == settings["noises"]["pcm"]["failure_rate"]
    assert settings["target_is_that_of"] == "pcm"


def test_tables_are_those_of_the_failures(exported: Exported, out: Path) -> None:
    require_described(out)
    failures = pd.read_parquet(out / "failures.parquet")
    of_name = {
        str(name): rows.pivot(index="chip", columns="index", values="failed").to_numpy(bool)
        for name, rows in failures.groupby("name", sort=False)
    }
    assert [*of_name] == NAMES
    table = bridge.predict(exported.network.module, exported.test)
    logits = np.sort(np.stack(table["logits"][table["correct"]]), axis=1)
    expected = failure_overlap(of_name, logits[:, -1] - logits[:, -2], bins=5, resamples=20)
    pd.testing.assert_frame_equal(pd.read_parquet(out / "overlap.parquet"), expected)
    written = pd.read_csv(out / "overlap.csv", keep_default_na=False, na_values="")
    np.testing.assert_allclose(written["jaccard"], expected["jaccard"])
    systematic = pd.read_csv(out / "systematic.csv").set_index("name")
    assert list(systematic.index) == NAMES[:-1]  # one chip tells nothing of others
    for name in systematic.index:
        assert systematic["systematic"][name] == pytest.approx(
            systematic_share(of_name[name]).systematic
        )
    for name in ("overlap.png", "overlap.svg"):
        assert (out / name).stat().st_size > 1000
    svg = (out / "overlap.svg").read_text()
    assert "digitally correct test images; drift compensated (global)" in svg


# --- resuming


@pytest.fixture
def programmed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the chips that are programmed."""
    made: list[int] = []
    program = bridge.program

    def noted(*arguments: Any, seed: int, **options: Any) -> bridge.chips.Chip:
        made.append(seed)
        return program(*arguments, seed=seed, **options)

    monkeypatch.setattr(bridge, "program", noted)
    return made


def test_what_is_finished_is_not_computed_again(
    exported: Exported, out: Path, tmp_path: Path, programmed: list[int]
) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    run(exported, EXPERIMENT, SETTINGS, copy)
    assert programmed == []
    for name in ("overlap.csv", "failures.parquet", "settings.json", "overlap.svg"):
        assert (copy / name).read_bytes() == (out / name).read_bytes()
    (lost,) = (copy / "pieces").rglob("pcm-*-1.parquet")  # the factor took the first chip alone
    lost.unlink()
    run(exported, EXPERIMENT, SETTINGS, copy)
    assert programmed == [1]


def test_more_chips_add_to_what_is_there(
    exported: Exported, out: Path, tmp_path: Path, programmed: list[int]
) -> None:
    copy = shutil.copytree(out, tmp_path / "copy")
    settings = replace(SETTINGS, memories=("pcm",), others=("wnoise",), chips=3)
    run(exported, EXPERIMENT, settings, copy)
    assert {one for one in programmed if one < 1000} == {2}
    rows = pd.read_parquet(copy / "failures.parquet")
    assert rows.groupby("name")["chip"].nunique().to_dict() == {"pcm": 3, "wnoise": 3}


def test_given_target_and_one_that_is_not_reached(
    exported: Exported,
    out: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare_noise, "_STEPS", 2)
    others = ("wnoise",)
    settings = replace(SETTINGS, memories=("reram_cmo",), others=others, failure_rate=0.98)
    run(exported, EXPERIMENT, settings, out.parent / "unreached")
    printed = capsys.readouterr().out
    assert "reram_cmo does not reach failures of 98.0 % at factors from 0.01 to 100" in printed
    assert "* target not reached" in printed
    matched = pd.read_csv(out.parent / "unreached" / "matched.csv").set_index("name")
    assert not matched["reached"]["reram_cmo"]
    assert matched["factor"]["reram_cmo"] > 1
    settings_json = json.loads((out.parent / "unreached" / "settings.json").read_text())
    assert (settings_json["target"], settings_json["target_is_that_of"]) == (0.98, None)


# --- the profiles of a run


def joined_of(failures: dict[str, Any], margin: list[float], wrong: int = 0) -> pd.DataFrame:
    """As `outcomes.join` returns it; the first `wrong` samples are digitally wrong."""
    rows = [
        {
            "profile": profile,
            "chip": chip,
            "sample": sample,
            "fold": "test",
            "digital_correct": sample >= wrong,
            "failure": bool(failed) and sample >= wrong,
            "margin": margin[sample],
        }
        for profile, chips in failures.items()
        for chip, outcomes in enumerate(chips)
        for sample, failed in enumerate(outcomes)
    ]
    return pd.DataFrame(rows)


def test_profiles_of_a_run() -> None:
    rng = np.random.default_rng(0)
    margin = rng.random(30)
    failures = {name: rng.random((2, 30)) < 0.5 for name in ("wnoise", "pcm")}
    joined = joined_of({"ideal": np.zeros((2, 30)), **failures}, list(margin), wrong=4)
    shuffled = joined.sample(frac=1, random_state=1).sort_values("profile", kind="stable")
    overlap, systematic = profile_overlap(shuffled, "test", bins=5, resamples=10)
    kept = {name: failures[name][:, 4:] for name in ("pcm", "wnoise")}
    expected = failure_overlap(kept, margin[4:], same_chips=True, bins=5, resamples=10)
    pd.testing.assert_frame_equal(overlap, expected)
    assert systematic["profile"].tolist() == ["pcm", "wnoise"]
    assert systematic["events"].tolist() == [one.sum() for one in kept.values()]
    pooled, _ = profile_overlap(shuffled, "pooled", bins=5, resamples=10)
    pd.testing.assert_frame_equal(pooled, overlap)


def test_single_chips_have_an_overlap_and_nothing_systematic() -> None:
    failures = {"adc": [[1, 0, 0, 0]], "pcm": [[1, 1, 0, 0]]}
    overlap, systematic = profile_overlap(
        joined_of(failures, [0.1, 0.2, 0.3, 0.4]), "test", bins=2, resamples=5
    )
    assert overlap["jaccard"].tolist()[1] == 0.5
    assert overlap["reason"][0] == "one chip of adc only"
    assert systematic.empty
    assert list(systematic) == ["profile", *(one.name for one in fields(SystematicShare))]


def test_too_few_correct_samples_leave_empty_tables(caplog: pytest.LogCaptureFixture) -> None:
    joined = joined_of({"pcm": [[1, 1, 0, 0]] * 2}, [0.1, 0.2, 0.3, 0.4], wrong=1)
    with caplog.at_level(logging.WARNING):
        overlap, systematic = profile_overlap(joined, "test", bins=4)
    assert "no overlap of fold test: 3 digitally correct samples cannot fill 4 bins" in caplog.text
    assert overlap.empty
    assert systematic.empty
    assert list(overlap) == list(COLUMNS)


def test_profiles_without_failures_leave_empty_tables() -> None:
    overlap, systematic = profile_overlap(
        joined_of({"ideal": [[0, 0]] * 2}, [0.1, 0.2]), "test", bins=2
    )
    assert overlap.empty
    assert systematic.empty


def test_bad_joined() -> None:
    joined = joined_of({"pcm": [[1, 0]]}, [0.1, 0.2])
    with pytest.raises(ValueError, match="no column margin"):
        profile_overlap(joined.drop(columns="margin"), "test")
    with pytest.raises(ValueError, match="no fold 'train' here; there is test"):
        profile_overlap(joined, "train")


# --- settings of before


def test_the_accuracy_of_before_is_left_out_with_a_word(tmp_path: Path) -> None:
    """On the command line, and in the folder of a study, which is gone on with."""
    said: list[str] = []
    line = ["compare-noise", "digits", "--compare.target", "0.5", "--compare.chips", "3"]
    assert with_current_words(line, said.append) == [*line[:2], *line[4:]]
    assert said == [
        "note: --compare.target is gone, and left out: it was an accuracy; noises are now matched "
        "by --compare.failure-rate"
    ]
    given = {"memories": ["pcm"], "chips": 3, "target": 0.5}
    remember(tmp_path / "flags.json", "digits", {"study": given, "run": {}})
    remembered = recall(tmp_path / "flags.json")
    assert remembered is not None
    found = remembered.part("study").applied_to(CompareNoise())
    assert found == CompareNoise(memories=("pcm",), chips=3)


# --- refusals and the figure


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memories": ()}, "memories must differ and be at least one"),
        ({"memories": ("pcm", "pcm")}, "memories must differ"),
        ({"others": ("adc", "adc")}, "others must differ"),
        ({"chips": 1}, "chips must be 2 to 1000"),
        ({"chips": 1001}, "chips must be 2 to 1000"),
        ({"tune_chips": 0}, "tune_chips 1 to 1000"),
        ({"tune_limit": 0}, "limit, tune_limit and bins must be at least 1"),
        ({"limit": 0}, "limit, tune_limit and bins must be at least 1"),
        ({"bins": 0}, "limit, tune_limit and bins must be at least 1"),
        ({"failure_rate": 1.0}, "failure_rate is a share of the digitally correct images"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompareNoise(**settings)


def test_too_few_correct_images_are_refused_before_any_chip(
    exported: Exported, tmp_path: Path, programmed: list[int]
) -> None:
    with pytest.raises(ValueError, match=r"right on \d+ of 200 test images, too few for 201 bins"):
        run(exported, EXPERIMENT, replace(SETTINGS, bins=201), tmp_path)
    assert programmed == []


def test_figure_of_undefined_values(tmp_path: Path) -> None:
    table = failure_overlap({"a": np.zeros((2, 8), bool)}, np.arange(8.0), bins=2, resamples=2)
    assert draw(table, tmp_path / "overlap.png", "t").stat().st_size > 1000


@pytest.mark.parametrize(
    ("compensation", "says"),
    [(None, "drift is not compensated"), ("global", "drift is compensated (global)")],
)
def test_what_is_printed(capsys: pytest.CaptureFixture[str], compensation: Any, says: str) -> None:
    failures = np.array([[True, False, False, True]] * 2)
    names = ("reram_wan2022", "wnoise", "adc")
    matched = pd.DataFrame(
        [
            {
                "name": name,
                **asdict(Match(2.0, 0.3, 0.3, reached=True)),
                "test_failure_rate": 0.5,
                "test_accuracy": 0.8,
            }
            for name in names
        ]
    )
    systematic = pd.DataFrame(
        [{"name": name, **asdict(systematic_share(failures, resamples=5))} for name in names[:2]]
    )
    overlap = failure_overlap(dict.fromkeys(names, failures), np.arange(4.0), bins=2, resamples=5)
    memory = bridge.chips.ReRamWan2022(t_inference=172800.0, compensation=compensation)
    profiles = {
        "reram_wan2022": bridge.Profile(memory=memory),
        "wnoise": bridge.Profile(wnoise=bridge.chips.WeightNoise()),
        "adc": bridge.Profile(adc=ADC()),
    }
    compare_noise.show(matched, systematic, overlap, profiles)
    printed = " ".join(capsys.readouterr().out.split())
    assert says in printed
    assert "Factor: on all noise of a memory" in printed
    assert "Noise matched to failures of 30.0 %" in printed
    assert "reram_wan2022 2 30.0 % 50.0 % 80.0 % 1.00" in printed
    assert "adc 2 30.0 % 50.0 % 80.0 % - -" in printed
    assert "Read after programming: reram_wan2022 172,800 s; drift" in printed
    assert "Explained: how much of the overlap beyond chance" in printed
    assert "not reached" not in printed
