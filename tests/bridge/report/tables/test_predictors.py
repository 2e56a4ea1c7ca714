"""Costs, flips and routers of a run on hand-made tables; a run's own command line."""

import json
import logging
import re
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from bridge.analysis import rate_interval
from bridge.chips.memories.conductances import Pairs
from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables import failure_rates, outcomes, predictors, routers, sentences
from bridge.routing import Costs, choose_threshold, routed_at
from experiments.cli.parsing import Options, parse_preset
from experiments.settings.flags import Experiment
from experiments.settings.presets import PRESETS, command_line
from jaxcurv.costs import MARGIN, MARGIN_MOMENTS

FULL = FULL_PROFILE
SAMPLES = 80


def tables(folds: tuple[str, ...] = ("validation", "test"), chips: tuple[int, ...] = (0, 1)):
    """Scores, predictions and flips; a sample fails the likelier the smaller its margin."""
    rng = np.random.default_rng(0)
    scores, predictions, flips = [], [], []
    for fold in folds:
        index = np.arange(SAMPLES)
        margin = rng.exponential(size=SAMPLES)
        label = index % 3
        right = rng.random(SAMPLES) < 0.85
        score = pd.DataFrame({"fold": fold, "index": index, "label": label})
        score["prediction"] = np.where(right, label, 3)
        score["correct"] = right
        score["curvature"] = 1 / (margin + rng.exponential(0.3, size=SAMPLES))
        score["curvature_label_free"] = score["curvature"]
        score["loss"] = score["loss_label_free"] = 1 / margin
        score["least_confidence"] = 1 / (1 + np.exp(margin))
        score["gradient_norm"] = 1 / (margin + rng.exponential(0.5, size=SAMPLES))
        score["margin"], score["label_margin"] = margin, np.where(right, margin, -margin)
        scores.append(score)
        flips.append(
            pd.DataFrame(
                {
                    "fold": fold,
                    "index": index,
                    "profile": FULL,
                    "margin": margin,
                    "shift": -0.1,
                    "probability": np.exp(-2 * margin),
                    "unshifted": 0.1,
                }
            )
        )
        for profile in ("ideal", FULL):
            for chip in chips:
                fails = (rng.random(SAMPLES) < np.exp(-2 * margin)) & (profile == FULL)
                chip_rows = pd.DataFrame({"index": index}).assign(
                    profile=profile,
                    chip=chip,
                    fold=fold,
                    prediction=np.where(fails, 3, score["prediction"]),
                    margin=np.abs(margin + rng.normal(scale=0.1, size=SAMPLES)),
                )
                chip_rows["correct"] = chip_rows["prediction"] == label
                predictions.append(chip_rows)
    return (pd.concat(parts, ignore_index=True) for parts in (scores, predictions, flips))


@pytest.fixture(scope="module")
def run():
    scores, predictions, flips = tables()
    return outcomes.join(scores, predictions), flips


COSTS = predictors.costs_table(
    pd.DataFrame(
        {
            "predictor": ["loss", "gradient_norm", "curvature"],
            "forward_passes": [1.0, 2.0, 22.0],
            "seconds_per_image": [0.5, 1.0, 10.0],
        }
    )
)


def test_costs_of_scores_and_of_their_combinations():
    costs = COSTS.set_index("predictor")
    assert costs.loc["curvature"].tolist() == [22, 10]
    assert costs.loc["margin"].tolist() == [1, 0.5]
    assert costs.loc["curvature_label_free"].tolist() == [22, 10]
    # What the logits give is free beside an estimator, which begins with a forward pass.
    assert costs.loc[predictors.ADDED].tolist() == [22, 10]
    assert costs.loc[predictors.OF_LOGITS].tolist() == [1, 0.5]
    assert costs.loc[predictors.LOGITS_ADDED].tolist() == [22, 10]
    assert costs.loc[predictors.COMBINED].tolist() == [22 + 2, 11]
    passes = costs["forward_passes"]
    assert passes[predictors.FLIP_PROBABILITY] == MARGIN + MARGIN_MOMENTS
    assert passes[predictors.AT_MEAN] == 2 * MARGIN
    assert passes[predictors.UNSHIFTED] == MARGIN_MOMENTS


