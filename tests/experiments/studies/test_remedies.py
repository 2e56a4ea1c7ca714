"""Remedies: who gets the second answer and what that costs, by hand; the command; resuming."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import t

import bridge
from bridge.analysis.differences import accuracy, difference
from bridge.chips.profiles import ADC, PCM, Profile, WeightNoise
from bridge.routing import Costs
from bridge.routing.curves import Kind as CostKind
from bridge.routing.curves import mean_energy
from experiments.cli import commands
from experiments.runs.files import read_parquet, sha256
from experiments.studies import remedies_opened
from experiments.studies.remedies import Remedies, show, verdict, verdicts
from experiments.studies.remedies_chips import OWN, Bench, Kind, Predictions, predictions
from experiments.studies.remedies_deciles import deciles_table, draw
from experiments.studies.remedies_opened import _curvature, _stored
from experiments.studies.remedies_plan import Choices, outcomes_table, plan_of
from experiments.studies.remedies_tables import (
    Outcomes,
    Passes,
    Remedy,
    Score,
    cheapest_within,
    energies,
    frontier,
    frontiers,
    remedies_table,
    told,
)
from jaxcurv.storage.checksums import read_json, write_json
from tests.described import described, tables_in
from tests.exported_run import write_exported_digits

ONCE, NEVER = Passes(1.0, 0.0), Passes(0.0, 0.0)


def folds(array: Any) -> dict[str, NDArray[Any]]:
    """The same for test and validation."""
    return {"test": np.asarray(array), "validation": np.asarray(array)}


# Ten samples, two chips, a score that rises; the digital model is right on all but the last.
DIGITAL = folds([True] * 9 + [False])
FIRST = Outcomes(
    folds([[True] * 6 + [False, True, False, True], [True] * 8 + [False, False]]), ONCE
)
RISING = np.arange(10.0)[None]


def row_of(remedy: Remedy, score: Score | None = None, **second: Outcomes) -> dict[str, Any]:
    scores = {} if score is None else {("chip", "score"): score}
    (row,) = remedies_table(
        [remedy],
        {"chip": FIRST},
        {("chip", name): one for name, one in second.items()},
        scores,
        DIGITAL,
        plain="chip",
        free="chip",
        confidence=0.95,
    ).to_dict("records")
    return row


def of_every_chip() -> Outcomes:
    right = {fold: np.broadcast_to(some, (2, 10)) for fold, some in DIGITAL.items()}
    return Outcomes(right, Passes(0.0, 1.0))


def test_the_plain_chip() -> None:
    row = row_of(Remedy("chip"))
    assert row["accuracy"] == pytest.approx(0.8)
    assert (row["gain"], row["gain_low"], row["gain_high"], row["routed"]) == (0, 0, 0, 0)
    assert (row["analog_passes"], row["digital_passes"]) == (1, 0)
    # Of 18 digitally correct outcomes 2 and 1 are wrong; of all 20 the same three.
    assert row["failure_rate"] == pytest.approx(3 / 18)
    assert row["failed"] == pytest.approx(3 / 20)


def test_the_highest_scores_get_the_digital_answer() -> None:
    """Samples 7, 8 and 9: sample 8 is saved on both chips, sample 9 spoilt on the first."""
    row = row_of(
        Remedy("chip", "digital", "score", "share", 0.3),
        Score(folds(RISING)),
        digital=of_every_chip(),
    )
    assert row["routed"] == pytest.approx(0.3)
    assert row["accuracy"] == pytest.approx((8 + 9) / 20)
    assert row["gain"] == pytest.approx((0 + 1) / 20)
    # FIRST: sample 8 gains on both chips, sample 9 loses on the first.
    chip = 0.1**2 / 2 / 2
    sample = ((1 + 0.25) / 10 - 0.05**2) / 10 + 1 / 10**2
    own = ((0.2 - 0**2) + (0.1 - 0.1**2)) / 2
    shared = (own - ((1 + 0.25) / 10 - 0.05**2)) / 10
    variance = max(chip + sample - shared, chip, sample)
    weight = chip / variance
    half = np.sqrt(variance) * (weight * t.ppf(0.975, 1) + (1 - weight) * t.ppf(0.975, 9))
    np.testing.assert_allclose([row["gain_low"], row["gain_high"]], [0.05 - half, 0.05 + half])
    assert (row["analog_passes"], row["digital_passes"]) == pytest.approx((1.0, 0.3))


def test_what_is_bought_over_remedies_that_take_no_energy() -> None:
    """The free answer has samples 0 to 7 right and the dear one all, on both chips."""
    outcomes = {
        "chip": FIRST,
        "free": Outcomes(folds([[True] * 8 + [False] * 2] * 2), ONCE),
        "dear": Outcomes(folds([[True] * 10] * 2), Passes(2.0, 0.0)),
    }
    table = remedies_table(
        # A NaN of its own: two dataclasses of one NaN are equal or not by Python's version.
        [Remedy(name, at=float("nan")) for name in outcomes], outcomes, {}, {}, DIGITAL,
        plain="chip", free="free", confidence=0.95,
    ).set_index("first")  # fmt: skip
    assert table.loc["chip", "over_free"] == pytest.approx(0.0)
    assert table.loc["free", ["over_free", "over_free_low", "over_free_high"]].tolist() == [0] * 3
    assert table.loc["chip", ["gain", "gain_low", "gain_high"]].tolist() == [0] * 3
    dear = table.loc["dear"]
    assert dear["over_free"] == pytest.approx(0.2)
    expected = difference(
        accuracy(outcomes["dear"].right["test"]),
        accuracy(outcomes["free"].right["test"]),
        same_samples=True,
        same_chips=True,
        confidence=0.95,
    )
    assert (dear["over_free_low"], dear["over_free_high"]) == (expected.low, expected.high)
    assert dear["over_free_low"] < 0.2 < dear["over_free_high"]


def test_a_score_that_is_known_before_spares_the_chip() -> None:
    score = Score(folds(RISING), before=True, passes=Passes(0.0, 0.02))
    row = row_of(Remedy("chip", "digital", "score", "share", 0.3), score, digital=of_every_chip())
    assert (row["analog_passes"], row["digital_passes"]) == pytest.approx((0.7, 0.32))


@pytest.mark.parametrize(
    ("kind", "score"),
    [
        ("analog", Score(folds(RISING))),
        ("known", Score(folds(RISING), before=True)),
        ("student", Score(folds(RISING), before=True, passes=Passes(0.0, 0.02))),
    ],
)
def test_energies_are_those_of_routing_curves(kind: CostKind, score: Score) -> None:
    """Two accounts of one cost: passes here, `mean_energy` there."""
    row = row_of(Remedy("chip", "digital", "score", "share", 0.3), score, digital=of_every_chip())
    costs = Costs(0.15, 2.0)
    (energy,) = energies(pd.DataFrame([row]), costs)
    assert energy == pytest.approx(mean_energy(0.3, kind, costs, 0.02))


def test_every_chip_has_a_threshold_of_its_own_validation_scores() -> None:
    """The second chip's scores are shifted on test: what was a share of 0.3 is all and none."""
    validation = np.concatenate([RISING, RISING])
    score = Score({"validation": validation, "test": validation + np.array([[10.0], [-10.0]])})
    row = row_of(Remedy("chip", "digital", "score", "share", 0.3), score, digital=of_every_chip())
    assert row["routed"] == pytest.approx(0.5)
    assert row["accuracy"] == pytest.approx((9 + 8) / 20)


