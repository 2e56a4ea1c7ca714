"""Join, tables and answer on hand-made data whose numbers are known."""

import io
import logging
import re

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy import stats

from bridge.analysis import rate_interval
from bridge.chips.profiles import FULL_COMPENSATED, PROFILES
from bridge.report.tables import failure_rates, outcomes, sentences
from bridge.report.tables.compensation import Beside
from bridge.report.tables.predictors import LOGITS_ADDED, compare, verdict
from tests.bridge.report.conftest import FULL, tables


@pytest.fixture(scope="module")
def one_chip():
    return outcomes.join(*tables(chips=(11,)))


COSTS = pd.DataFrame({"predictor": ["curvature", "loss", "margin"], "forward_passes": [22, 1, 1]})


@pytest.fixture(scope="module")
def predictors(joined):
    return compare(joined, COSTS, resamples=100)


def test_join_has_one_row_a_profile_chip_and_sample(joined):
    assert len(joined) == 2 * 2 * 40
    first = joined.iloc[0]
    assert (first["profile"], first["chip"], first["fold"], first["index"]) == (
        "ideal",
        11,
        "train",
        0,
    )
    assert not first["digital_correct"]
    chip = joined[(joined["profile"] == FULL) & (joined["chip"] == 11)]
    assert chip["sample"].tolist() == list(range(40))
    assert chip["failure"].tolist() == 2 * (10 * [False] + 10 * [True])


def test_join_is_free_of_row_order(joined):
    scores, predictions = tables(chips=(11, 12))
    shuffled = outcomes.join(
        scores.sample(frac=1, random_state=0), predictions.sample(frac=1, random_state=1)
    )
    pd.testing.assert_frame_equal(shuffled, joined)


def _without(column):
    def change(scores, predictions):
        return scores, predictions.drop(columns=column)

    return change


def _drop_prediction(scores, predictions):
    return scores, predictions.drop(index=predictions.index[-1])


def _drop_score(scores, predictions):
    return scores.drop(index=scores.index[3]), predictions


def _repeat_prediction(scores, predictions):
    return scores, pd.concat([predictions, predictions.iloc[[4]]])


def _repeat_score(scores, predictions):
    return pd.concat([scores, scores.iloc[[4]]]), predictions


def _other_analog_labels(scores, predictions):
    return scores, predictions.assign(correct=~predictions["correct"])


def _other_digital_labels(scores, predictions):
    return scores.assign(label=scores["label"] + 1), predictions


def _unknown_profile(scores, predictions):
    return scores, predictions.replace({"profile": {"ideal": "perfect"}})


def _nothing(scores, predictions):
    return scores, predictions.head(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("chip"), r"predictions lacks the columns chip"),
        (
            _drop_prediction,
            r"1 x scored samples without a prediction.*first: profile adc\+wnoise\+pcm, chip 11, "
            r"fold test, index 19\)",
        ),
        (
            _drop_score,
            r"2 x predictions without a score.*first: profile ideal, chip 11, fold train, index 3",
        ),
        (_repeat_prediction, r"1 x rows repeated in predictions.*profile ideal, chip 11, .*4\)"),
        (_repeat_score, r"1 x rows repeated in scores.*first: fold train, index 4\)"),
        (_other_analog_labels, r"80 x labels mismatched: analog `correct` contradicts"),
        (_other_digital_labels, r"labels mismatched: digital `correct` contradicts"),
        (_unknown_profile, r"predictions has the profile 'perfect'; known: ideal, adc"),
        (_nothing, r"predictions has no rows"),
    ],
)
def test_join_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        outcomes.join(*change(*tables()))


def test_failure_tables_cut_each_fold_and_the_pooled_ones(deciles):
    assert deciles["fold"].unique().tolist() == ["train", "test", "pooled"]
    full = deciles[deciles["profile"] == FULL]
    test = full[full["fold"] == "test"]
    assert set(test["chips"]) == {2}
    assert test["samples"].tolist() == 10 * [2]
    assert test["digitally_correct"].tolist() == [1] + 9 * [2]
    assert test["failures"].tolist() == 5 * [0] + 4 * [4] + [3]
    pooled = full[full["fold"] == "pooled"]
    assert pooled["samples"].tolist() == 10 * [4]
    assert pooled["failures"].tolist() == 5 * [0] + 4 * [8] + [6]