def test_scores_without_labels_stand_beside_the_others_among_all_samples(run):
    joined, flips = run
    table = predictors.compare(joined, COSTS, flips, resamples=20)
    names = {
        among: set(rows["predictor"])
        for among, rows in table[table["profile"] == FULL].groupby("denominator")
    }
    scores = {"curvature", "gradient_norm", "least_confidence", "margin"}
    scores |= {"margin at mean weights", "flip_probability", "flip_probability, unshifted"}
    models = {predictors.ADDED, predictors.COMBINED, *predictors.NESTED}
    models |= set(predictors.NESTED.values())
    # Among the correct ones the loss would rank as least confidence does.
    assert names["correct"] == scores | models
    label_free = {"curvature_label_free", "loss_label_free"}
    assert names["all"] == scores | label_free | {"label_margin", "loss"}
    ideal = table[table["profile"] == "ideal"]
    assert not ideal["predictor"].str.startswith("flip").any()
    assert set(table["reference"]) == {"margin"}
    row = outcomes.select(table, fold="test", profile=FULL, predictor="flip_probability")
    # The probabilities rank as the margins do, so they differ by nothing.
    assert row["auroc_difference"].tolist() == [0, 0]
    assert (row["auroc"] > 0.7).all()


def test_failures_on_other_chips_stand_beside_where_they_tell():
    rng = np.random.default_rng(1)
    digital = np.full(300, True)
    often = rng.random((3, 300)) > np.where(np.arange(300) < 60, 0.8, 0.1)
    found = predictors._monte_carlo(digital, often)
    assert list(found) == ["failure on another chip", "failures on 2 others"]
    np.testing.assert_array_equal(
        found["failure on another chip"], np.roll(~often, -1, axis=0).astype(float)
    )
    alike = np.repeat(often[:1], 3, axis=0)  # as of an ADC alone
    seldom = rng.random((3, 300)) > 0.02
    for chips in (alike, seldom, often[:1]):
        assert predictors._monte_carlo(digital, chips) == {}


def test_curvature_is_added_to_the_logits_and_to_these_with_the_gradient_norm(run):
    joined, flips = run
    table = predictors.compare(joined, COSTS, flips, resamples=20)
    rows = outcomes.select(table, fold="test", profile=FULL, denominator="correct")
    rows = rows.set_index("predictor")
    for more, less in predictors.NESTED.items():
        difference = rows.loc[more, "auroc"] - rows.loc[less, "auroc"]
        assert rows.loc[more, "added_difference"] == pytest.approx(difference)
    others = rows.index.difference(predictors.NESTED)
    assert rows.loc[others, "added_difference"].isna().all()
    said = {}
    for low, high, word in ((0.01, 0.03, "adds to"), (-0.03, -0.01, "takes from")):
        changed = table.copy()
        here = changed["predictor"] == predictors.GRADIENT_ADDED
        changed.loc[here, ["added_difference_low", "added_difference_high"]] = low, high
        said[word] = predictors.verdict(changed)
        assert f"and {word} one of these and the gradient norm (" in said[word]
    assert all("a logistic model of the logits' own scores (" in one for one in said.values())


def test_the_flip_probability_is_in_the_model_that_is_named_after_it(run):
    """One that foretells each failure leaves nothing for the others to tell."""
    joined, flips = run
    here = joined[(joined["profile"] == FULL) & (joined["fold"] == "test")]
    fails = here[here["failure"]].groupby("index").size()
    knowing = flips.assign(
        probability=np.where(flips["index"].isin(fails.index), 0.9, 0.1) + 0.001 * flips["margin"]
    )
    found = {}
    for name, table in (("usual", flips), ("knowing", knowing)):
        rows = predictors.compare(joined, COSTS, table, resamples=20)
        rows = outcomes.select(rows, fold="test", profile=FULL, denominator="correct")
        found[name] = rows.set_index("predictor")["auroc"]
    for name in predictors.NESTED:
        changed = found["knowing"][name] > found["usual"][name] + 0.05
        assert changed == (name == predictors.FLIP_ADDED)
    costs = COSTS.set_index("predictor")["forward_passes"]
    sum_of_parts = costs[predictors.GRADIENT_ADDED] + costs[predictors.FLIP_PROBABILITY]
    assert costs[predictors.FLIP_ADDED] == sum_of_parts


def test_missing_flips_are_said(run):
    joined, flips = run
    lost = flips.drop(index=flips.index[flips["fold"] == "test"][3])
    with pytest.raises(
        ValueError, match=r"1 samples have no flip .* fold test, index 3: run flips"
    ):
        predictors.compare(joined, COSTS, lost, resamples=5)
    with pytest.raises(ValueError, match="1 samples have no flip probability"):
        predictors.calibrate(joined, lost)


def test_without_a_shift_the_plain_flip_probability_is_all_there_is(run):
    joined, flips = run
    table = predictors.compare(joined, COSTS, flips.assign(shift=0.0), resamples=5)
    physical = {predictors.FLIP_PROBABILITY, predictors.UNSHIFTED, predictors.AT_MEAN}
    assert set(table["predictor"]) & physical == {predictors.FLIP_PROBABILITY}