def test_a_guaranteed_threshold_lets_stay_what_it_may() -> None:
    """Level 0.2 of ten: (1 + 1) / 11 is below, (2 + 1) / 11 is not. The first chip fails on
    samples 6 and 8: 0 to 7 stay; the second on 8 alone: all may stay."""
    row = row_of(
        Remedy("chip", "digital", "score", "risk", 0.2),
        Score(folds(RISING)),
        digital=of_every_chip(),
    )
    assert row["routed"] == pytest.approx((2 + 0) / 20)
    assert row["failed"] == pytest.approx((1 + 1) / 20)


def test_all_get_the_second_answer() -> None:
    second = Outcomes(folds(np.ones((2, 10), bool)), Passes(3.0, 0.0))
    row = row_of(Remedy("chip", "reads", rule="all"), reads=second)
    assert (row["accuracy"], row["routed"], row["analog_passes"]) == (1.0, 1.0, 4.0)
    row = row_of(Remedy("chip", "reads", rule="all"), reads=replace(second, replaces=True))
    assert (row["accuracy"], row["routed"], row["analog_passes"]) == (1.0, 1.0, 3.0)


def test_validation_chooses_and_test_is_reported() -> None:
    right = {"validation": np.ones((1, 4), bool), "test": np.zeros((1, 4), bool)}
    digital = {fold: some[0] for fold, some in right.items()}
    (row,) = remedies_table(
        [Remedy("chip")], {"chip": Outcomes(right, ONCE)}, {}, {}, digital, plain="chip",
        free="chip", confidence=0.95,
    ).to_dict("records")  # fmt: skip
    assert (row["accuracy"], row["validation_accuracy"]) == (0.0, 1.0)
    assert np.isnan(row["failure_rate"])  # the digital model is right on none


