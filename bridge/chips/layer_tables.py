"""Tables of a chip's layers, which both kinds of chips give."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import wilson_interval

ALL_LAYERS = "all layers"
"""The row of the whole chip in the table of `layer_failures`."""


def failure_row(
    layer: str, digital: NDArray[np.bool_], analog: NDArray[np.bool_]
) -> dict[str, Any]:
    """What one chip with a layer on tiles does: counts over the samples, of which each is right
    or wrong on either."""
    return {
        "layer": layer,
        "chips": 1,
        "samples": len(analog),
        "digitally_correct": digital.sum(),
        "failures": analog_only_failures(digital, analog).sum(),
        "analog_correct": analog.sum(),
    }


def failures_by_layer(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of `bridge.chips.layer_failures` from the rows of `failure_row`."""
    table = pd.DataFrame(rows).groupby("layer", sort=False, as_index=False).sum()
    failures, trials = table["failures"], table["digitally_correct"]
    table["failure_rate"] = failures / trials.where(trials > 0)
    table["failure_rate_low"], table["failure_rate_high"] = wilson_interval(failures, trials)
    table["analog_accuracy"] = table.pop("analog_correct") / table["samples"]
    return table


def decibels(signal: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    """`10 log10(signal / error)` of energies: inf without an error, NaN without a signal."""
    signal, error = np.asarray(signal, np.float64), np.asarray(error, np.float64)
    with np.errstate(divide="ignore"):
        ratio = np.divide(signal, error, out=np.full(len(signal), np.inf), where=error != 0)
        return 10 * np.log10(np.where(np.isnan(signal), np.nan, ratio))
