"""The physical predictor's probabilities, and whether they come true: NumPy in, tables out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.intervals import rate_interval
from bridge.checks import (
    chips_of,
    real_scores,
    require_confidence,
    require_count,
    same_length,
    warn_of_repeated_samples,
)
from jaxcurv.rows import require_same_rows


def calibration_table(
    probability: npt.ArrayLike,
    failed: npt.ArrayLike,
    bins: int = 10,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Predicted probabilities beside the observed shares, in bins of equal width.

    A sample of probability p is in the bin with low < p <= high, the first of which takes 0 too.
    Intervals are for other samples of the bin on other chips (`rate_interval`); Wilson's for one
    chip.

    >>> table = calibration_table([0.1, 0.2, 0.9], [False, True, True], bins=2)
    >>> table[["low", "high", "samples", "predicted", "observed"]]
       low  high  samples  predicted  observed
    0  0.0   0.5        2       0.15       0.5
    1  0.5   1.0        1       0.90       1.0

    Args:
        probability: real [samples] in [0, 1].
        failed: what it predicts, bool [samples] or [chips, samples]. A flip is a failure only of a
            digitally correct sample: give these samples alone, or flips of all.
        bins: how many.
        confidence: confidence level of the intervals, between 0 and 1.

    Returns:
        One row a bin: bin (1 .. bins), low, high (its edges), samples, predicted (mean
        probability), observed (mean over chips of the share that fails), observed_low and
        observed_high; NaN in an empty bin.

    Raises:
        ValueError: for no samples, NaN, probabilities outside [0, 1], other dtypes or shapes.
    """
    require_same_rows(probability=probability, failed=failed)
    p = real_scores(probability, "probability")
    outcomes = chips_of("failed", failed)
    same_length(probability=p, failed=outcomes)
    if not len(p):
        raise ValueError("no samples to compare; give at least one")
    warn_of_repeated_samples(p, "failed")
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probability must lie in [0, 1]; got {p.min():g}..{p.max():g}")
    bins = require_count("bins", bins)
    confidence = require_confidence(confidence)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], p, side="left")
    rows = []
    for number in range(bins):
        members = place == number
        row = {"bin": number + 1, "low": edges[number], "high": edges[number + 1]}
        row |= {"samples": int(members.sum())}
        if members.any():
            row["predicted"] = p[members].mean()
            row["observed"] = outcomes[:, members].mean()
            row["observed_low"], row["observed_high"] = rate_interval(
                outcomes[:, members], confidence
            )
        rows.append(row)
    columns = ["bin", "low", "high", "samples", "predicted"]
    columns += ["observed", "observed_low", "observed_high"]
    return pd.DataFrame(rows, columns=columns)


def expected_calibration_error(table: pd.DataFrame) -> float:
    """The mean distance of observed from predicted, each bin weighted by its share of the samples.

        ECE = sum_b n_b / N |observed_b - predicted_b|

    >>> table = calibration_table([0.1, 0.2, 0.9], [False, True, True], bins=2)
    >>> round(expected_calibration_error(table), 3)  # (2 |0.5 - 0.15| + |1 - 0.9|) / 3
    0.267

    Sources: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo, Pleiss, Sun and Weinberger, ICML 2017.

    Args:
        table: what `calibration_table` returned.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: the table lacks the columns, or has no samples.
    """
    wanted = ["samples", "predicted", "observed"]
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"the table has no {', '.join(missing)}; give that of calibration_table")
    filled = table[table["samples"] > 0]
    if filled.empty:
        raise ValueError("the table has no samples; give that of calibration_table")
    distance = (filled["observed"] - filled["predicted"]).abs()
    return float((filled["samples"] * distance).sum() / filled["samples"].sum())
