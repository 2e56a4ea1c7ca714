"""What each remedy buys and what it costs: from outcomes to tables. NumPy in, tables out.

A first answer comes from a chip; where its score is high, a second one takes its place. Energies
are counted in passes: so many inferences on tiles, so many on digital hardware.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bridge.analysis.differences import Difference, accuracy, difference
from bridge.analysis.failures import analog_only_failures
from bridge.analysis.intervals import rate_interval
from bridge.routing.costs import Costs
from bridge.routing.guarantees import guaranteed_threshold

Rule = Literal["none", "share", "risk", "all"]
"""Who gets the second answer: nobody, the samples of the highest scores up to a share, those above
the threshold that bounds the failures of all others, or every sample."""

_ROUNDING = 1e-9
"""Slack of accuracies: one that is just near enough must not fail for its rounding."""


@dataclass(frozen=True)
class Passes:
    """What an answer costs, in passes of the whole network: those on tiles and the digital ones."""

    analog: float
    digital: float

    def __add__(self, other: Passes) -> Passes:
        return Passes(self.analog + other.analog, self.digital + other.digital)

    def __mul__(self, times: float) -> Passes:
        return Passes(times * self.analog, times * self.digital)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What an answer of each chip makes of the samples of each fold.

    Attributes:
      right: bool [chips, samples] by fold.
      passes: of one sample.
      replaces: whether as a second answer of all samples it makes the first needless.
    """

    right: Mapping[str, NDArray[np.bool_]]
    passes: Passes
    replaces: bool = False


@dataclass(frozen=True, eq=False)
class Score:
    """What decides who gets the second answer, higher for more fragile samples.

    Attributes:
      values: real [chips, samples] by fold; or [1, samples] where it is not the chip's own.
      before: whether it is there before the chip runs, so that a routed sample never does.
      passes: of one sample, for the score alone.
    """

    values: Mapping[str, NDArray[np.float64]]
    before: bool = False
    passes: Passes = Passes(0.0, 0.0)


@dataclass(frozen=True)
class Remedy:
    """One way to answer; the names are keys of what is known of it."""

    first: str
    second: str | None = None
    score: str | None = None
    rule: Rule = "none"
    at: float = np.nan
    """The share, or the risk."""


def remedies_table(
    remedies: Iterable[Remedy],
    first: Mapping[str, Outcomes],
    second: Mapping[tuple[str, str], Outcomes],
    scores: Mapping[tuple[str, str], Score],
    digital: Mapping[str, NDArray[np.bool_]],
    *,
    plain: str,
    free: str,
    confidence: float,
) -> pd.DataFrame:
    """One row a remedy.

    Thresholds are chosen on the validation samples, each chip's on its own outcomes; everything
    else but what begins with `validation_` is of the test samples.

    Args:
      remedies: what to try.
      first: the first answers by name.
      second: the second answers by the names of the first and the second.
      scores: by the names of the first answer and the score.
      digital: whether the digital model is right, bool [samples] by fold.
      plain: the first answer that gains are over.
      free: the first answer with every remedy that takes no energy.
      confidence: confidence level of the intervals, between 0 and 1.

    Returns:
      first, second, score, rule and at (see `Remedy`; "" and NaN where there is none); routed (the
      share that gets the second answer, mean over chips); analog_passes and digital_passes (of one
      sample, mean); accuracy, gain (accuracy less that of `plain` on the same chips and samples),
      over_free (less that of `free` on them), short (the digital model's less it, on the same
      samples), failure_rate (wrong of those that the digital model has right) and failed (wrong
      though the digital model is right, of all samples), the first five with _low and _high, for
      other samples on other chips;
      validation_accuracy, and validation_ before both passes; chips and samples. Fractions.
    """
    rows = []
    for one in remedies:
        begun = first[one.first]
        right, shares = dict(begun.right), dict.fromkeys(begun.right, 0.0)
        passes = dict.fromkeys(begun.right, begun.passes)
        if one.second is not None:
            after = second[one.first, one.second]
            score = scores[one.first, one.score] if one.score is not None else None
            chosen = _chosen(one, begun.right, score, digital)
            right = {
                fold: np.where(chosen[fold], after.right[fold], some)
                for fold, some in begun.right.items()
            }
            shares = {fold: float(some.mean()) for fold, some in chosen.items()}
            passes = {fold: _passes(begun, after, score, share) for fold, share in shares.items()}
        failed = analog_only_failures(digital["test"], right["test"])
        wrong_low, wrong_high = rate_interval(~right["test"], confidence)
        exactly = np.broadcast_to(digital["test"], right["test"].shape)
        itself = Difference(0.0, 0.0, 0.0)
        gain, over_free = (
            itself
            if one.first == reference and one.second is None
            else _paired(right["test"], first[reference].right["test"], confidence)
            for reference in (plain, free)
        )
        short = itself
        if not np.array_equal(exactly, right["test"]):
            short = _paired(exactly, right["test"], confidence)
        of_correct = failed[:, digital["test"]]
        rate_low, rate_high = rate_interval(of_correct, confidence)
        rows.append(
            {
                "first": one.first,
                "second": one.second or "",
                "score": one.score or "",
                "rule": one.rule,
                "at": one.at,
                "routed": shares["test"],
                "analog_passes": passes["test"].analog,
                "digital_passes": passes["test"].digital,
                "accuracy": right["test"].mean(),
                "accuracy_low": 1 - wrong_high,
                "accuracy_high": 1 - wrong_low,
                "gain": gain.value,
                "gain_low": gain.low,
                "gain_high": gain.high,
                "over_free": over_free.value,
                "over_free_low": over_free.low,
                "over_free_high": over_free.high,
                "short": short.value,
                "short_low": short.low,
                "short_high": short.high,
                "failure_rate": of_correct.mean() if of_correct.size else np.nan,
                "failure_rate_low": rate_low,
                "failure_rate_high": rate_high,
                "failed": failed.mean(),
                "validation_accuracy": right["validation"].mean(),
                "validation_analog_passes": passes["validation"].analog,
                "validation_digital_passes": passes["validation"].digital,
                "chips": len(right["test"]),
                "samples": right["test"].shape[1],
            }
        )
    return pd.DataFrame(rows)