# --- the frontier


def table_of(*rows: tuple[float, float, float]) -> pd.DataFrame:
    columns = ["analog_passes", "digital_passes", "validation_accuracy"]
    table = pd.DataFrame(rows, columns=columns).assign(time_s=20.0)
    passes = {f"validation_{name}": table[name] for name in columns[:2]}
    return table.assign(**passes)


def test_energy_is_linear_in_both_passes() -> None:
    assert energies(table_of((2.0, 0.5, 1.0)), Costs(0.3, 2.0)).tolist() == [2 * 0.3 + 0.5 * 2]


def test_frontier_leaves_what_another_beats() -> None:
    energy = pd.Series([0.1, 0.1, 0.2, 0.3, 0.3, 0.05])
    accuracy = pd.Series([0.7, 0.8, 0.8, 0.9, 0.9, 0.5])
    assert frontier(energy, accuracy).tolist() == [False, True, False, True, False, True]


def test_the_frontier_moves_with_the_cost_of_an_analog_pass() -> None:
    """Four reads take 0.4 of a digital pass at 0.1 and 1.2 at 0.3, where the digital one is
    better."""
    table = table_of((1.0, 0.0, 0.8), (4.0, 0.0, 0.85), (0.0, 1.0, 0.9))
    found = frontiers(table, ["time_s"], [Costs(0.1), Costs(0.3)])
    kept = found.groupby("analog_cost")["validation_accuracy"].agg(list).to_dict()
    assert kept == {0.1: [0.8, 0.85, 0.9], 0.3: [0.8, 0.9]}
    assert found["energy"].round(3).tolist() == [0.1, 0.4, 1.0, 0.3, 1.0]


def test_the_frontier_is_chosen_by_what_validation_images_take() -> None:
    """On test images the second row takes less; on validation images it is beaten by the first."""
    table = table_of((1.0, 0.0, 0.8), (0.5, 0.0, 0.8))
    table["validation_analog_passes"] = [1.0, 2.0]
    found = frontiers(table, ["time_s"], [Costs(0.1)])
    assert found[["energy", "validation_energy"]].values.tolist() == [[0.1, 0.1]]


