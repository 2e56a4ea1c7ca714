"""Which classes hold the failures, and which class the failing samples are taken for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

_FEW = 10
"""Failures, mean over chips, below which nothing is said of their classes."""

_DRAWS, _RARE = 1000, 0.99
"""Draws of as many failures that strike every correct sample alike, and the share of them that what
is said of classes must exceed."""

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Concentration:
    """How the failures are spread over the classes."""

    holders: tuple[str, ...]
    """The fewest classes that hold more than half of the failures, most failures first."""
    held: float
    """The share of the failures that these hold, in (0.5, 1]."""
    classes: int
    """All classes of the table."""
    becomes: str
    """The class that most failing samples are taken for; "" where that is not known, or where two
    classes leave no choice."""
    become: float
    """The share of the failures that are taken for it."""

    by_chance: float
    """The share that so many classes hold, at most in 99 of 100 cases, where failures strike every
    correct sample alike."""

    @property
    def sentence(self) -> str:
        """What is said of the classes; "" where the failures are few, or spread as by chance."""
        return ", and ".join(filter(None, (self._hold, self._become)))

    @property
    def _hold(self) -> str:
        count = len(self.holders)
        few = 0 < count <= max(2, self.classes // 3)
        if not few or self.held <= self.by_chance:
            return ""
        number = _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
        verb = "holds" if count == 1 else "hold"
        return (
            f"{number} of {self.classes:,} classes {verb} {100 * self.held:.0f} % of the failures"
        )

    @property
    def _become(self) -> str:
        if not self.becomes or self.become <= 0.5 or self.classes <= 3:
            return ""
        return f"{100 * self.become:.0f} % of all failures become one class, {self.becomes}"


def concentration(per_class: pd.DataFrame) -> Concentration:
    """How the failures are spread over the classes.

    Args:
        per_class: as `failure_rates.per_class` returns it, of one fold and profile; with class_name
            where names are known, and taken_for where it was counted.

    Returns:
        Without holders where fewer than ten samples fail on a chip, of which nothing is said, and
        where there is one class. The share by chance comes from 1,000 multinomial draws under one
        seed: some classes always hold more than others.
    """
    name = "class_name" if "class_name" in per_class else "label"
    table = per_class.sort_values(["failures"], ascending=False, kind="stable")
    total = table["failures"].sum()
    if total < _FEW or len(table) < 2:
        return Concentration((), 0.0, len(table), "", 0.0, 1.0)
    shares = table["failures"].cumsum() / total
    count = int((shares <= 0.5).sum()) + 1
    becomes, become = "", 0.0
    if "taken_for" in table and len(table) > 2:
        most = table["taken_for"].idxmax()
        becomes, become = str(table.at[most, name]), float(table.at[most, "taken_for"] / total)
    return Concentration(
        tuple(table[name].head(count).astype(str)),
        float(shares.iloc[count - 1]),
        len(table),
        becomes,
        become,
        _by_chance(table["samples"] * table["digital_accuracy"], round(total), count),
    )


def _by_chance(correct: pd.Series, failures: int, count: int) -> float:
    """The share that the `count` classes with most failures hold at most in 99 of 100 draws."""
    chances = correct.to_numpy(np.float64) / correct.sum()
    drawn = np.random.default_rng(0).multinomial(failures, chances, size=_DRAWS)
    most = np.sort(drawn, axis=1)[:, -count:].sum(axis=1)
    return float(np.quantile(most / failures, _RARE))
