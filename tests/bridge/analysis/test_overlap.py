"""Overlap of failures against brute force, SciPy and planted causes."""

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bridge.analysis.failures import deciles
from bridge.analysis.overlap import failure_overlap, systematic_share

RNG = np.random.default_rng(0)
MARGIN = RNG.exponential(size=200)
FRAGILE = np.exp(-2 * MARGIN)  # probability of failure
FAILURES = {
    "pcm": RNG.random((3, 200)) < FRAGILE,
    "reram": RNG.random((4, 200)) < 0.5 * FRAGILE + 0.1,
    "adc": RNG.random((1, 200)) < 0.6 * FRAGILE,
}


def rows_of(table: pd.DataFrame) -> dict[tuple[str, str], Any]:
    return {(row.first, row.second): row for row in table.itertuples()}


@pytest.fixture(scope="module")
def rows() -> dict[tuple[str, str], Any]:
    return rows_of(failure_overlap(FAILURES, MARGIN, bins=8, resamples=200))


# --- the overlap


def brute_force(first: str, second: str, bins: int) -> tuple[float, float, float]:
    """Jaccard index, and what chance and the margin give of it: sample by sample."""
    group = deciles(MARGIN, np.arange(len(MARGIN)), bins)
    found = []
    for i, a in enumerate(FAILURES[first]):
        for j, b in enumerate(FAILURES[second]):
            if first == second and i >= j:
                continue
            both = sum(x and y for x, y in zip(a, b, strict=True))
            either = sum(x or y for x, y in zip(a, b, strict=True))
            expected = []
            for groups in (np.zeros(len(a)), group):
                p = [a[groups == one].mean() for one in groups]
                q = [b[groups == one].mean() for one in groups]
                inner = sum(x * y for x, y in zip(p, q, strict=True))
                outer = sum(1 - (1 - x) * (1 - y) for x, y in zip(p, q, strict=True))
                expected.append(inner / outer)
            found.append((both / either, *expected))
    return tuple(np.mean(found, axis=0))


@pytest.mark.parametrize(
    ("first", "second"), [("pcm", "pcm"), ("pcm", "reram"), ("reram", "reram"), ("reram", "adc")]
)
def test_jaccard_and_its_expectations(rows: Any, first: str, second: str) -> None:
    row = rows[first, second]
    found = (row.jaccard, row.jaccard_chance, row.jaccard_margin)
    np.testing.assert_allclose(found, brute_force(first, second, bins=8), rtol=1e-12)
    share = (found[2] - found[1]) / (found[0] - found[1])
    assert row.explained == pytest.approx(share)


def test_rows_and_counts(rows: Any) -> None:
    assert list(rows) == list(itertools.combinations_with_replacement(FAILURES, 2))
    row = rows["pcm", "reram"]
    assert (row.chips_first, row.chips_second, row.pairs) == (3, 4, 12)
    assert row.rate_first == FAILURES["pcm"].mean()
    assert row.rate_second == FAILURES["reram"].mean()
    assert rows["reram", "reram"].pairs == 6
    assert row.reason == ""


def test_chips_shared_by_the_names_are_not_compared_with_themselves() -> None:
    one = RNG.random((2, 50)) < 0.5
    failures = {"first": one, "second": one}
    margin = np.arange(50.0)
    row = rows_of(failure_overlap(failures, margin, resamples=2))["first", "second"]
    apart = rows_of(failure_overlap(failures, margin, same_chips=True, resamples=2))
    assert (row.pairs, apart["first", "second"].pairs) == (4, 2)
    # What is left are two different chips, as within one name.
    assert apart["first", "second"].jaccard == pytest.approx(apart["first", "first"].jaccard)
    assert row.jaccard == pytest.approx((1 + apart["first", "first"].jaccard) / 2)
    single = {name: failed[:1] for name, failed in failures.items()}
    (kept,) = failure_overlap(single, margin, same_chips=True, resamples=2).iloc[[1]].itertuples()
    assert (kept.pairs, kept.jaccard) == (1, 1.0)


# --- rank agreement


@pytest.mark.parametrize(("first", "second"), [("pcm", "reram"), ("reram", "adc")])
def test_spearman_is_scipys(rows: Any, first: str, second: str) -> None:
    shares = [FAILURES[name].mean(axis=0) for name in (first, second)]
    row = rows[first, second]
    assert row.spearman == pytest.approx(stats.spearmanr(*shares).statistic)
    margin = stats.rankdata(MARGIN)
    residuals = []
    for share in shares:
        rank = stats.rankdata(share)
        line = stats.linregress(margin, rank)
        residuals.append(rank - line.intercept - line.slope * margin)
    assert row.spearman_given_margin == pytest.approx(stats.pearsonr(*residuals).statistic)


def test_within_one_name_two_chips_are_stepped_up() -> None:
    failed = FAILURES["pcm"][:2]
    (row,) = failure_overlap({"pcm": failed}, MARGIN, resamples=2).itertuples()
    rho = stats.spearmanr(*failed).statistic
    assert row.spearman == pytest.approx(2 * rho / (1 + rho))