def test_one_fold_has_no_pooled_twin():
    deciles = failure_rates.failure_tables(outcomes.join(*tables(folds=("test",))))
    assert set(deciles["fold"]) == {"test"}


def test_a_fold_too_small_is_skipped_and_said(caplog):
    scores, predictions = tables()
    few = outcomes.join(
        *(rows[(rows["fold"] == "train") | (rows["index"] < 9)] for rows in (scores, predictions))
    )
    with caplog.at_level(logging.WARNING):
        deciles = failure_rates.failure_tables(few)
    assert set(deciles["fold"]) == {"train", "pooled"}
    assert "fold test skipped: 9 samples cannot fill 10 bins" in caplog.text
    assert set(failure_rates.table_one(few, deciles)["fold"]) == {"train", "pooled"}
    with pytest.raises(ValueError, match="no fold has the 50 samples"):
        failure_rates.failure_tables(outcomes.join(scores, predictions), bins=50)


def test_rates_are_percent_with_their_interval(deciles, one_chip):
    last = outcomes.select(failure_rates.rates(deciles), fold="test", profile=FULL).iloc[-1]
    assert (last["chips"], last["failures"]) == (2, 3)  # 2 of 2 on one chip, 1 of 2 on the other
    assert last["rate"] == 75
    low, high = rate_interval([[True, True], [True, False]])
    assert (last["low"], last["high"]) == (100 * low, 100 * high)
    alone = failure_rates.rates(failure_rates.failure_tables(one_chip))
    last = outcomes.select(alone, fold="test", profile=FULL).iloc[-1]
    assert last["rate"] == last["high"] == 100
    assert last["low"] == pytest.approx(100 * 2 / (2 + 1.959963984540054**2))


def test_table_one_by_hand(joined, deciles):
    table = failure_rates.table_one(joined, deciles, model=("resnet18", "cifar100"))
    assert len(table) == 3 * 2
    ideal, full = table[table["fold"] == "test"].to_dict("records")
    assert (ideal["profile"], full["profile"]) == ("ideal", FULL)
    assert ideal["analog_accuracy"] == ideal["digital_accuracy"] == 95
    assert (full["chips"], full["samples"], full["failures"]) == (2, 20, 9.5)
    # 19 of 20 right digitally; 10 fail on the first chip, 9 on the second.
    assert (full["analog_accuracy_min"], full["analog_accuracy_max"]) == (45, 50)
    assert full["analog_accuracy"] == 47.5
    assert full["d1_of_all"] == full["d1_of_correct"] == 0
    assert (full["d10_of_all"], full["d10_of_all_min"], full["d10_of_all_max"]) == (75, 50, 100)
    assert full["d10_of_correct"] == 75
    assert (full["paper_d1"], full["paper_d10"]) == (1.34, 13.75)
    assert full["d10_of_all_minus_paper"] == 75 - 13.75
    assert np.isnan(ideal["paper_d1"])
    # Bins 1 1 2 2 .. 10 10 against shares 0 (ten times), 1 (nine times) and 1/2.
    share = np.array(10 * [0] + 9 * [1] + [0.5])
    r = np.corrcoef(np.repeat(range(10), 2), share)[0, 1]
    assert full["trend_z"] == pytest.approx(r * np.sqrt(19))
    assert full["trend_p"] < 1e-3
    assert np.isnan(ideal["trend_z"])
    unknown = failure_rates.table_one(joined, deciles, model=("resnet18", "digits"))
    assert unknown[["paper_d1", "paper_d10"]].isna().all(axis=None)


