"""Whether the dictionary of columns describes the tables that a folder holds."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pyarrow.parquet import ParquetFile

from experiments.columns.column import FLAG, TEXT, Column, Table
from experiments.columns.dictionary import tables_of

ROWS = 20_000
"""As many rows of a table are looked at, its first ones."""


def tables_in(folder: Path) -> Iterator[tuple[Path, pd.DataFrame]]:
    """Every CSV and Parquet file but unfinished work, by its path within the folder's parent."""
    for path in sorted(folder.rglob("*")):
        if "pieces" in path.parts:
            continue
        if path.suffix == ".csv":
            yield path.relative_to(folder.parent), pd.read_csv(path, nrows=ROWS)
        elif path.suffix == ".parquet":
            with ParquetFile(path) as file:
                first = next(file.iter_batches(ROWS), None)
                rows = file.schema_arrow.empty_table() if first is None else first
                yield path.relative_to(folder.parent), rows.to_pandas()


def described(path: str | Path, frame: pd.DataFrame) -> tuple[Table, list[str]]:
    """The table that a file is, and the names that its columns are described under.

    Asserts that each is described, with its unit and range.
    """
    lacking = {}
    for table in tables_of(path):
        lacking[table.name] = [name for name in frame if table.key(name) is None]
        if not lacking[table.name]:
            break
    else:
        raise AssertionError(f"{path} is not described: {lacking or 'no such table'}")
    keys = []
    for name in frame:
        column, key = table.column(name), table.key(name)
        assert column is not None
        assert key is not None
        keys.append(key)
        problem = misfit(column, frame[name])
        assert not problem, f"{path}, {name}: {problem}"
    return table, keys


def misfit(column: Column, values: pd.Series) -> str:
    """Why values are not as their column says; "" where they are."""
    values = values.dropna()
    if values.empty:
        return ""
    numeric = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if column.unit == FLAG:
        return "" if {*values.unique()} <= {True, False} else "neither true nor false"
    if column.unit == TEXT:
        words = set(map(str, values.unique()))
        others = sorted(words - set(column.values)) if column.values else []
        fractions = numeric and (values % 1 != 0).any()  # a class may be called 8
        return f"has {others}" if others else "is a number" * bool(fractions)
    if not numeric:
        return "is no number"
    low, high = values.min(), values.max()
    slack = 1e-6 * max(1.0, *(abs(end) for end in (low, high) if np.isfinite(end)), 1.0)
    if low < column.low - slack or high > column.high + slack:
        return f"lies in {low:g} to {high:g}, not in {column.range}"
    return ""


def require_described(folder: Path) -> None:
    """Asserts that every table in a folder is described."""
    found = list(tables_in(folder))
    assert found
    for path, frame in found:
        described(path, frame)
