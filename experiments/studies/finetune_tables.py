"""The tables of fine-tuning: a row a network and chip, and their means with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.intervals import crossed_mean_interval
from experiments.studies.finetune_variants import REFERENCES

ALL, VULNERABLE = "all", "D10"

_ENDS = {ALL: "", VULNERABLE: "_d10"}
"""What the columns of each set of images end in."""

MEASURES = ("digital_accuracy", "accuracy", "failure_rate")


def row_of(
    about: Mapping[str, Any],
    digital: npt.NDArray[np.bool_],
    analog: npt.NDArray[np.bool_],
    *,
    original: npt.NDArray[np.bool_],
    vulnerable: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """What one chip of one network does.

    Failures are counted among the images that the network was right on before it was fine-tuned,
    the same for every network: images that the chip gets wrong. Where fine-tuning made the digital
    network wrong on such an image, that counts too.

    Args:
      about: the row's first columns.
      digital: whether the digital network is right on each image, bool [images].
      analog: the same of the chip.
      original: the same of the network before it was fine-tuned.
      vulnerable: the images of the highest decile of curvature under that network.
    """
    row = dict(about)
    for images, end in _ENDS.items():
        used = np.ones_like(vulnerable) if images == ALL else vulnerable
        base = used & original
        failures = int((base & ~analog).sum())
        row |= {
            f"samples{end}": int(used.sum()),
            f"digitally_correct{end}": int(base.sum()),
            f"digital_accuracy{end}": float(digital[used].mean()),
            f"accuracy{end}": float(analog[used].mean()),
            f"failures{end}": failures,
            f"failure_rate{end}": failures / base.sum() if base.any() else np.nan,
        }
    return row


def summarise(rows: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """Means over training seeds and chips, and differences between variants, with intervals.

    A difference is that of the same training seeds and chips; of the network that was not
    fine-tuned, that of each seed's network from it, on the same chip. Intervals are
    `crossed_mean_interval`'s, cut to [0, 1], of differences to [-1, 1]: for other seeds and chips,
    of the same images and one original network. None is adjusted for their number.

    Args:
      rows: a row of `row_of` for each network and chip: variant, seed (missing of the original) and
        chip before the measures.
      confidence: confidence level of the intervals, between 0 and 1.

    Returns:
      One row a variant, set of images ("all", "D10") and measure: value, low, high; for each of
      `REFERENCES` that is there difference_to_REFERENCE with its _low and _high, NaN of itself; and
      seeds, chips, samples and digitally_correct. Fractions.
    """
    variants = list(rows["variant"].unique())
    references = [one for one in REFERENCES if one in variants]
    found = []
    for images, end in _ENDS.items():
        for measure in MEASURES:
            of = {one: _matrix(rows, one, measure + end) for one in variants}
            for variant in variants:
                first = rows[rows["variant"] == variant].iloc[0]
                row = {
                    "variant": variant,
                    "images": images,
                    "measure": measure,
                    **_with_interval("value", of[variant], confidence, least=0.0),
                }
                for reference in references:
                    differences = of[variant] - of[reference]
                    if variant == reference:
                        differences = np.full((1, 1), np.nan)
                    name = f"difference_to_{reference}"
                    row |= _with_interval(name, differences, confidence, least=-1.0)
                found.append(
                    row
                    | {
                        "seeds": rows.loc[rows["variant"] == variant, "seed"].nunique(),
                        "chips": rows["chip"].nunique(),
                        "samples": first[f"samples{end}"],
                        "digitally_correct": first[f"digitally_correct{end}"],
                    }
                )
    return pd.DataFrame(found)


def _matrix(rows: pd.DataFrame, variant: str, column: str) -> npt.NDArray[np.float64]:
    """A column's values [seeds, chips]; [seeds, 1] where no chip is in them."""
    own = rows[rows["variant"] == variant]
    own = own.assign(seed=own["seed"].fillna(-1).astype("int64"))
    values = own.pivot(index="seed", columns="chip", values=column).to_numpy(np.float64)
    return values[:, :1] if column.startswith("digital_accuracy") else values


def _with_interval(
    name: str, values: npt.NDArray[np.float64], confidence: float, *, least: float
) -> dict[str, float]:
    """The mean and its interval, cut to what such a number can be: from `least` to 1."""
    low, high = np.nan, np.nan
    if np.isfinite(values).all():
        low, high = np.clip(crossed_mean_interval(values, confidence), least, 1.0)
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