def test_the_verdict_names_the_cheapest_that_is_near_enough() -> None:
    rows = pd.DataFrame(
        {
            "first": ["chip", "compensated", "digital"],
            "second": ["", "digital", ""],
            "score": ["", "margin", ""],
            "rule": ["none", "share", "none"],
            "at": [np.nan, 0.1, np.nan],
            "energy": [0.1, 0.2, 1.0],
            "validation_energy": [0.1, 0.2, 1.0],
            "accuracy": [0.5, 0.87, 0.9],
            "short": [0.4, 0.03, 0.0],
            "short_low": [0.35, 0.02, 0.0],
            "short_high": [0.45, 0.04, 0.0],
            "validation_accuracy": [0.5, 0.89, 0.9],
        }
    )
    found = cheapest_within(rows, 0.9, 0.0101)
    assert found is not None
    assert told(found) == "compensated; 10 % digital by margin"
    said = verdict(rows, 31, {"validation": 0.8999, "test": 0.9})
    assert said.startswith("Cheapest of 31 ways within 1 point of the digital accuracy")
    assert "compensated; 10 % digital by margin, at 0.200 of its energy" in said
    assert "on test images 3.0 [2.0, 4.0] points below" in said
    said = verdict(rows, 31, {"validation": 0.8999, "test": 0.9}, "test")
    assert "on test images that were set apart: compensated" in said
    assert "None of 31 ways" in verdict(rows[:1], 31, {"validation": 0.9, "test": 0.9})


def test_exactly_a_point_below_is_near_enough() -> None:
    """21 of 200 images right and 23: 0.115 - 0.01 is 0.10500000000000001 in double precision."""
    accuracy = [21 / 200, 23 / 200]
    rows = pd.DataFrame({"validation_energy": [0.1, 1.0], "validation_accuracy": accuracy})
    found = cheapest_within(rows, 23 / 200, 0.01)
    assert found is not None
    assert found["validation_energy"] == 0.1


# --- the plan

CHOICES = Choices((0.1,), (0.05,), reads=4, together=2, extra_bits=2, adc_share=0.5)
COVERAGE = pd.DataFrame(
    {"layer": ["a", "b", "c"], "macs": [60, 30, 10], "place": ["analog", "analog", "digital"]}
)


def plan(profile: Profile, **options: Any) -> Any:
    options = {"recalibrates": True, "choices": CHOICES, **options}
    return plan_of(profile, COVERAGE, {0.3: ["b"], 0.01: []}, **options)


def test_passes_follow_what_is_on_tiles() -> None:
    made = plan(Profile(memory=PCM(), adc=ADC(bits=6)))
    assert made.firsts["chip"].passes == Passes(0.9, 1 - 0.9)
    partly = made.firsts["compensated, recalibrated, 30 % digital"]
    assert (partly.passes.analog, partly.passes.digital) == pytest.approx((0.6, 0.4))
    assert partly.kinds[0].digital_layers == ("b",)
    assert not any("1 %" in name for name in made.firsts)  # no layer fits into it
    # Half of an analog pass is the ADC's, which two more bits make four times as large.
    bits = made.seconds["8 ADC bits"]
    assert (bits.passes.analog, bits.passes.digital) == pytest.approx((0.9 * 2.5, 0.1))
    assert [name for name, one in made.seconds.items() if one.replaces] == ["8 ADC bits"]


def test_a_fine_tuned_network_has_every_remedy_that_takes_no_energy() -> None:
    made = plan(Profile(memory=PCM()), tuned="hash")
    assert made.free == "compensated, recalibrated"
    own = {name: one for name, one in made.firsts.items() if not name.startswith("fine-tuned")}
    tuned = {name: one for name, one in made.firsts.items() if name not in own}
    assert own == plan(Profile(memory=PCM())).firsts
    assert list(tuned) == [
        "fine-tuned, compensated, recalibrated",
        "fine-tuned, compensated, recalibrated, 30 % digital",
    ]
    for name, answer in tuned.items():
        twin = own[name.removeprefix("fine-tuned, ")]
        assert answer.passes == twin.passes
        assert answer.kinds == (replace(twin.kinds[0], network="hash"),)