def test_a_model_that_is_never_right_has_an_empty_calibration(run):
    joined, flips = run
    wrong = joined.assign(digital_correct=False, failure=False)
    calibration, errors = predictors.calibrate(wrong, flips)
    assert (len(calibration), len(errors)) == (0, 0)
    assert {"fold", "profile", "predictor", "observed"} <= set(calibration)


def test_too_few_correct_samples_are_said(run):
    joined, flips = run
    wrong = joined.assign(digital_correct=joined["digital_correct"] & (joined["index"] < 5))
    table = predictors.compare(wrong, COSTS, flips, resamples=5)
    rows = outcomes.select(table, fold="test", profile=FULL, denominator="correct")
    assert rows["reason"].str.fullmatch(r"\d digitally correct samples cannot fill 10 bins").all()
    assert rows["auroc"].isna().all()
    assert predictors.verdict(table) == ""
    deciles = failure_rates.failure_tables(wrong)
    sentence = sentences.answer(deciles, table, denominator="correct")
    assert "an undefined share of D1" in sentence
    assert re.search(r"rho is undefined: \d digitally correct samples cannot", sentence)


def test_calibration_is_of_the_digitally_correct(run):
    joined, flips = run
    calibration, errors = predictors.calibrate(joined, flips)
    row = errors.set_index(["fold", "predictor"]).loc[("test", "flip_probability")]
    rows = joined[(joined["fold"] == "test") & (joined["profile"] == FULL)]
    correct = rows[rows["digital_correct"]]
    assert row["samples"] == correct["index"].nunique()
    assert row["observed"] == pytest.approx(correct["failure"].mean())
    failed = correct.pivot(index="chip", columns="index", values="failure").to_numpy(bool)
    assert (row["observed_low"], row["observed_high"]) == pytest.approx(rate_interval(failed))
    narrow = predictors.calibrate(joined, flips, confidence=0.5)[1]
    assert (narrow["observed_low"] > errors["observed_low"]).all()
    merged = correct.merge(flips, on=["fold", "index", "profile"])
    assert row["predicted"] == pytest.approx(merged["probability"].mean())
    # Digitally wrong samples aside, the probabilities are those that made the failures.
    assert row["expected_calibration_error"] < 0.1
    constant = errors.set_index(["fold", "predictor"]).loc[("test", predictors.UNSHIFTED)]
    assert constant["expected_calibration_error"] == pytest.approx(
        abs(correct["failure"].mean() - 0.1)
    )
    assert set(calibration["predictor"]) == {"flip_probability", predictors.UNSHIFTED}
    with pytest.raises(ValueError, match="no flip probability belongs to a simulated chip"):
        predictors.calibrate(joined, flips.assign(profile="adc"))


def test_thresholds_are_chosen_on_validation_and_tried_on_test(run):
    joined, flips = run
    with_flips = predictors.with_flips(joined, flips)
    energies = Costs(analog=0.2)
    found = routers.route(with_flips, COSTS, energies=energies, tolerance=0.02)
    choices = found.choices[found.choices["profile"] == FULL].set_index("router")
    assert set(choices.index) == {
        *("analog margin", "curvature, known", "margin, known", "flip probability, known"),
        *("curvature, computed", "margin, computed", "flip probability, computed"),
    }
    validation, test = (
        with_flips[(with_flips["fold"] == fold) & (with_flips["profile"] == FULL)]
        for fold in ("validation", "test")
    )
    samples, analog = outcomes.over_chips(validation)
    target = samples["digital_correct"].mean() - 0.02
    threshold = choose_threshold(
        samples["curvature"], samples["digital_correct"], analog, float(target)
    )
    row = choices.loc["curvature, known"]
    assert (row["threshold"], row["target"]) == (threshold, pytest.approx(target))
    samples, analog = outcomes.over_chips(test)
    expected = routed_at(
        threshold, samples["curvature"], samples["digital_correct"], analog, costs=energies
    )
    assert (row["fraction"], row["accuracy"]) == (expected.fraction, expected.accuracy)
    assert (choices["validation_accuracy"] >= target - 1e-9).all()
    # What a digital pass computed never saves any.
    assert (choices.loc[["curvature, computed", "margin, computed"], "saved"] < 0).all()
    ends = found.curves[found.curves["profile"] == FULL].groupby("router")["accuracy"]
    np.testing.assert_allclose(ends.first(), analog.mean())
    np.testing.assert_allclose(ends.last(), samples["digital_correct"].mean())
    expected = samples["digital_correct"].mean() - choices["accuracy"]
    np.testing.assert_allclose(choices["given_up"], expected)
    first, second = routers.summary(found.choices).split(". ")
    # The first is one that a new input can have, the second says what it presupposes.
    assert "runs every sample on the chip and by analog margin" in first
    assert f"gives up {100 * choices.loc['analog margin', 'given_up']:.1f} points" in first
    assert second.startswith("Where scores were stored for these very inputs")