@pytest.mark.parametrize("chips", [3, 4, 5])
def test_within_one_name_rho_is_that_of_another_set_of_its_chips(chips: int) -> None:
    """Two sets of chips of the same noise agree as each does with itself."""
    rng = np.random.default_rng(1)
    margin = rng.exponential(size=20000)
    failures = {name: rng.random((chips, 20000)) < 0.6 * np.exp(-3 * margin) for name in "ab"}
    rows = rows_of(failure_overlap(failures, margin, resamples=2))
    for name in "ab":
        assert rows[name, name].spearman == pytest.approx(rows["a", "b"].spearman, abs=0.03)
        partial = rows["a", "b"].spearman_given_margin
        assert rows[name, name].spearman_given_margin == pytest.approx(partial, abs=0.05)
        assert rows[name, name].jaccard == pytest.approx(rows["a", "b"].jaccard, abs=0.01)


# --- intervals


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    failures = {name: FAILURES[name] for name in ("pcm", "reram")}
    row = rows_of(failure_overlap(failures, MARGIN, resamples=2000))["pcm", "reram"]
    rng = np.random.default_rng(3)
    plain: dict[str, list[float]] = {"jaccard": [], "spearman": []}
    for _ in range(400):
        drawn = rng.integers(200, size=200)
        a, b = (failures[name][:, drawn] for name in ("pcm", "reram"))
        ratios = [(x & y).sum() / (x | y).sum() for x in a for y in b]
        plain["jaccard"].append(float(np.mean(ratios)))
        plain["spearman"].append(stats.spearmanr(a.mean(axis=0), b.mean(axis=0)).statistic)
    for name, values in plain.items():
        found = [getattr(row, f"{name}_{end}") for end in ("low", "high")]
        np.testing.assert_allclose(found, np.percentile(values, [2.5, 97.5]), atol=0.025)
        assert found[0] < getattr(row, name) < found[1]


def test_seed_decides_the_intervals() -> None:
    one, same, other = (
        failure_overlap(FAILURES, MARGIN, resamples=20, seed=seed) for seed in (1, 1, 2)
    )
    pd.testing.assert_frame_equal(one, same)
    assert one["jaccard_low"][0] != other["jaccard_low"][0]
    assert one["jaccard"][0] == other["jaccard"][0]


# --- planted causes


def test_overlap_that_the_margin_makes_is_explained() -> None:
    rng = np.random.default_rng(4)
    margin = rng.exponential(size=20000)
    failures = {name: rng.random((3, 20000)) < 0.8 * np.exp(-2 * margin) for name in "ab"}
    table = failure_overlap(failures, margin, resamples=2)
    np.testing.assert_allclose(table["explained"], 1, atol=0.06)
    assert (table["jaccard"] > table["jaccard_chance"] + 0.05).all()


def test_same_samples_whatever_their_margin_are_not_explained() -> None:
    rng = np.random.default_rng(5)
    fragile = rng.random(20000) < 0.2
    failures = {name: fragile & (rng.random((3, 20000)) < 0.9) for name in "ab"}
    table = failure_overlap(failures, rng.exponential(size=20000), resamples=2)
    np.testing.assert_allclose(table["explained"], 0, atol=0.03)
    assert (table["jaccard"] > 0.8).all()
    assert (table["spearman_given_margin"] > 0.9).all()


def test_independent_failures_overlap_by_chance() -> None:
    rng = np.random.default_rng(6)
    failures = {name: rng.random((2, 20000)) < 0.3 for name in "ab"}
    row = rows_of(failure_overlap(failures, rng.random(20000), resamples=2))["a", "b"]
    assert row.jaccard_chance == pytest.approx(0.3 / 1.7, abs=0.005)
    assert row.jaccard == pytest.approx(row.jaccard_chance, abs=0.01)
    assert row.spearman == pytest.approx(0, abs=0.02)


# --- undefined


@pytest.mark.parametrize(
    ("failures", "undefined", "reason"),
    [
        ({"a": np.zeros((2, 8), bool)}, ["jaccard", "spearman", "explained"], "no failures of a"),
        ({"a": np.ones((2, 8), bool)}, ["spearman", "explained"], "every sample fails alike"),
        ({"a": np.arange(8) < 4}, ["jaccard", "spearman", "explained"], "one chip of a only"),
        (
            {"a": np.array([[1, 1, 0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0, 0, 0]], bool)},
            ["explained"],
            "no overlap beyond chance",
        ),
        (
            {"a": np.array([[1, 1, 1, 0, 0, 0, 0, 0]] * 2, bool)},
            ["spearman_given_margin"],
            "nothing varies but with the margin",
        ),
    ],
)
def test_undefined_values_say_why(
    failures: dict[str, Any], undefined: list[str], reason: str
) -> None:
    margin = np.array([0.0, 0, 0, 1, 1, 1, 1, 1])
    (row,) = failure_overlap(failures, margin, bins=4, resamples=5).itertuples()
    assert reason in row.reason
    for name in undefined:
        assert np.isnan(getattr(row, name)), name
        if name in ("jaccard", "spearman"):
            assert np.isnan([getattr(row, f"{name}_low"), getattr(row, f"{name}_high")]).all()