def test_repeated_reads_are_tried_where_reads_differ() -> None:
    frozen, fresh = WeightNoise(drawn="per_chip"), WeightNoise(drawn="per_mvm")
    assert list(plan(Profile(memory=PCM(), wnoise=frozen)).seconds) == ["2 chips"]
    made = plan(Profile(memory=PCM(), wnoise=fresh))
    assert list(made.seconds) == ["2 chips", "4 reads"]
    assert made.seconds["4 reads"].passes.analog == pytest.approx(3 * 0.9)


def test_nothing_is_recalibrated_without_batch_norm() -> None:
    made = plan(Profile(memory=PCM()), recalibrates=False)
    assert made.free == "compensated"
    assert not any("recalibrated" in name for name in made.firsts)
    assert not any(kind.recalibrated for kind in made.kinds)


def test_answers_average_and_fit_logits() -> None:
    """Two classes. The chip's logits are the digital ones shifted, which the fit undoes; the other
    chip errs to the other side, so that the mean of both is right."""
    every_fold = ("test", "validation", "measured")
    labels = np.array([0, 1, 0, 1])
    exact = np.array([[1.0, 0], [0, 1], [2, 0], [0, 2]], np.float32)
    shift = np.array([3.0, 0], np.float32)

    def made_of(logits: Mapping[int, NDArray[np.float32]]) -> dict[Kind, Predictions]:
        every = plan(Profile(memory=PCM()), recalibrates=False).kinds
        return {
            kind: Predictions(dict.fromkeys(every_fold, logits[kind.other][None]), {})
            for kind in every
        }

    digital = Predictions(dict.fromkeys(every_fold, exact[None]), dict.fromkeys(every_fold, labels))
    choices = replace(CHOICES, levels=())
    tried = plan_of(Profile(memory=PCM()), COVERAGE, {}, recalibrates=False, choices=choices)
    table = outcomes_table(
        tried,
        made_of({0: exact + shift, 1: exact - shift}),
        digital,
        {"curvature": Score(folds(np.array([[0.0, 9, 1, 8]])), before=True)},
        confidence=0.95,
    )
    alone = table[table["rule"].isin(["none", "all"])].apply(told, axis=1)
    found = dict(zip(alone, table.loc[alone.index, "accuracy"], strict=True))
    assert found == {
        "digital": 1.0,
        "chip": 0.5,
        "fitted logits": 1.0,
        "compensated": 0.5,
        "compensated, fitted logits": 1.0,
        "compensated; 2 chips": 1.0,
    }
    known = table[(table["score"] == "curvature") & (table["first"] == "chip")]
    assert known["routed"].tolist() == [0.25]
    assert known["accuracy"].tolist() == [0.75]


def test_failures_by_decile(tmp_path: Path) -> None:
    """Curvature falls from the first image to the last. The compensated chip is right on all, the
    other one is wrong on the two images of highest curvature."""
    labels = np.zeros(20, np.int64)
    right = np.tile(np.array([1.0, 0], np.float32), (20, 1))
    wrong = right.copy()
    wrong[:2] = wrong[:2, ::-1]
    every_fold = ("test", "validation", "measured")
    made = {
        kind: Predictions(
            dict.fromkeys(every_fold, (right if kind.compensated else wrong)[None]), {}
        )
        for kind in plan(Profile(memory=PCM()), recalibrates=False).kinds
    }
    digital = Predictions(dict.fromkeys(every_fold, right[None]), dict.fromkeys(every_fold, labels))
    tried = plan_of(Profile(memory=PCM()), COVERAGE, {}, recalibrates=False, choices=CHOICES)
    curvature = np.arange(20.0)[::-1].copy()
    table = deciles_table(tried, made, digital, curvature, np.arange(20), confidence=0.95)
    rates = table.set_index(["first", "decile"])["rate_of_all"]
    assert rates["chip"].tolist() == [0.0] * 9 + [1.0]
    assert rates["compensated"].tolist() == [0.0] * 10
    drawn = draw(table.assign(time_s=20.0), tmp_path / "deciles.png", title="digits")
    assert "digits: mean of 1 chip, 20 test images<" in drawn.with_suffix(".svg").read_text()


