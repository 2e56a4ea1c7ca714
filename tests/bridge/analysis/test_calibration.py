"""Calibration of probabilities, against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve

from bridge.analysis.calibration import calibration_table, expected_calibration_error
from bridge.analysis.intervals import wilson_interval


def test_bins_are_scikit_learn_s():
    rng = np.random.default_rng(2)
    probability = np.concatenate([rng.random(500) ** 3, np.linspace(0, 1, 11)])  # edges too
    failed = rng.random(511) < probability
    table = calibration_table(probability, failed)
    observed, predicted = calibration_curve(failed, probability, n_bins=10)
    filled = table[table["samples"] > 0]
    np.testing.assert_allclose(filled["predicted"], predicted)
    np.testing.assert_allclose(filled["observed"], observed)
    assert table["samples"].sum() == 511
    assert table["bin"].tolist() == list(range(1, 11))


def test_one_chip_has_wilson_s_intervals():
    rng = np.random.default_rng(3)
    probability = rng.random(300)
    failed = rng.random(300) < probability
    table = calibration_table(probability, failed, bins=4, confidence=0.9)
    failures = (table["observed"] * table["samples"]).round().astype(int).to_numpy()
    low, high = wilson_interval(failures, table["samples"].to_numpy(), 0.9)
    np.testing.assert_allclose(table["observed_low"], low)
    np.testing.assert_allclose(table["observed_high"], high)


def test_empty_bins_stay_and_are_undefined():
    table = calibration_table([0.05, 0.95], [False, True], bins=4)
    assert table["samples"].tolist() == [1, 0, 0, 1]
    empty = table.loc[1:2, ["predicted", "observed", "observed_low", "observed_high"]]
    assert empty.isna().all(axis=None)
    assert table["low"].tolist() == [0.0, 0.25, 0.5, 0.75]


def test_several_chips_are_averaged_and_widen_the_interval():
    rng = np.random.default_rng(4)
    probability = np.full(400, 0.3)
    chip = rng.normal(size=(6, 1)) * 0.15  # a chip's own level: samples alone do not show it
    failed = rng.random((6, 400)) < 0.3 + chip
    row = calibration_table(probability, failed, bins=2).iloc[0]
    assert row["observed"] == pytest.approx(failed.mean())
    standard_error = failed.mean(axis=1).std(ddof=1) / np.sqrt(6)
    width = row["observed_high"] - row["observed_low"]
    # That of the mean of six numbers, a little less for Wilson's form.
    assert width == pytest.approx(2 * stats.t.ppf(0.975, 5) * standard_error, rel=0.1)
    assert row["observed_low"] < row["observed"] < row["observed_high"]


def test_identical_chips_say_what_one_chip_says():
    rng = np.random.default_rng(5)
    probability, failed = rng.random(200), rng.random(200) < 0.4
    one = calibration_table(probability, failed, bins=2)
    many = calibration_table(probability, np.stack([failed] * 5), bins=2)
    np.testing.assert_allclose(many["observed"], one["observed"])
    for bound in ("observed_low", "observed_high"):
        np.testing.assert_allclose(many[bound], one[bound], rtol=1e-12)


def test_no_failures_and_only_failures_have_an_interval():
    for outcome, bound in ((False, "observed_high"), (True, "observed_low")):
        row = calibration_table([0.2] * 10, np.full((3, 10), outcome), bins=1).iloc[0]
        assert row["observed"] == float(outcome)
        assert abs(row[bound] - outcome) == pytest.approx(0.2775, abs=1e-3)  # Wilson, 0 of 10


def test_expected_calibration_error_by_hand():
    probability, failed = [0.1, 0.2, 0.9, 0.8, 0.7], [False, True, True, True, False]
    table = calibration_table(probability, failed, bins=2)
    by_hand = 2 / 5 * abs(0.5 - 0.15) + 3 / 5 * abs(2 / 3 - 0.8)
    assert expected_calibration_error(table) == pytest.approx(by_hand)
    certain = calibration_table([0.0, 1.0], [False, True], bins=10)
    assert expected_calibration_error(certain) == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": [0.5, np.nan]}, "probability has 1 NaN of 2"),
        ({"probability": [0.5, 1.5]}, r"probability must lie in \[0, 1\]; got 0.5..1.5"),
        ({"probability": [0.5]}, "lengths differ: probability 1, failed 2"),
        ({"failed": [0, 1]}, "failed must be bools"),
        ({"probability": [], "failed": np.zeros((1, 0), bool)}, "no samples to compare"),
        ({"bins": 0}, "bins must be at least 1; got 0"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
    ],
)
def test_calibration_table_refuses(change, message):
    settings = {"probability": [0.5, 0.6], "failed": [True, False]} | change
    with pytest.raises(ValueError, match=message):
        calibration_table(**settings)


def test_expected_calibration_error_refuses():
    with pytest.raises(ValueError, match="the table has no predicted, observed"):
        expected_calibration_error(pd.DataFrame({"samples": [1]}))
    with pytest.raises(ValueError, match="the table has no samples"):
        expected_calibration_error(calibration_table([0.5], [True]).assign(samples=0))
