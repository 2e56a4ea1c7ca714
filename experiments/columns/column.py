"""What a column of a table holds, and which files a table is in."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import PurePath

FRACTION, PERCENT, POINTS, COUNT = "fraction", "%", "percentage points", "count"
TEXT, FLAG = "text", "true or false"

PLACES = {
    "{chip}": r"\d+",
    "{cell}": r"[0-9a-f]{8}",
    "{n}": r"\d+",
    "{step}": r"\d+(\.\d+)?e-?\d+",
    "{model}": r"resnet\d+ \w+",
    "{setting}": r"[\w+@.]+",
    "{estimator}": r"[\w-]+?",
}
"""What a name between braces may stand for in the name of a column."""


@dataclass(frozen=True)
class Column:
    """One column, or several of like names."""

    unit: str
    """The unit of its values, such as "fraction", "%", "count" or "s"; "" where they have none."""
    definition: str
    """What it holds, in words."""
    low: float = -math.inf
    """The smallest value that it can have."""
    high: float = math.inf
    """The largest value that it can have."""
    values: tuple[str, ...] = ()
    """The words that a column of text takes, where they are few."""

    @property
    def range(self) -> str:
        """The range in words; "" where there is none to tell."""
        if self.values:
            return ", ".join(one or "(empty)" for one in self.values)
        if math.isinf(self.low) and math.isinf(self.high):
            return ""
        if math.isinf(self.high):
            return f"{self.low:g} or more"
        if math.isinf(self.low):
            return f"{self.high:g} or less"
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Table:
    """One kind of table."""

    name: str
    """What it is called, each table by another name."""
    files: tuple[str, ...]
    """Where it lies, as patterns of paths; `*` stands for any part of a name."""
    rows: str
    """What a row is."""
    made_by: str
    """The dotted name of the function that makes it."""
    columns: Mapping[str, Column]
    """Every column by its name. A name in braces stands for several (`PLACES`)."""

    def has_file(self, path: PurePath) -> bool:
        """Whether a file is such a table, by the last parts of its path."""
        return any(_fits(path.parts, PurePath(one).parts) for one in self.files)

    def column(self, name: str) -> Column | None:
        """The column of this name; None where there is none."""
        found = self.key(name)
        return None if found is None else self.columns[found]

    def key(self, name: str) -> str | None:
        """The name under which `columns` has the column of this name; None where it lacks it."""
        if name in self.columns:
            return name
        return next((key for key in self.columns if "{" in key and _names(key, name)), None)


def _fits(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    last = path[-len(pattern) :]
    return len(last) == len(pattern) and all(map(fnmatchcase, last, pattern))


def _names(key: str, name: str) -> bool:
    pattern = re.escape(key)
    for place, kind in PLACES.items():
        pattern = pattern.replace(re.escape(place), kind)
    return re.fullmatch(pattern, name) is not None


def fraction(definition: str) -> Column:
    """A share, in [0, 1]."""
    return Column(FRACTION, definition, 0.0, 1.0)


def percent(definition: str) -> Column:
    """A share in percent, in [0, 100]."""
    return Column(PERCENT, definition, 0.0, 100.0)


def count(definition: str, low: float = 0) -> Column:
    """A whole number, or a mean of such."""
    return Column(COUNT, definition, low)


def text(definition: str, *values: str) -> Column:
    """Words: any, or one of a few."""
    return Column(TEXT, definition, values=values)


def flag(definition: str) -> Column:
    """A yes or no."""
    return Column(FLAG, definition)


def positive(definition: str, unit: str = "") -> Column:
    """A number that is not negative."""
    return Column(unit, definition, 0.0)


def correlation(definition: str) -> Column:
    """A correlation or the difference of two shares, in [-1, 1]."""
    return Column("", definition, -1.0, 1.0)


def with_interval(name: str, column: Column) -> dict[str, Column]:
    """A column and the ends of its interval, NAME_low and NAME_high."""
    return {
        name: column,
        f"{name}_low": replace(column, definition=f"Lower end of the interval of {name}."),
        f"{name}_high": replace(column, definition=f"Upper end of the interval of {name}."),
    }


def over_chips(name: str, column: Column) -> dict[str, Column]:
    """The extremes of a mean over chips, NAME_min and NAME_max."""
    return {
        f"{name}_min": replace(column, definition=f"Smallest over the chips of {name}."),
        f"{name}_max": replace(column, definition=f"Largest over the chips of {name}."),
    }
