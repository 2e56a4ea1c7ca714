"""Predictors side by side: scikit-learn and SciPy are the oracles, resample by resample."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from bridge.analysis.failures import deciles, within_class_rank
from bridge.analysis.intervals import mean_interval, sample_counts
from bridge.analysis.predictors import (
    compare_predictors,
    cross_validated_logistic,
    failures_on_others,
)

SAMPLES = 240


@pytest.fixture(scope="module", params=[1, 3], ids=["one chip", "three chips"])
def data(request):
    """Scores (one tied, one not), digital, analog and what failed [chips, samples]."""
    rng = np.random.default_rng(request.param)
    hidden = rng.normal(size=SAMPLES)
    scores = {"tied": np.round(hidden, 1), "noisy": hidden + rng.normal(size=SAMPLES)}
    digital = rng.random(SAMPLES) < 0.8
    analog = rng.random((request.param, SAMPLES)) > 1 / (1 + np.exp(1 - hidden))
    return scores, digital, analog, digital & ~analog


@pytest.mark.parametrize("among", ["correct", "all"])
def test_measures_are_scikit_learns_and_scipys(data, among):
    scores, digital, analog, failed = data
    kept = digital if among == "correct" else np.full(SAMPLES, True)
    table = compare_predictors(scores, digital, analog, among=among, resamples=10)
    assert table["predictor"].tolist() == list(scores)
    for (_, row), score in zip(table.iterrows(), scores.values(), strict=True):
        auroc = [roc_auc_score(one[kept], score[kept]) for one in failed]
        precision = [average_precision_score(one[kept], score[kept]) for one in failed]
        rho = np.mean([stats.spearmanr(score[kept], one[kept]).statistic for one in failed])
        assert row["auroc"] == pytest.approx(np.mean(auroc), abs=1e-6)
        assert row["average_precision"] == pytest.approx(np.mean(precision), abs=1e-6)
        assert row["spearman"] == pytest.approx(rho, abs=1e-6)
        assert (row["samples"], row["failures"]) == (kept.sum(), failed.sum())


def test_each_resample_is_scikit_learns_with_the_drawn_samples(data):
    """The intervals are those of AUROC, AP and rho computed anew from each draw."""
    scores, digital, analog, failed = data
    table = compare_predictors(scores, digital, analog, resamples=60, seed=3, confidence=0.8)
    (counts,) = sample_counts(np.random.default_rng(3), int(digital.sum()), 60)
    failed = failed[:, digital]

    def spearman(failed, score):
        return stats.spearmanr(score, failed).statistic

    kinds = {"auroc": roc_auc_score, "average_precision": average_precision_score}
    kinds["spearman"] = spearman

    def measured(name, rows):
        score = scores[name][digital][rows]
        return [[kind(one[rows], score) for one in failed] for kind in kinds.values()]

    drawn = {
        name: [measured(name, np.repeat(np.arange(len(draw)), draw)) for draw in counts.astype(int)]
        for name in scores
    }
    observed = {name: np.array(measured(name, slice(None))) for name in scores}
    by_chip = {name: np.array(draws) for name, draws in drawn.items()}
    rarer = min(failed.any(axis=0).sum(), (~failed).any(axis=0).sum())
    row, other = (table.iloc[number] for number in (0, 1))
    for number, kind in enumerate(kinds):
        values, draws = observed["tied"][number], by_chip["tied"][:, number]
        fraction = kind != "spearman"
        expected = mean_interval(values, draws, 0.8, informative=rarer, fraction=fraction)
        found = row[f"{kind}_low"], row[f"{kind}_high"]
        np.testing.assert_allclose(found, expected, atol=2e-6)
    values = (observed["noisy"] - observed["tied"])[0]
    draws = (by_chip["noisy"] - by_chip["tied"])[:, 0]
    expected = mean_interval(values, draws, 0.8, informative=rarer, fraction=False)
    found = other["auroc_difference_low"], other["auroc_difference_high"]
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("among", ["correct", "all"])
def test_a_score_of_each_chips_own_is_measured_on_its_chip(data, among):
    _, digital, analog, failed = data
    rng = np.random.default_rng(5)
    own = np.round(failed + rng.normal(size=failed.shape), 1)
    labels = np.arange(SAMPLES) % 4
    kept = digital if among == "correct" else np.full(SAMPLES, True)
    arguments = {"among": among, "labels": labels, "resamples": 30, "seed": 2}
    row = compare_predictors({"own": own}, digital, analog, **arguments).iloc[0]
    alone = pd.concat(
        compare_predictors({"own": score}, digital, one, **arguments)
        for score, one in zip(own, analog, strict=True)
    )
    for name in ("auroc", "average_precision", "spearman", "d1", "d10", "auroc_within_class"):
        assert row[name] == pytest.approx(alone[name].mean(), abs=1e-9)
    auroc = [roc_auc_score(one[kept], score[kept]) for one, score in zip(failed, own, strict=True)]
    assert row["auroc"] == pytest.approx(np.mean(auroc), abs=1e-6)
    assert row["auroc_low"] < row["auroc"] < row["auroc_high"]
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]
    # The same score on every chip is one of all.
    shared = np.repeat(own[:1], len(analog), axis=0)
    several = compare_predictors({"own": shared}, digital, analog, **arguments)
    one = compare_predictors({"own": own[0]}, digital, analog, **arguments)
    columns = ["auroc", "auroc_low", "auroc_high", "average_precision", "d1", "d10"]
    pd.testing.assert_frame_equal(several[columns], one[columns], atol=1e-6)


def test_scores_of_another_number_of_chips_are_refused():
    digital, analog = np.full(20, True), np.arange(60).reshape(3, 20) % 3 > 0
    with pytest.raises(ValueError, match="2 chips have scores and 3 outcomes"):
        compare_predictors({"own": np.zeros((2, 20))}, digital, analog)


def test_failures_on_others_leave_out_the_chip_itself():
    rng = np.random.default_rng(0)
    digital, analog = rng.random(50) < 0.8, rng.random((5, 50)) < 0.6
    failed = digital & ~analog
    for others in (1, 2, 4):
        found = failures_on_others(digital, analog, others)
        expected = [
            [failed[(chip + 1 + np.arange(others)) % 5, sample].mean() for sample in range(50)]
            for chip in range(5)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(ValueError, match="5 chips have 4 others each, not 5"):
        failures_on_others(digital, analog, 5)


def test_difference_is_paired(data):
    scores, digital, analog, _ = data
    shifted = {"tied": scores["tied"], "the same": 2 * scores["tied"] + 1, "noisy": scores["noisy"]}
    table = compare_predictors(shifted, digital, analog, reference="tied", resamples=200)
    same = table.iloc[1]
    # Equal rankings differ by nothing in any resample, however wide the interval of each.
    assert same["auroc_difference_low"] == same["auroc_difference_high"] == 0
    assert same["auroc_low"] < same["auroc_high"]
    noisy = table.iloc[2]
    difference = noisy["auroc"] - table.iloc[0]["auroc"]
    assert noisy["auroc_difference"] == pytest.approx(difference, abs=1e-12)
    unpaired = table.iloc[0]["auroc_high"] - table.iloc[0]["auroc_low"]
    unpaired = np.hypot(unpaired, noisy["auroc_high"] - noisy["auroc_low"])
    assert noisy["auroc_difference_high"] - noisy["auroc_difference_low"] < unpaired


def test_result_is_free_of_row_order(data):
    scores, digital, analog, _ = data
    order, indices = np.random.default_rng(0).permutation(SAMPLES), 7 * np.arange(SAMPLES)
    labels = indices % 3
    found = compare_predictors(
        scores, digital, analog, indices=indices, labels=labels, resamples=50
    )
    shuffled = compare_predictors(
        {name: score[order] for name, score in scores.items()},
        digital[order],
        analog[:, order],
        indices=indices[order],
        labels=labels[order],
        resamples=50,
    )
    assert found.equals(shuffled)


def test_bins_and_within_class(data):
    scores, digital, analog, failed = data
    labels = np.arange(SAMPLES) % 4
    row = compare_predictors(scores, digital, analog, labels=labels, bins=5, resamples=5).iloc[1]
    bin_of = deciles(scores["noisy"][digital], np.arange(digital.sum()), bins=5)
    share = failed[:, digital].mean(axis=0)
    assert row["d1"] == pytest.approx(share[bin_of == 1].mean())
    assert row["d10"] == pytest.approx(share[bin_of == 5].mean())
    ranks = within_class_rank(scores["noisy"][digital], labels[digital])
    expected = np.mean([roc_auc_score(one, ranks) for one in failed[:, digital]])
    assert row["auroc_within_class"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("analog", "score", "reason"),
    [
        (np.full(20, True), np.arange(20.0), "no sample fails"),
        (np.full(20, False), np.arange(20.0), "every sample fails"),
        (np.arange(20) < 10, np.ones(20), "every score is the same"),
    ],
)
def test_undefined_measures_say_why(analog, score, reason):
    table = compare_predictors({"s": score}, np.full(20, True), analog, resamples=5)
    assert table["reason"].tolist() == [reason]
    columns = ["auroc", "auroc_low", "average_precision", "spearman", "auroc_difference"]
    assert table[columns].isna().all(axis=None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {}}, "no scores to compare"),
        (
            {"scores": pd.DataFrame({"s": np.arange(20.0)})},
            r"scores must be a mapping from names to arrays.*got DataFrame.*dict\(table\[\[",
        ),
        ({"scores": np.arange(20.0)}, r"\{'margin': ...\}; got ndarray$"),
        ({"scores": pd.Series(np.arange(20.0))}, "got Series$"),
        ({"scores": {"s": [1.0, np.nan, *range(18)]}}, "s has 1 NaN of 20"),
        ({"scores": {"s": np.arange(19.0)}}, r"lengths differ: scores\['s'\] 19, correct 20"),
        ({"reference": "loss"}, "no reference 'loss' here; there is s"),
        ({"among": "right"}, "among is one of correct, all, got 'right'"),
        ({"bins": 21}, "20 digitally correct samples cannot fill 21 bins"),
        ({"digital_correct": np.arange(20) < 5}, "5 digitally correct samples cannot fill 10 bins"),
        ({"indices": np.zeros(20, int)}, "indices must be unique"),
        ({"analog_correct": np.ones(20)}, "analog_correct must be bools"),
        ({"labels": np.ones(20)}, "labels must be a vector of integers"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {
        "scores": {"s": np.arange(20.0)},
        "digital_correct": np.full(20, True),
        "analog_correct": np.arange(20) < 10,
        "resamples": 5,
    } | change
    with pytest.raises(ValueError, match=message):
        compare_predictors(
            arguments.pop("scores"),
            arguments.pop("digital_correct"),
            arguments.pop("analog_correct"),
            **arguments,
        )


def test_logistic_model_combines_what_either_score_lacks():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 4000))
    analog = rng.random((2, 4000)) > 1 / (1 + np.exp(-1.5 * (first + second)))
    digital = rng.random(4000) < 0.9
    # Of heavy tails and another scale, which must not matter.
    scores = {"first": np.exp(3 * first), "second": second}
    both = cross_validated_logistic(scores, digital, analog)
    alone = cross_validated_logistic({"first": scores["first"]}, digital, analog)
    ideal = first + second
    failed = digital & ~analog
    auroc = {
        name: roc_auc_score(failed[0][digital], one[digital])
        for name, one in {"both": both, "alone": alone, "ideal": ideal}.items()
    }
    assert auroc["both"] == pytest.approx(auroc["ideal"], abs=0.005)
    assert auroc["alone"] < auroc["both"] - 0.05
    assert both[digital].mean() == pytest.approx(failed[:, digital].mean(), abs=0.01)


def test_logistic_model_takes_scores_of_any_scale():
    """Probabilities may be as small as float64 allows."""
    rng = np.random.default_rng(3)
    tiny, analog = 10.0 ** (-320 * rng.random(400)), rng.random(400) < 0.5
    found = cross_validated_logistic({"s": tiny}, np.full(400, True), analog)
    assert np.isfinite(found).all()


def test_logistic_model_does_not_see_the_sample_it_predicts():
    """A useless score ranks no better than chance when held out; fitted, it would do better."""
    rng = np.random.default_rng(1)
    scores = {str(number): rng.normal(size=200) for number in range(30)}
    digital, analog = np.full(200, True), rng.random(200) < 0.5
    auroc = roc_auc_score(~analog, cross_validated_logistic(scores, digital, analog))
    assert auroc < 0.6


def test_logistic_model_is_free_of_row_order():
    rng = np.random.default_rng(2)
    score, digital, analog = rng.normal(size=100), rng.random(100) < 0.9, rng.random(100) < 0.5
    order, indices = rng.permutation(100), np.arange(100)
    found = cross_validated_logistic({"s": score}, digital, analog, indices=indices)
    shuffled = cross_validated_logistic(
        {"s": score[order]}, digital[order], analog[order], indices=indices[order]
    )
    np.testing.assert_allclose(shuffled, found[order], rtol=1e-12)


@pytest.mark.parametrize(
    ("failing", "message"),
    [(3, "3 failing samples cannot be divided into 5 folds"), (97, "3 surviving samples cannot")],
)
def test_logistic_model_refuses_too_few(failing, message):
    with pytest.raises(ValueError, match=message):
        cross_validated_logistic(
            {"s": np.arange(100.0)}, np.full(100, True), np.arange(100) >= failing
        )
