"""Guaranteed thresholds of a run on hand-made tables: chosen on one fold, tried on another."""

import warnings

import numpy as np
import pandas as pd
import pytest

from bridge.chips.profiles import FULL_PROFILE
from bridge.report.tables import outcomes, predictors
from bridge.report.tables.guarantees import COLUMNS, LEVELS, guarantee
from bridge.report.tables.routers import recharged, route
from bridge.routing import Costs
from tests.bridge.report.tables.test_predictors import COSTS, SAMPLES, tables

INF = np.inf


@pytest.fixture(scope="module")
def joined() -> pd.DataFrame:
    scores, predictions, flips = tables(chips=(0, 1, 2))
    return predictors.with_flips(outcomes.join(scores, predictions), flips)


@pytest.fixture(scope="module")
def found(joined: pd.DataFrame) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # levels that take more samples are no news for each chip
        return guarantee(joined, COSTS, energies=Costs(analog=0.2))


def one_chip(rows: pd.DataFrame, column: str, sign: int, level: float) -> tuple[float, ...]:
    """Threshold, share that stays and fails, share routed and accuracy, from the definitions."""
    chosen, tried = (
        rows[rows["fold"] == fold].assign(score=sign * rows[column])
        for fold in ("validation", "test")
    )
    threshold = -INF
    for possible in sorted(chosen["score"]):
        stay = chosen[chosen["score"] <= possible]
        if (stay["failure"].sum() + 1) / (SAMPLES + 1) > level:
            break
        threshold = possible
    else:
        threshold = INF
    stays = tried["score"] <= threshold
    right = tried["analog_correct"].where(stays, tried["digital_correct"])
    return threshold, (stays & tried["failure"]).mean(), 1 - stays.mean(), right.mean()


@pytest.mark.parametrize(
    ("router", "column", "sign"),
    [
        *(("analog margin", "analog_margin", -1), ("margin, known", "margin", -1)),
        *(("curvature, known", "curvature", 1), ("flip probability, known", "flip_probability", 1)),
        ("curvature, computed", "curvature", 1),
    ],
)
def test_each_chip_has_a_threshold_of_its_own(
    joined: pd.DataFrame, found: pd.DataFrame, router: str, column: str, sign: int
) -> None:
    rows = joined[joined["profile"] == FULL_PROFILE]
    for level in LEVELS:
        chips = [one_chip(chip, column, sign, level) for _, chip in rows.groupby("chip")]
        thresholds, *others = np.array(chips).T
        row = outcomes.select(found, profile=FULL_PROFILE, router=router)
        row = row[row["level"] == level].iloc[0]
        assert (row["calibration"], row["chips"], row["fold"]) == (SAMPLES, 3, "test")
        assert row["threshold"] == np.median(thresholds)
        assert (row["threshold_min"], row["threshold_max"]) == (thresholds.min(), thresholds.max())
        for name, values in zip(("failing", "fraction", "accuracy"), others, strict=True):
            assert row[name] == pytest.approx(values.mean())
            assert row[f"{name}_min"] == pytest.approx(values.min())
            assert row[f"{name}_max"] == pytest.approx(values.max())
        share = row["fraction"]
        energy = {"analog": 0.2 + share, "known": 0.2 + 0.8 * share, "digital": 22.2 - 0.2 * share}
        assert row["energy"] == pytest.approx(energy[row["kind"]])
        assert row["saved"] == pytest.approx(1 - row["energy"])
    assert thresholds.min() < thresholds.max()  # a score of all, but each chip's own failures


def test_too_few_samples_route_all_and_no_failure_none(found: pd.DataFrame) -> None:
    assert list(found) == list(COLUMNS)
    few = found[found["level"] < 1 / (SAMPLES + 1)]
    assert set(few["level"]) == {0.005, 0.01}
    assert (few["threshold_max"] == -INF).all()
    assert (few["fraction"] == 1).all()
    assert (few["failing"] == 0).all()
    ideal = found[(found["profile"] == "ideal") & (found["level"] > 0.015)]
    assert (ideal["threshold_min"] == INF).all()
    assert (ideal["fraction"] == 0).all()
    assert len(ideal) == 2 * (len(found[found["profile"] == FULL_PROFILE]) // 4 - 2)  # no flips


def test_without_validation_there_is_no_row_and_test_is_no_calibration(
    joined: pd.DataFrame,
) -> None:
    test = joined[joined["fold"] == "test"]
    none = guarantee(test, COSTS, energies=Costs())
    assert (len(none), list(none)) == (0, list(COLUMNS))
    with pytest.raises(ValueError, match=r"80 of 80 samples, the first at .* chose the threshold"):
        guarantee(joined, COSTS, energies=Costs(), calibrated_on="test")


def test_computed_scores_are_charged_otherwise_as_if_they_had_been(
    joined: pd.DataFrame, found: pd.DataFrame
) -> None:
    others = COSTS.assign(forward_passes=3 * COSTS["forward_passes"])
    energies = Costs(analog=0.2)
    baselines = route(joined, COSTS, energies=energies, tolerance=0.02).baselines
    expected = guarantee(joined, others, energies=energies)
    assert not np.allclose(found["energy"], expected["energy"])
    pd.testing.assert_frame_equal(recharged(found, baselines, others), expected)
