"""Tables of a chip's layers, which both kinds of chips give."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import rate_interval

ALL_LAYERS = "all layers"
"""The row of the whole chip in the table of `layer_failures`."""


def failures_by_layer(
    digital: NDArray[np.bool_], outcomes: Mapping[str, Sequence[NDArray[np.bool_]]]
) -> pd.DataFrame:
    """The table of `bridge.chips.layer_failures`.

    Args:
        digital: bool [samples], which the digital model gets right.
        outcomes: for each layer, bool [samples] of every chip with it on tiles, alike.
    """
    rows = []
    for layer, of_chips in outcomes.items():
        analog = np.array(of_chips)
        failed = analog_only_failures(digital, analog)
        trials = len(analog) * int(digital.sum())
        low, high = rate_interval(failed[:, digital])
        rows.append(
            {
                "layer": layer,
                "chips": len(analog),
                "samples": analog.size,
                "digitally_correct": trials,
                "failures": int(failed.sum()),
                "failure_rate": failed.sum() / trials if trials else np.nan,
                "failure_rate_low": low,
                "failure_rate_high": high,
                "analog_accuracy": analog.mean(),
            }
        )
    return pd.DataFrame(rows)


def decibels(signal: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    """`10 log10(signal / error)` of energies: inf without an error, NaN without a signal."""
    signal, error = np.asarray(signal, np.float64), np.asarray(error, np.float64)
    with np.errstate(divide="ignore"):
        ratio = np.divide(signal, error, out=np.full(len(signal), np.inf), where=error != 0)
        return 10 * np.log10(np.where(np.isnan(signal), np.nan, ratio))
