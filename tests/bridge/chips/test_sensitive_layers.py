"""Which layers stay digital within a budget, by hand."""

import numpy as np
import pandas as pd
import pytest

from bridge.chips import most_sensitive

FAILURES = pd.DataFrame(
    {"layer": ["a", "b", "c", "d", "all layers"], "failures": [10, 30, 0, 6, 40]}
)
COVERAGE = pd.DataFrame(
    {
        "layer": ["a", "b", "c", "d", "e"],
        "macs": [10, 60, 5, 15, 10],
        "place": ["analog"] * 4 + ["digital"],
    }
)


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (0.05, []),  # c would fit, and causes no failure
        (0.1, ["a"]),
        (0.25, ["a", "d"]),  # b comes before d for its work, and is passed over
        (0.7, ["a", "b"]),
        (0.9, ["a", "b", "d"]),
    ],
)
def test_failures_for_the_work_within_the_budget(budget: float, kept: list[str]) -> None:
    assert most_sensitive(FAILURES, COVERAGE, budget) == kept


def test_a_layer_may_fill_the_budget_exactly() -> None:
    """0.29 * 100 is 28.999999999999996 in double precision."""
    coverage = pd.DataFrame({"layer": ["a", "b"], "macs": [29, 71], "place": "analog"})
    assert most_sensitive(FAILURES[:1], coverage, 0.29) == ["a"]


def test_products_of_one_layer_count_together() -> None:
    twice = pd.concat([COVERAGE, COVERAGE[:1]])  # a has 20 of 110
    assert most_sensitive(FAILURES, twice, 0.1) == []


@pytest.mark.parametrize(
    ("failures", "coverage", "budget", "said"),
    [
        (FAILURES, COVERAGE, 0.0, "budget"),
        (FAILURES.drop(columns="failures"), COVERAGE, 0.1, "no column failures"),
        (FAILURES, COVERAGE.drop(columns=["macs", "place"]), 0.1, "no column macs and place"),
        (FAILURES, COVERAGE[1:], 0.1, "a has failures but no product on tiles"),
        (pd.concat([FAILURES, FAILURES[1:]]), COVERAGE, 0.1, "has b twice"),
        (FAILURES.assign(failures=np.nan), COVERAGE, 0.1, "must be finite"),
        (FAILURES.assign(failures=-1), COVERAGE, 0.1, "not negative"),
        (FAILURES.assign(failures="10"), COVERAGE, 0.1, "numbers from 0 on"),
    ],
)
def test_bad_input(
    failures: pd.DataFrame, coverage: pd.DataFrame, budget: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        most_sensitive(failures, coverage, budget)
