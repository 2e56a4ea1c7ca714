"""Which classes hold the failures, and which class the failing samples are taken for."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

_FEW = 10
"""Failures, mean over chips, below which nothing is said of their classes."""

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

    @property
    def sentence(self) -> str:
        """Both in a clause; "" where too few samples fail to say."""
        if not self.holders:
            return ""
        count = len(self.holders)
        number = _NUMBERS[count] if count < len(_NUMBERS) else f"{count:,}"
        verb = "holds" if count == 1 else "hold"
        said = (
            f"{number} of {self.classes:,} classes {verb} {100 * self.held:.0f} % of the failures"
        )
        if self.becomes and self.become > 0.5:
            said += f", and {100 * self.become:.0f} % of them all become one class, {self.becomes}"
        return said


def concentration(per_class: pd.DataFrame) -> Concentration:
    """How the failures are spread over the classes.

    Args:
        per_class: as `failure_rates.per_class` returns it, of one fold and profile; with class_name
            where names are known, and taken_for where it was counted.

    Returns:
        Without holders where fewer than ten samples fail on a chip, of which nothing is said, and
        where there is one class.
    """
    name = "class_name" if "class_name" in per_class else "label"
    table = per_class.sort_values(["failures"], ascending=False, kind="stable")
    total = table["failures"].sum()
    if total < _FEW or len(table) < 2:
        return Concentration((), 0.0, len(table), "", 0.0)
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
    )