# --- what is known before a chip runs, and the chips


def test_known_curvature_sees_no_label(finished_run: Path) -> None:
    scores = pd.read_parquet(finished_run / "scores.parquet").query("fold == 'test'")
    images: Any = SimpleNamespace(indices=scores["index"].to_numpy())
    found = _stored(scores, Path("none"), None, range(3), {"test": ("test", images)})
    assert list(found) == ["curvature"]
    np.testing.assert_array_equal(
        found["curvature"].values["test"], [scores["curvature_label_free"]]
    )
    wrong = ~scores["correct"]
    assert (scores["curvature"] != scores["curvature_label_free"])[wrong].all()
    assert wrong.any()


def test_deciles_are_of_the_paper_s_curvature(finished_run: Path) -> None:
    scores = pd.read_parquet(finished_run / "scores.parquet").query("fold == 'test'")
    images: Any = SimpleNamespace(indices=scores["index"].to_numpy()[::-1])
    found = _curvature(scores, images)
    assert found is not None
    np.testing.assert_array_equal(found, scores["curvature"].to_numpy()[::-1])
    images.indices = np.append(images.indices, 10**6)  # not scored
    assert _curvature(scores, images) is None


# --- the chips


class NumberedChips:
    """Chips whose every logit is their own number, and `first`; `programmed` counts them."""

    batch_norms = 0

    def __init__(self, first: int = 0) -> None:
        self.first = first
        self.programmed: list[int] = []

    def program(self, _: Profile, seed: int, **__: Any) -> Any:
        def predict(fold: list[Any], *_: Any, **__: Any) -> pd.DataFrame:
            logits = [np.full(2, self.first + seed, np.float32)] * len(fold)
            return pd.DataFrame({"index": range(len(fold)), "label": 0, "logits": logits})

        self.programmed.append(seed)
        chip = SimpleNamespace(predict=predict)
        chip.at = lambda _: chip
        return chip


class Fold(list[dict[str, Any]]):
    def __getitems__(self, positions: range) -> list[dict[str, Any]]:
        return [self[position] for position in positions]


def test_asking_for_more_chips_moves_those_that_answer_beside_them(tmp_path: Path) -> None:
    """The second chip of seed s is s + the number of seeds, whatever was asked for before."""
    network: Any = NumberedChips()
    fold = Fold([{"image": np.zeros(1, np.float32)}] * 2)
    folds: Any = dict.fromkeys(("test", "validation", "measured"), fold)
    itself, beside = Kind(), Kind(other=1)

    def numbers(chips: int) -> tuple[list[float], list[float]]:
        bench = Bench({OWN: network}, Profile(memory=PCM()), folds, range(chips), 2, tmp_path)
        made = predictions(bench, [itself, beside], [20.0])
        first, second = (made[kind, 20.0].logits["test"][:, 0, 0] for kind in (itself, beside))
        return first.tolist(), second.tolist()

    assert numbers(2) == ([0, 1], [2, 3])
    assert numbers(3) == ([0, 1, 2], [3, 4, 5])
    assert sorted(network.programmed) == [0, 1, 2, 3, 4, 5]  # none of them twice


def test_another_fine_tuned_network_takes_no_answers_of_an_earlier_one(tmp_path: Path) -> None:
    fold = Fold([{"image": np.zeros(1, np.float32)}] * 2)
    folds: Any = dict.fromkeys(("test", "validation", "measured"), fold)
    networks: Any = {name: NumberedChips(first) for name, first in ((OWN, 0), ("a", 10), ("b", 20))}

    def numbers(name: str) -> list[float]:
        tried = {OWN: networks[OWN], name: networks[name]}
        bench = Bench(tried, Profile(memory=PCM()), folds, range(2), 2, tmp_path)
        kinds = [Kind(), Kind(network=name)]
        made = predictions(bench, kinds, [20.0])
        return [one for kind in kinds for one in made[kind, 20.0].logits["test"][:, 0, 0].tolist()]

    assert numbers("a") == [0, 1, 10, 11]
    assert numbers("b") == [0, 1, 20, 21]
    assert numbers("a") == [0, 1, 10, 11]
    assert [one.programmed for one in networks.values()] == [[0, 1]] * 3  # none of them twice