def test_nothing_is_undefined_without_a_reason(rows: Any) -> None:
    for row in rows.values():
        values = [value for value in row if isinstance(value, float)]
        assert np.isnan(values).any() == bool(row.reason)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"failures": {}}, "no failures to compare"),
        ({"margin": [0.1, np.nan, 0.3, 0.4]}, "margin has 1 NaN of 4"),
        ({"margin": [0.1, 0.2, 0.3]}, "lengths differ: failures of a 4, margin 3"),
        ({"failures": {"a": [1, 0, 0, 1]}}, "failures of a must be bools"),
        ({"bins": 5}, "4 samples cannot fill 5 bins"),
        ({"bins": 0}, "bins must be at least 1"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"resamples": 0}, "resamples must be at least 1"),
    ],
)
def test_bad_input(changed: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {
        "failures": {"a": [True, False, False, True]},
        "margin": [0.1, 0.2, 0.3, 0.4],
        "bins": 2,
    }
    arguments = good | changed
    with pytest.raises(ValueError, match=message):
        failure_overlap(arguments.pop("failures"), arguments.pop("margin"), **arguments)


# --- systematic and chip-specific


def test_systematic_by_hand() -> None:
    """Five samples that fail on none, one, two, three and four of four chips."""
    failed = np.arange(4)[:, None] < np.array([0, 1, 2, 3, 4])
    share = systematic_share(failed, resamples=100)
    assert (share.on_none, share.on_some, share.on_most, share.on_all) == (1, 2, 1, 1)
    assert (share.chips, share.samples, share.events, share.rate) == (4, 5, 10, 0.5)
    assert share.systematic == pytest.approx(7 / 10)
    assert share.chip_specific == pytest.approx(3 / 10)
    assert 0 <= share.systematic_low < 0.7 < share.systematic_high <= 1


def test_expected_is_what_independent_chips_show() -> None:
    failed = np.random.default_rng(7).random((5, 40000)) < 0.3
    share = systematic_share(failed, resamples=100)
    binomial = 40000 * stats.binom.pmf(np.arange(6), 5, share.rate)
    assert share.on_none_expected == pytest.approx(binomial[0])
    assert share.on_some_expected == pytest.approx(binomial[1] + binomial[2])
    assert share.on_most_expected == pytest.approx(binomial[3] + binomial[4])
    assert share.on_all_expected == pytest.approx(binomial[5])
    assert share.systematic == pytest.approx(share.systematic_expected, abs=0.01)
    assert share.systematic_low < share.systematic_expected < share.systematic_high


def test_chips_that_fail_alike_are_systematic() -> None:
    fragile = np.arange(100) < 20
    share = systematic_share([fragile] * 3)
    assert (share.systematic, share.systematic_low, share.chip_specific) == (1.0, 1.0, 0.0)
    assert share.systematic_expected == pytest.approx(
        (3 * 2 * 0.2**2 * 0.8 + 3 * 0.2**3) / (3 * 0.2)
    )


def test_no_failures_have_no_share() -> None:
    share = systematic_share(np.zeros((2, 10), bool))
    assert share.reason == "no failures"
    assert share.on_none == share.on_none_expected == 10
    assert np.isnan([share.systematic, share.systematic_low, share.systematic_expected]).all()


@pytest.mark.parametrize(
    ("failures", "message"),
    [
        ([True, False], "at least 2 chips and 1 sample; got 1 and 2"),
        (np.zeros((2, 0), bool), "at least 2 chips and 1 sample; got 2 and 0"),
        ([[1, 0], [0, 1]], "failures must be bools"),
    ],
)
def test_bad_systematic_input(failures: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        systematic_share(failures)


# --- as a library


def test_one_chip_under_two_names_agrees_as_much_as_chips_do():
    """Not perfectly: what the draws of one chip share says nothing of the noise."""
    rng = np.random.default_rng(0)
    failed = rng.random((4, 3000)) < rng.beta(0.5, 2, size=3000)
    found = failure_overlap(
        {"a": failed, "b": failed.copy()}, np.arange(3000.0), same_chips=True, resamples=5
    )
    between, within = found.iloc[1], found.iloc[0]
    assert between["spearman"] == pytest.approx(within["spearman"], abs=1e-9)
    assert between["jaccard"] == pytest.approx(within["jaccard"], abs=1e-9)
    apart = failure_overlap({"a": failed, "b": failed.copy()}, np.arange(3000.0), resamples=5)
    assert apart.iloc[1]["spearman"] == pytest.approx(1)