def test_classes_and_vulnerable_samples_by_hand(joined):
    table = failure_rates.per_class(joined).set_index("label")
    # Of label 1: 1, 4, 7, 10, 13, 16 and 19, of which the last fails on one of two chips only.
    row = table.loc[1]
    assert (row["samples"], row["digital_accuracy"], row["failures"]) == (7, 1, 3.5)
    assert row["failure_rate"] == row["failures"] / 7
    assert row["mean_curvature"] == pytest.approx(0.01)
    assert table.loc[0, "digital_accuracy"] == pytest.approx(6 / 7)
    # Of label 0 the first is digitally wrong; 12, 15 and 18 of the other six fail.
    assert (table.loc[0, "failures"], table.loc[0, "failure_rate"]) == (3, 0.5)
    samples = joined.drop_duplicates("sample")
    flips = samples[["fold", "index"]].assign(profile=FULL, probability=samples["index"] / 20)
    worst = failure_rates.vulnerable(joined, flips, count=11)
    assert worst["index"].tolist() == [18, 17, 16, 15, 14, 13, 12, 11, 10, 19, 9]
    assert worst["failed_share"].tolist() == 9 * [1] + [0.5, 0]
    assert "path" not in worst
    named = joined.assign(path=joined["index"].map("c/{}.png".format))
    paths = failure_rates.vulnerable(named, flips, count=2)["path"]
    assert paths.tolist() == ["c/18.png", "c/17.png"]


def test_ideal_agreement(joined):
    assert outcomes.ideal_agreement(joined) == 1
    changed = joined.copy()
    changed.loc[0, "analog_prediction"] += 1
    assert outcomes.ideal_agreement(changed) == 1 - 1 / 80
    with pytest.raises(ValueError, match="no predictions of profile ideal"):
        outcomes.ideal_agreement(joined[joined["profile"] == FULL])


def test_predictors_of_every_fold_profile_and_denominator(predictors):
    # folds x profiles x (3 of the correct and 4 combinations where samples fail, 3 of all)
    assert len(predictors) == 2 * (3 + 3 + 7 + 3)
    where = {"fold": "test", "profile": FULL, "predictor": "curvature"}
    row = outcomes.select(predictors, denominator="all", **where).iloc[0]
    # Without ties the ranks are the index.
    chips = 10 * [0] + 10 * [1], 10 * [0] + 9 * [1] + [0]
    rho = [stats.spearmanr(range(20), failed).statistic for failed in chips]
    assert row["spearman"] == pytest.approx(np.mean(rho))
    assert (row["samples"], row["forward_passes"]) == (20, 22)
    correct = outcomes.select(predictors, denominator="correct", fold="test")
    assert set(correct["samples"]) == {19}
    # It orders the failing samples of the first chip perfectly; of the second all but one.
    assert outcomes.select(correct, **where)["auroc"].iloc[0] == pytest.approx((1 + 0.9) / 2)
    ideal = outcomes.select(predictors, profile="ideal")
    assert set(ideal["reason"]) == {"no sample fails"}
    margin = outcomes.select(correct, profile=FULL, predictor="margin").iloc[0]
    # Grows with fragility: 1 - index % 5 with its sign changed.
    rho = [stats.spearmanr(np.arange(1, 20) % 5, failed[1:]).statistic for failed in chips]
    assert margin["spearman"] == pytest.approx(np.mean(rho))
    assert margin["auroc_difference"] == 0


def test_verdict_follows_the_intervals(predictors):
    assert "for margin, the highest here of the scores of one pass" in verdict(predictors)
    added = predictors["predictor"] == LOGITS_ADDED
    for low, high, says in (
        (0.1, 0.2, "adds to"),
        (-0.2, -0.1, "takes"),
        (-0.1, 0.1, "is not shown"),
    ):
        changed = predictors.copy()
        changed.loc[added, "added_difference_low"] = low
        changed.loc[added, "added_difference_high"] = high
        assert f"curvature {says}" in verdict(changed)
    assert "too few samples" in verdict(predictors[~added])
    assert verdict(predictors, profile="ideal") == ""