@pytest.mark.parametrize(
    ("accuracies", "told"),
    [
        ((0.75, 0.75, 0.75), "gives up 5.0 points of"),  # one chip
        ((0.75, 0.70, 0.80), "gives up 5.0 points (0.0 to 10.0 over the chips) of"),
        ((0.875, 0.75, 1.0), "gains 7.5 points (-5.0 to 20.0 over the chips) of"),
    ],
)
def test_what_a_router_gives_up_has_its_range_over_the_chips(accuracies, told):
    row = dict(zip(("accuracy", "accuracy_min", "accuracy_max"), accuracies, strict=True))
    row |= {"fold": "test", "profile": FULL, "router": "analog margin", "kind": "analog"}
    row |= {"given_up": 0.8 - row["accuracy"], "fraction": 0.2, "saved": 0.7}
    row |= {"validation_energy": 0.3}
    assert f"(threshold chosen on validation) {told} the digital" in routers.summary(
        pd.DataFrame([row])
    )


def test_without_a_validation_fold_no_threshold_is_chosen(caplog):
    scores, predictions, _ = tables(folds=("test",))
    joined = outcomes.join(scores, predictions)
    with caplog.at_level(logging.WARNING):
        found = routers.route(joined, COSTS, energies=Costs(), tolerance=0.01)
    assert "no validation fold is scored" in caplog.text
    assert found.choices.empty
    assert routers.summary(found.choices) == ""
    assert len(found.curves) > 100


def test_choices_are_charged_otherwise_as_if_they_had_been_made_so(run):
    joined, flips = run
    with_flips = predictors.with_flips(joined, flips)
    others = COSTS.assign(forward_passes=3 * COSTS["forward_passes"])
    energies = Costs(analog=0.2, digital=2.0)
    found, expected = (
        routers.route(with_flips, costs, energies=energies, tolerance=0.02)
        for costs in (COSTS, others)
    )
    assert not np.allclose(found.choices["energy"], expected.choices["energy"])
    charged = routers.recharged(found.choices, found.baselines, others)
    pd.testing.assert_frame_equal(charged, expected.choices)


@pytest.mark.parametrize("preset", list(PRESETS))
def test_a_preset_s_command_line_is_its_name(preset):
    assert command_line(asdict(PRESETS[preset].experiment)) == [preset]


def test_a_run_s_command_line_gives_the_same_experiment():
    base = PRESETS["cifar10_resnet18_small"].experiment
    changed = replace(
        base,
        train=replace(base.train, epochs=3, flip=False),
        score=replace(base.score, compare=("hessian_trace",)),
        simulate=replace(base.simulate, chips=4, pcm=replace(base.simulate.pcm, t_inference=60.0)),
        analyse=replace(base.analyse, energy=Costs(analog=0.05)),
        folds=("test",),
        limit=None,
        seed=7,
    )
    arguments = command_line(asdict(changed))
    assert arguments[0] == "cifar10_resnet18_small"
    parsed: Experiment = parse_preset(Options, "run", arguments).experiment
    assert parsed == changed


def test_a_command_line_chooses_the_class_of_a_setting():
    base = PRESETS["digits"].experiment
    pcm = replace(base.simulate.pcm, mapping=Pairs((1.0, 4.0), g_min=1.0), t_inference=60.0)
    changed = replace(base, simulate=replace(base.simulate, pcm=pcm))
    arguments = command_line(json.loads(json.dumps(asdict(changed))))
    assert arguments[:2] == ["digits", "--simulate.pcm.mapping"]
    assert parse_preset(Options, "run", arguments).experiment == changed


@pytest.mark.parametrize(
    ("preset", "data", "model"),
    [
        ("imagenet_resnet50", {"resize_size": 232}, {"weights": "resnet50:IMAGENET1K_V2"}),
        (
            "imagenet_resnet18",
            {"resize_size": None, "mean": None, "std": None},
            {"weights": None},
        ),
        ("tiny_imagenet_resnet18", {"mean": (0.5, 0.25, 0.125), "std": (1.0, 1.0, 0.5)}, {}),
    ],
)
def test_a_command_line_gives_optional_settings_and_none(preset, data, model):
    base = PRESETS[preset].experiment
    changed = replace(base, data=replace(base.data, **data), model=replace(base.model, **model))
    arguments = command_line(asdict(changed))
    assert arguments[0] == preset
    assert parse_preset(Options, "run", arguments).experiment == changed
