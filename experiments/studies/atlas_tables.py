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

_SAMPLE = {
    "fold": "Part of the data set. train and validation divide the official training split.",
    "index": "Index of the image within its official split: test, or for train and validation "
    "the training split. For a folder of images, a number made from the file's path.",
    "path": "The image's file within its split.",
    "label": "Class of the image, counted from 0.",
    "prediction": "Class that the digital model predicts.",
    "correct": "Whether the digital model's prediction is the label.",
    "chips": "Simulated chips under each setting.",
}
_SETTING = {
    "failures": "Number of chips on which the image fails under {about}: the digital model is "
    "right and the chip is wrong. Missing where the digital model is wrong. Divided by the column "
    "chips it estimates the failure probability.",
    "wrong": "Number of chips whose prediction is not the label under {about}.",
    "flip_probability": "Probability that a chip under {about} predicts another class than the "
    "digital model, computed from the digital model and the moments of the noise; no chip is "
    "simulated.",
}
_SCORES = {
    "curvature": "Input loss curvature of the digital model at the image (Eq. 1 of Sharma et al.).",
    "gradient_norm": "Euclidean norm of the loss's gradient with respect to the image.",
    "loss": "Cross-entropy of the digital model.",
    "margin": "Largest logit of the digital model less its second largest.",
}
_SMALL = {"label": "int32", "prediction": "int32", "chips": "int32"}


def atlas_table(
    scores: pd.DataFrame,
    wrong: Mapping[str, NDArray[np.bool_]],
    flips: Mapping[str, pd.Series],
    abouts: Mapping[str, str],
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row an image, and what each column holds.

    Args:
      scores: the run's scores, a row an image.
      wrong: for each setting whether each chip is wrong, bool [chips, images], in their order.
      flips: the flip probabilities of the settings that have them, in their order.
      abouts: what the descriptions call each setting.

    Returns:
      The table, and a description of every column in the table's order. Columns that a run's scores
      lack are left out.
    """
    table = scores[[name for name in (*_SAMPLE, *_SCORES) if name in scores]].copy()
    described = {name: text for name, text in _SAMPLE.items() if name in table}
    correct = scores["correct"].to_numpy(bool)
    for name, outcomes in wrong.items():
        table["chips"] = len(outcomes)
        on = analog_only_failures(correct, ~outcomes).sum(axis=0)
        table[f"failures_{name}"] = pd.Series(on, table.index, "Int32").where(scores["correct"])
        table[f"wrong_{name}"] = outcomes.sum(axis=0).astype("int32")
        if name in flips:
            table[f"flip_probability_{name}"] = flips[name].to_numpy("float32")
    described["chips"] = _SAMPLE["chips"]
    for name in wrong:
        for column, text in _SETTING.items():
            if f"{column}_{name}" in table:
                described[f"{column}_{name}"] = text.format(about=abouts[name])
    described |= {name: text for name, text in _SCORES.items() if name in table}
    narrow = dict.fromkeys(_SCORES.keys() & set(table), "float32")
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