def test_answer_says_that_failures_rise(one_chip):
    deciles = failure_rates.failure_tables(one_chip)
    predictors = compare(one_chip, COSTS, resamples=100)
    sentence = sentences.answer(deciles, predictors, drift_seconds=20.0)
    assert sentence.startswith(
        "Under adc+wnoise+pcm at t = 20 s, 0.0 % of D1 and 100.0 % of D10 fail "
        "(test fold, of all samples); Spearman's rho = 0.87 ["
    )
    assert sentence.endswith("]: failures rise with curvature.")


def test_answer_names_the_peak_and_the_chips(deciles, predictors):
    sentence = sentences.answer(deciles, predictors)
    assert "75.0 % of D10 fail (test fold, of all samples, mean of 2 chips)" in sentence
    assert sentence.endswith("and the highest rate is that of D6, 100.0 %.")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.3, -0.1, "failures fall with curvature"), (-0.1, 0.9, "no trend with curvature is est")],
)
def test_answer_follows_the_interval(deciles, predictors, low, high, verdict):
    changed = predictors.assign(spearman_low=low, spearman_high=high)
    assert verdict in sentences.answer(deciles, changed)


def test_answer_where_nothing_fails(deciles, predictors):
    sentence = sentences.answer(deciles, predictors, profile="ideal", drift_seconds=20.0)
    assert sentence == (
        "Under ideal, 0.0 % of D1 and 0.0 % of D10 fail (test fold, of all samples, mean of 2 "
        "chips); Spearman's rho is undefined: no sample fails."
    )
    with pytest.raises(ValueError, match="no fold 'validation' here; there is train, test, pooled"):
        sentences.answer(deciles, predictors, fold="validation")


def test_render_deciles_fits_a_terminal(deciles):
    console = Console(width=80, file=io.StringIO())
    sentences.render_deciles(deciles, fold="test", drift_seconds=3600.0, console=console)
    text = " ".join(console.file.getvalue().split())
    assert "test fold, % of all samples, PCM at t = 3,600 s, mean of 2 chips a profile" in text
    assert "D10" in text
    assert "75.00" in text
    assert "failures" in text


def test_render_deciles_of_twelve_profiles_fits_a_terminal_too(deciles):
    one = deciles[deciles["profile"] == "ideal"]
    many = pd.concat([one.assign(profile=name) for name in PROFILES], ignore_index=True)
    console = Console(width=80, file=io.StringIO())
    sentences.render_deciles(many, fold="test", console=console)
    text = console.file.getvalue()
    assert "\u2026" not in text  # nothing is cut
    assert text.count(" D10 ") == 2
    assert text.count("% of all samples") == 1
    assert {part for name in PROFILES for part in re.split(r"[+_]", name)} <= set(
        re.findall(r"\w+", text.replace("_", " "))
    )


def test_the_other_profile_stands_beside(joined):
    both = pd.concat([joined, joined[joined["profile"] == FULL].assign(profile=FULL_COMPENSATED)])
    deciles = failure_rates.failure_tables(both)
    rates, compared = failure_rates.table_one(both, deciles), compare(both, COSTS, resamples=50)
    paper = sentences.beside(rates, compared, other=Beside(FULL, False))
    assert paper.startswith(
        f"Under {FULL} (the paper's, drift not compensated) the chips are right"
    )
    other = sentences.beside(rates, compared, other=Beside(FULL_COMPENSATED, True))
    assert other.startswith(f"Under {FULL_COMPENSATED} (drift compensated) the chips are")
    row = outcomes.select(rates, fold="test", profile=FULL).iloc[0]
    assert f"D1, D10 fail: {row['d1_of_all']:.1f}, {row['d10_of_all']:.1f} % of all" in paper
    assert f"{row['analog_accuracy']:.1f} %" in paper
    assert "The answer there: not shown, though better than the margin. AUROC of curv" in paper
    assert sentences.beside(rates, compared, other=None) == ""
    six = sentences.beside(rates, compared, other=Beside(FULL, False), last=6)
    assert "and D1, D6 fail:" in six
