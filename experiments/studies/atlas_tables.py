"""The tables of the vulnerability atlas: a row an image, a row a setting and fold, every column
described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.analysis.components import variance_shares
from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import rate_interval
from bridge.report.folds import FOLDS, POOLED
from experiments.columns.of_studies import ATLAS

_SAMPLE = ("fold", "index", "path", "label", "prediction", "correct", "chips")
_SCORES = ("curvature", "gradient_norm", "loss", "margin", "cscore")
_SETTING = ("failures", "wrong", "flip_probability")
_SMALL = {"label": "int32", "prediction": "int32", "chips": "int32"}


def atlas_table(
    scores: pd.DataFrame,
    wrong: Mapping[str, NDArray[np.bool_]],
    flips: Mapping[str, pd.Series],
    abouts: Mapping[str, str],
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row an image, and what each column holds.

    Args:
      scores: the run's scores, a row an image; where known with the images' `cscore`.
      wrong: for each setting whether each chip is wrong, bool [chips, images], in their order.
      flips: the flip probabilities of the settings that have them, in their order.
      abouts: what the descriptions call each setting.

    Returns:
      The table, and a description of every column in the table's order. Columns that a run's scores
      lack are left out.
    """
    table = scores[[name for name in (*_SAMPLE, *_SCORES) if name in scores]].copy()
    correct = scores["correct"].to_numpy(bool)
    for name, outcomes in wrong.items():
        table["chips"] = len(outcomes)
        on = analog_only_failures(correct, ~outcomes).sum(axis=0)
        table[f"failures_{name}"] = pd.Series(on, table.index, "Int32").where(scores["correct"])
        table[f"wrong_{name}"] = outcomes.sum(axis=0).astype("int32")
        if name in flips:
            table[f"flip_probability_{name}"] = flips[name].to_numpy("float32")
    described = {name: ATLAS.columns[name].definition for name in _SAMPLE if name in table}
    for name in wrong:
        for column in _SETTING:
            if f"{column}_{name}" in table:
                text = ATLAS.columns[f"{column}_{{setting}}"].definition
                described[f"{column}_{name}"] = text.format(setting=abouts[name])
    described |= {name: ATLAS.columns[name].definition for name in _SCORES if name in table}
    narrow = dict.fromkeys(set(_SCORES) & set(table), "float32")
    return table[[*described]].astype(_SMALL | narrow), described


FEWEST_DECIDED = 30
"""Digitally correct images that must fail on some chip, and as many that must survive on some, for
the shares of variance to have intervals. Where 15 to 18 of 100 to 1,000 images failed on any of 100
chips, intervals of 95 % covered the image's share in 0.66 to 0.83 of 250 draws; where 54 to 58 did,
in 0.78 to 0.93."""


def summarise(
    table: pd.DataFrame, wrong: Mapping[str, NDArray[np.bool_]], confidence: float
) -> pd.DataFrame:
    """How many images fail, on how many chips, and how much of that is the image's own.

    Args:
      table: as `atlas_table` returns it.
      wrong: as for `atlas_table`.
      confidence: confidence level of the intervals, between 0 and 1.

    Returns:
      One row a setting and fold, and of several folds together (pooled): setting, fold, chips,
      samples, digitally_correct, digital_accuracy, analog_accuracy (mean over chips), failure_rate
      of the digitally correct with _low and _high (`rate_interval`), never_fail, sometimes_fail and
      always_fail (shares of the digitally correct that fail on no, some, all chips), and the shares
      image_share, chip_share and rest_share of the variance of failure with _low and _high
      (`variance_shares`), which take three chips and `FEWEST_DECIDED` images. All but the counts
      are fractions; NaN where nothing defines them.
    """
    correct = table["correct"].to_numpy()
    rows = []
    for name, outcomes in wrong.items():
        for fold, chosen in _folds(table):
            failed = outcomes[:, chosen & correct]
            shares = asdict(variance_shares(failed, confidence))
            low, high = rate_interval(failed, confidence)
            right = failed.shape[1]
            on = failed.sum(axis=0)
            if min((on > 0).sum(), (on < len(failed)).sum()) < FEWEST_DECIDED:
                shares |= {end: np.nan for end in shares if end.endswith(("_low", "_high"))}
            never, always = (
                float((on == count).mean()) if right else np.nan for count in (0, len(failed))
            )
            rows.append(
                {
                    "setting": name,
                    "fold": fold,
                    "chips": len(failed),
                    "samples": int(chosen.sum()),
                    "digitally_correct": right,
                    "digital_accuracy": correct[chosen].mean(),
                    "analog_accuracy": 1 - outcomes[:, chosen].mean(),
                    "failure_rate": float(failed.mean()) if right else np.nan,
                    "failure_rate_low": low,
                    "failure_rate_high": high,
                    "never_fail": never,
                    "sometimes_fail": 1 - never - always,
                    "always_fail": always,
                    **{
                        f"{'image' if part == 'sample' else part}_share{end}": shares[part + end]
                        for part in ("sample", "chip", "rest")
                        for end in ("", "_low", "_high")
                    },
                }
            )
    return pd.DataFrame(rows)


def most_failing(
    table: pd.DataFrame, settings: Sequence[str], count: int, fold: str = "test"
) -> pd.DataFrame:
    """The images of a fold that fail on most chips, at most `count` a setting.

    Of those that fail on equally many, the ones of largest margin come first: the digital model was
    surest of them.

    Returns:
      setting, fold, index, path where there is one, label, failures, chips and margin, sorted.
    """
    found = []
    kept = [name for name in ("fold", "index", "path", "label", "chips", "margin") if name in table]
    for name in settings:
        rows = table[(table["fold"] == fold) & table["correct"]]
        rows = rows[kept].assign(failures=rows[f"failures_{name}"].astype("int64"), setting=name)
        rows = rows[rows["failures"] > 0]
        order = ["failures", "margin", "index"]
        found.append(rows.sort_values(order, ascending=[False, False, True]).head(count))
    order = ["setting", *kept[:-2], "failures", *kept[-2:]]
    return pd.concat(found, ignore_index=True)[order]


def _folds(table: pd.DataFrame) -> list[tuple[str, NDArray[np.bool_]]]:
    present = [fold for fold in FOLDS if (table["fold"] == fold).any()]
    found = [(fold, (table["fold"] == fold).to_numpy()) for fold in present]
    return [*found, (POOLED, np.ones(len(table), bool))] if len(present) > 1 else found