def _passes(begun: Outcomes, after: Outcomes, score: Score | None, share: float) -> Passes:
    """What a sample takes on average where a share of them gets the second answer, all without a
    score."""
    if score is None:
        return after.passes if after.replaces else begun.passes + after.passes
    stays = 1 - share if score.before else 1.0
    return begun.passes * stays + after.passes * share + score.passes


def _paired(outcome: NDArray[np.bool_], other: NDArray[np.bool_], confidence: float) -> Difference:
    """The accuracy of outcomes less that of others of the same chips and samples."""
    return difference(
        *(accuracy(some) for some in (outcome, other)),
        same_samples=True,
        same_chips=True,
        confidence=confidence,
    )


def _chosen(
    remedy: Remedy,
    right: Mapping[str, NDArray[np.bool_]],
    score: Score | None,
    digital: Mapping[str, NDArray[np.bool_]],
) -> dict[str, NDArray[np.bool_]]:
    """Who gets the second answer, bool [chips, samples] by fold."""
    if remedy.rule == "all" or score is None:
        return {fold: np.ones_like(some) for fold, some in right.items()}
    values = {fold: np.broadcast_to(score.values[fold], some.shape) for fold, some in right.items()}
    if remedy.rule == "share":
        # The highest scores of the validation samples, on which the share is what it should be.
        edges = np.quantile(values["validation"], 1 - remedy.at, axis=1, method="higher")
    else:
        lost = analog_only_failures(digital["validation"], right["validation"])
        edges = np.array(
            [
                np.nextafter(guaranteed_threshold(of_chip, fails, remedy.at), np.inf)
                for of_chip, fails in zip(values["validation"], lost, strict=True)
            ]
        )
    return {fold: some >= edges[:, None] for fold, some in values.items()}


def energies(table: pd.DataFrame, costs: Costs, fold: str = "") -> pd.Series:
    """The energy of each row of a table of `remedies_table`, in the unit of the costs.

    Args:
      table: that table.
      costs: energy of a pass on tiles and of a digital one.
      fold: "validation_" for the validation samples, "" for the test samples.
    """
    analog, digital = (table[f"{fold}{which}_passes"] for which in ("analog", "digital"))
    return analog * costs.analog + digital * costs.digital


def frontier(energy: pd.Series, accuracy: pd.Series) -> pd.Series:
    """Which rows no other one beats: at no more energy none has a higher accuracy.

    Of rows of equal energy and accuracy the first is taken.

    Returns:
      bool, indexed as given.
    """
    order = pd.DataFrame({"energy": energy, "accuracy": -accuracy}).sort_values(
        ["energy", "accuracy"], kind="stable"
    )
    reached = (-order["accuracy"]).cummax().shift(fill_value=-np.inf)
    return (-order["accuracy"] > reached).reindex(energy.index)


def frontiers(tables: pd.DataFrame, groups: Sequence[str], costs: Sequence[Costs]) -> pd.DataFrame:
    """The frontier of each group of rows at each cost, chosen on validation samples.

    Args:
      tables: rows of `remedies_table`, with what tells the groups apart.
      groups: columns; rows that differ in them are not compared.
      costs: energies to compare.

    Returns:
      The rows on a frontier, in ascending order of the energy on validation samples: the columns
      of `tables`, analog_cost (an analog pass over a digital one), energy and validation_energy (in
      digital passes).
    """
    found = []
    for cost in costs:
        for _, rows in tables.groupby(list(groups), sort=False):
            tried = rows.assign(
                analog_cost=cost.analog / cost.digital,
                energy=energies(rows, cost) / cost.digital,
                validation_energy=energies(rows, cost, "validation_") / cost.digital,
            )
            best = frontier(tried["validation_energy"], tried["validation_accuracy"])
            found.append(tried[best].sort_values("validation_energy", kind="stable"))
    return pd.concat(found, ignore_index=True)


def cheapest_within(
    frontier_rows: pd.DataFrame, accuracy: float, points: float
) -> pd.Series | None:
    """The cheapest row whose validation accuracy is at most so far below an accuracy; None if none.

    Args:
      frontier_rows: with validation_energy and validation_accuracy.
      accuracy: a fraction, of the validation samples.
      points: how far below, a fraction.
    """
    least = accuracy - points - _ROUNDING
    enough = frontier_rows[frontier_rows["validation_accuracy"] >= least]
    return None if enough.empty else enough.loc[enough["validation_energy"].idxmin()]


def told(row: Mapping[Any, Any]) -> str:
    """A row of `remedies_table` in a few words, such as "compensated; 10 % digital by margin".

    Of a guaranteed threshold it tells the level: what is then chosen among many rows is promised
    nothing.
    """
    first, second, rule = row["first"], row["second"], row["rule"]
    if not second:
        return str(first)
    if rule == "all":
        return f"{first}; {second}"
    if rule == "risk":
        return f"{first}; {second} by {row['score']}, level {100 * row['at']:g} %"
    return f"{first}; {100 * row['at']:g} % {second} by {row['score']}"
