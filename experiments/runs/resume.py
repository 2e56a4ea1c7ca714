"""Tables that are made once: work that was interrupted goes on with the first one missing.

A table's file or folder is named by the settings that decide its content; see `key_of`. The file is
there only when it is whole, and it is read whenever the table is asked for: a damaged one is named
there and then, not when all the rest has been made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.runs.files import read_parquet, write_parquet


def key_of(settings: Any, digits: int = 12) -> str:
    """A short name for settings: the first hexadecimal digits of the SHA-256 of their JSON."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:digits]


def table_at(path: Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The table in a Parquet file, which is made and written first if it is not there.

    Raises:
      ValueError: the file is damaged, or of another program or version.
    """
    (table,) = tables_at([path], lambda: [make()])
    return table


def tables_at(
    paths: Sequence[Path], make: Callable[[], Sequence[pd.DataFrame]]
) -> list[pd.DataFrame]:
    """Several tables that are made together; if one of the files is missing, all are made.

    Args:
      paths: the Parquet files.
      make: the tables, in the order of `paths`.

    Raises:
      ValueError: a file is damaged, or of another program or version.
    """
    if not all(path.exists() for path in paths):
        for path, table in zip(paths, make(), strict=True):
            write_parquet(path, table)
    return [read_parquet(path) for path in paths]