# --- the command

FLAGS = (
    *("--remedies.chips", "2", "--remedies.limit", "30", "--remedies.validation-limit", "30"),
    *("--remedies.times", "3600", "--remedies.measured", "20", "--simulate.adc-calibration", "20"),
    *("--remedies.digital-macs", "0.3", "--simulate.wnoise.drawn", "per_mvm"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder of which only the exported weights are left, and what the command made.

    `tuned.safetensors` is fine-tuned from them until it says 3 to everything.
    """
    folder = write_exported_digits(tmp_path_factory.mktemp("run"))
    state, header = bridge.weights.load_weights(folder / "weights.safetensors")
    header["checkpoint_sha256"] = "0" * 64
    bridge.weights.save_weights(folder / "weights.safetensors", state, header)
    tuned = {**header, "variant": "noise_aware", "finetune": {"from": "0" * 64, "steps": 1}}
    state["fc.bias"][3] += 1e6
    bridge.weights.save_weights(folder / "tuned.safetensors", state, tuned)
    own = ("--remedies.tuned", str(folder / "tuned.safetensors"))
    with pytest.MonkeyPatch.context() as patch:  # as if the run had scored its images
        patch.setattr(remedies_opened, "_curvature", lambda _, test: np.arange(float(len(test))))
        assert commands.run(["remedies", "digits", "--out", str(folder), *FLAGS, *own]) == 0
    return folder


def test_what_it_leaves(folder: Path) -> None:
    out = folder / "remedies"
    table = pd.read_parquet(out / "remedies.parquet")
    assert set(table["time_s"]) == {3600.0}
    assert {"chip", "digital", "recalibrated", "compensated, fitted logits"} <= set(table["first"])
    assert {"digital", "2 chips", "4 reads", "11 ADC bits"} <= set(table["second"])
    best = pd.read_csv(out / "frontier.csv")
    assert set(best["analog_cost"]) == {0.05, 0.1, 0.3}
    assert best.groupby("analog_cost")["validation_accuracy"].apply(
        lambda one: one.is_monotonic_increasing
    ).all()  # fmt: skip
    deciles = pd.read_csv(out / "deciles.csv").set_index(["time_s", "first"])
    assert set(deciles.index.unique("first")) == set(table["first"]) - {"digital"}
    assert deciles.loc[(3600.0, "chip"), "samples"].tolist() == [3] * 10
    for name in ("remedies.png", "remedies.svg", "remedies.csv", "layers.csv", "deciles.png"):
        assert (out / name).stat().st_size > 100
    settings = json.loads((out / "settings.json").read_text())
    assert (settings["seeds"], settings["chosen_on"]) == ([0, 1], "validation")
    (kept,) = settings["digital_layers"].values()
    assert kept  # some layer of this small network fails by itself


def test_chips_of_a_fine_tuned_network(folder: Path) -> None:
    table = pd.read_csv(folder / "remedies" / "remedies.csv").query("rule == 'none'")
    found = table.set_index("first")["accuracy"]
    digital = read_parquet(next(folder.glob("remedies/pieces/*/digital.parquet")))
    threes = float((digital.loc[digital["fold"] == "test", "label"] == 3).mean())
    tuned = [name for name in found.index if name.startswith("fine-tuned")]
    assert found[tuned].tolist() == pytest.approx([threes] * 2)
    assert found["digital"] > threes > 0
    made = read_json(folder / "remedies" / "settings.json")["tuned"]
    assert (made["variant"], made["steps"]) == ("noise_aware", 1)
    assert made["weights_sha256"] == sha256(folder / "tuned.safetensors")


def test_the_report_reads_a_sentence_for_each_time(folder: Path) -> None:
    (said,) = verdicts(folder / "remedies")
    assert said.startswith("adc+wnoise+pcm, 1 h after programming (2 chips). ")
    ways = len(pd.read_csv(folder / "remedies" / "remedies.csv"))
    assert f"Cheapest of {ways} ways" in said or f"None of {ways} ways" in said


def test_one_chip_is_no_chips(folder: Path, tmp_path: Path) -> None:
    for name in ("frontier.csv", "remedies.csv"):
        shutil.copy(folder / "remedies" / name, tmp_path)
    made = read_json(folder / "remedies" / "settings.json")
    write_json(tmp_path / "settings.json", {**made, "seeds": [0]})
    (said,) = verdicts(tmp_path)
    assert "1 h after programming (1 chip). " in said


def test_one_chip_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "remedies"
    table, best = pd.read_parquet(out / "remedies.parquet"), pd.read_csv(out / "frontier.csv")
    best = best.fillna({"second": "", "score": ""})
    show(table, best, {"test": 0.5, "validation": 0.5}, Costs(), "validation")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 time, 2 chips and 30 test images" in said
    assert "One chip" not in said
    show(table.assign(chips=1), best, {"test": 0.5, "validation": 0.5}, Costs(), "validation")
    said = " ".join(capsys.readouterr().out.split())
    assert "1 time, 1 chip and" in said
    assert "One chip tells nothing of others" in said


def test_it_goes_on_from_what_is_there(folder: Path) -> None:
    pieces = {path: path.stat().st_mtime_ns for path in folder.glob("remedies/pieces/*/*")}
    assert pieces
    before = pd.read_parquet(folder / "remedies" / "remedies.parquet")
    next(path for path in pieces if "layers" not in path.name).unlink()
    for kind in ("csv", "png", "svg", "pdf"):  # of images that were scored then
        (folder / "remedies" / f"deciles.{kind}").touch()
    assert commands.run(["remedies", "digits", "--out", str(folder), *FLAGS]) == 0
    made = [
        path
        for path in folder.glob("remedies/pieces/*/*")
        if path.stat().st_mtime_ns != pieces.get(path)
    ]
    assert len(made) == 1
    assert not list((folder / "remedies").glob("deciles.*"))
    pd.testing.assert_frame_equal(before, pd.read_parquet(folder / "remedies" / "remedies.parquet"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.safetensors", "no network that finetune made of this run's"),
        ("missing.safetensors", "give a file of finetune/weights/"),
    ],
)
def test_another_file_is_no_fine_tuned_network(
    folder: Path, name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("remedies", "digits", "--out", str(folder), *FLAGS)
    assert commands.run([*flags, "--remedies.tuned", str(folder / name)]) == 2
    assert said in capsys.readouterr().err


def test_levels_that_the_validation_images_cannot_promise_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(["remedies", "digits", "--out", str(folder), *FLAGS]) == 0
    said = capsys.readouterr().err
    assert "30 validation images promise no failures below 0.5 %, 1 %, 2 %: left out; 199" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shares": (0.0,)}, "shares"),
        ({"levels": (1.0,)}, "levels"),
        ({"digital_macs": (1.5,)}, "digital_macs"),
        ({"times": ()}, "times"),
        ({"times": (20.0, 20.0)}, "times"),
        ({"analog_costs": (0.0,)}, "analog cost"),
        ({"reads": 1}, "reads must be at least 2"),
        ({"first": -1}, "first must not be negative"),
        ({"chips": 0}, "chips must be at least 1"),
        ({"measured": 1}, "measured must be at least 2"),
        ({"adc_share": 1.5}, "adc_share"),
    ],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Remedies(**settings)


def test_every_column_is_described(folder: Path) -> None:
    for path, frame in tables_in(folder / "remedies"):
        described(path, frame)
