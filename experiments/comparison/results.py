"""By how much the results of one run are from another's, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis import differences
from bridge.analysis.differences import Measured
from bridge.chips.profiles import PROFILES
from bridge.report.folds import Fold
from bridge.report.tables.outcomes import over_chips
from experiments.comparison.runs import Run

RESULTS = (
    *("digital accuracy", "analog accuracy", "failure rate"),
    *("AUROC of curvature", "AUROC of margin"),
)
"""What is compared; failure rate and AUROC are among the samples that the run's own digital model
gets right."""

COLUMNS = (
    *("run", "reference", "fold", "profile", "result", "value", "reference_value"),
    *("difference", "difference_low", "difference_high", "samples", "reference_samples"),
    *("chips", "reference_chips", "same_samples", "same_chips", "reason"),
)
"""Columns of the table that `compare_results` returns."""

_FALLS = {"curvature": 1, "margin": -1}
"""The scores, and their sign so that they grow with fragility."""


_Row = dict[str, float | int | bool | str]


@dataclass(frozen=True)
class Pairing:
    """What two runs have in common.

    Attributes:
      samples: whether they are compared on the same samples.
      chips: whether chips of equal seeds draw the same random numbers.
      remarks: why not, and what else is to be said, a sentence each.
    """

    samples: bool
    chips: bool
    remarks: tuple[str, ...]


def pairing(run: Run, reference: Run, joined: pd.DataFrame, other: pd.DataFrame) -> Pairing:
    """Whether samples and chips of two runs are the same ones.

    Samples are the same where the data sets have one name and at least one index is common. Chips
    are the same where `--simulate.stream` has one label, both engines are JAX's or neither is (its
    chips are others), and at least one seed is common.

    Args:
      run: a run.
      reference: the run that it is compared with.
      joined: its rows of one fold, as `Run.joined` returns them.
      other: those of the reference.

    Raises:
      ValueError: common samples have other labels or files.
    """
    remarks = []
    same_samples = run.data == reference.data
    if not same_samples:
        remarks.append(
            f"{run.name} is on {run.data}, {reference.name} on {reference.data}: a difference is "
            "one of the data too."
        )
    else:
        same_samples, remark = _common(run, reference, joined, other)
        remarks += [remark] * bool(remark)
    if not (run.has_chips and reference.has_chips):
        without = " and ".join(one.name for one in (run, reference) if not one.has_chips)
        remarks.append(f"{without} has no chips: only digital accuracy is compared.")
        return Pairing(same_samples, False, tuple(remarks))
    why = _other_chips(run, reference)
    if not why and not set(joined["chip"]) & set(other["chip"]):
        why = "no seed of a chip is in both"
    if why:
        remarks.append(f"The chips are independent: {why}.")
    return Pairing(same_samples, not why, tuple(remarks))


def _common(
    run: Run, reference: Run, joined: pd.DataFrame, other: pd.DataFrame
) -> tuple[bool, str]:
    """Whether samples are common, and what is to be said of those that are not."""
    columns = [name for name in ("index", "label", "path") if name in joined and name in other]
    mine, theirs = (one[columns].drop_duplicates("index") for one in (joined, other))
    both = mine.merge(theirs, on="index", suffixes=("", "_other"))
    if both.empty:
        return False, "No sample was scored in both."
    for name in columns[1:]:
        apart = both[both[name] != both[f"{name}_other"]]
        if len(apart):
            raise ValueError(
                f"{name} of {len(apart)} samples of {run.data} is not the same in {run.folder} and "
                f"{reference.folder}, the first at index {apart['index'].iloc[0]}: the runs are of "
                "other images under one name, and cannot be compared"
            )
    left = max(len(mine), len(theirs)) - len(both)
    return True, f"Only the {len(both):,} samples that both scored count." if left else ""


def _other_chips(run: Run, reference: Run) -> str:
    streams = [one.settings.get("simulate.stream") for one in (run, reference)]
    if streams[0] != streams[1]:
        named = " and ".join("none" if one is None else str(one) for one in streams)
        return f"their random numbers have other labels ({named}, --simulate.stream)"
    engines = [one.settings.get("simulate.engine", "fast") == "jax" for one in (run, reference)]
    if engines[0] != engines[1]:
        return "those of --simulate.engine jax are other chips of the same kind"
    return ""


def compare_results(
    run: Run,
    reference: Run,
    joined: pd.DataFrame,
    other: pd.DataFrame,
    common: Pairing,
    *,
    fold: Fold,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """The results of a run less those of another, for each profile that both have.

    On samples or chips that are the same, both runs count those alone that both have.

    Args:
      run, reference, joined, other: as for `pairing`.
      common: what `pairing` says of them.
      fold: the fold that the rows are of.
      confidence: confidence level of the intervals, between 0 and 1.

    Returns:
      `COLUMNS`, a row a profile and result; the digital accuracy first, its profile "". Values and
      differences are fractions (`bridge.analysis.differences`). reason says why one is NaN.
    """
    if common.samples:
        indices = np.intersect1d(joined["index"], other["index"])
        joined, other = (one[one["index"].isin(indices)] for one in (joined, other))
    rows = []
    digital = [one.drop_duplicates("index").sort_values("index") for one in (joined, other)]
    found = [differences.accuracy(one["digital_correct"].to_numpy(bool)) for one in digital]
    head: _Row = {"run": run.name, "reference": reference.name, "fold": fold}
    # To the formula a network without chips is one chip, the same in both.
    moved = _row(found, Pairing(common.samples, True, ()), confidence)
    counts = _counts(digital, chips=False) | {"same_chips": False}
    rows.append({**head, "profile": "", "result": RESULTS[0]} | moved | counts)
    profiles = []
    if run.has_chips and reference.has_chips:
        there = set(joined["profile"]) & set(other["profile"])
        profiles = [name for name in PROFILES if name in there]
    for profile in profiles:
        sides = [one[one["profile"] == profile] for one in (joined, other)]
        if common.chips:
            seeds = set(sides[0]["chip"]) & set(sides[1]["chip"])
            sides = [one[one["chip"].isin(seeds)] for one in sides]
        measured = [dict(_results(one)) for one in sides]
        for name in RESULTS[1:]:
            pair = [one[name] for one in measured]
            moved = _row(pair, common, confidence) | _counts(sides, chips=True)
            rows.append({**head, "profile": profile, "result": name} | moved)
    return pd.DataFrame(rows)[list(COLUMNS)]


def _results(rows: pd.DataFrame) -> Iterator[tuple[str, Measured | str]]:
    """The results of one profile's chips; why one is undefined in its place."""
    samples, analog = over_chips(rows)
    digital, analog = samples["digital_correct"].to_numpy(bool), analog.astype(bool)
    yield RESULTS[1], differences.accuracy(analog)
    names = {RESULTS[2]: None, **{f"AUROC of {score}": score for score in _FALLS}}
    for name, score in names.items():
        if not digital.any():
            yield name, "no sample is digitally correct"
        elif score is None:
            yield name, differences.failure_rate(digital, analog)
        elif score not in samples:
            yield name, f"no score {score}"
        else:
            yield name, _auroc(_FALLS[score] * samples[score].to_numpy(), digital, analog)


