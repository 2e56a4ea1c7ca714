"""Tables as users get them: pandas DataFrames, made of the Arrow tables that are written to disk.

Importing this module imports pandas: it is done where a table is made, not before.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from jaxcurv.rows import column_checksums, index_checksum


class Frame(pd.DataFrame):
    """A pandas DataFrame that still answers to two names of the Arrow tables once returned here.

    Whatever pandas makes of it, a copy or a selection, is a plain DataFrame.
    """

    def to_pandas(self) -> pd.DataFrame:
        """The same table; deprecated, since it is a DataFrame already."""
        warnings.warn(
            "this table is a pandas DataFrame already: leave out .to_pandas()",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.copy(deep=False)

    @property
    def column_names(self) -> list[str]:
        """Names of the columns; deprecated, write `list(table.columns)`."""
        warnings.warn(
            "this table is a pandas DataFrame now: write list(table.columns) for "
            "table.column_names",
            DeprecationWarning,
            stacklevel=2,
        )
        return list(self.columns)


def frame_of(table: pa.Table, attrs: Mapping[str, Any] | None = None) -> Frame:
    """A DataFrame of an Arrow table's columns, with their types; rows are numbered from 0.

    Args:
      table: its columns of fixed-size lists, such as float32 `[class]`, become columns of NumPy
        arrays, which are read-only views of the table's own values.
      attrs: what `DataFrame.attrs` shall say of the table; pandas copies it at every operation, so
        it should be small. Of a column `index` of whole numbers, `index_checksum` comes to it,
        with the column `label` where there is one, and `column_checksums` of all.
    """
    columns = zip(table.column_names, table.columns, strict=True)
    frame = Frame({name: _values(column) for name, column in columns})
    frame.attrs = dict(attrs or {})
    if "index" in frame and frame["index"].dtype.kind in "iu":
        labels = frame["label"].to_numpy() if "label" in frame else None
        frame.attrs |= index_checksum(frame["index"].to_numpy(), labels)
        frame.attrs |= column_checksums({name: frame[name].to_numpy() for name in frame})
    return frame


def _values(column: pa.ChunkedArray) -> Any:
    """A column as pandas takes it; lists of a fixed size as objects, views of their values."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_pandas()
    arrays = (
        row
        for chunk in column.chunks
        for row in chunk.flatten().to_numpy().reshape(len(chunk), column.type.list_size)
    )
    rows = np.empty(len(column), object)
    for number, row in enumerate(arrays):
        rows[number] = row
    return rows