def _auroc(
    score: npt.NDArray, digital: npt.NDArray[np.bool_], analog: npt.NDArray[np.bool_]
) -> Measured | str:
    if np.isnan(score[digital]).any():
        return "not kept for this fold"  # the archive has scores of the test fold alone
    found = differences.auroc(np.where(digital, score, 0), digital, analog)
    if np.isfinite(found.mean):
        return found
    return "no sample fails" if analog[:, digital].all() else "every sample fails"


def _counts(sides: Sequence[pd.DataFrame], *, chips: bool) -> _Row:
    """How many samples and chips take part, of the run and of the reference."""
    found: _Row = {}
    for prefix, one in zip(("", "reference_"), sides, strict=True):
        found[f"{prefix}samples"] = one["index"].nunique()
        found[f"{prefix}chips"] = one["chip"].nunique() if chips else 0
    return found


def _row(pair: Sequence[Measured | str], common: Pairing, confidence: float) -> _Row:
    row: _Row = {}
    for prefix, one in zip(("", "reference_"), pair, strict=True):
        row[f"{prefix}value"] = np.nan if isinstance(one, str) else one.mean
    row |= {"same_samples": common.samples, "same_chips": common.chips}
    first, second = pair
    if isinstance(first, str) or isinstance(second, str):
        ends = (np.nan,) * 3
        row["reason"] = "; ".join(dict.fromkeys(one for one in pair if isinstance(one, str)))
    else:
        ends = differences.difference(
            first,
            second,
            same_samples=common.samples,
            same_chips=common.chips,
            confidence=confidence,
        )
        row["reason"] = ""
    for name, end in zip(("", "_low", "_high"), ends, strict=True):
        row[f"difference{name}"] = end
    return row
