"""Several tables of predictions as one: the mean of their logits."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bridge.chips.outcomes import rows_of
from jaxcurv.frames import frame_of

_SAMPLE = ("index", "label")
"""The columns that say which sample a row is."""


def average_logits(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """What several chips predict together: the class of the largest mean logit.

    Errors that chips make independently, as those of programming, have 1 / m of the variance in
    the mean of m chips; what all have alike, as drift's mean, stays. The energy is that of m
    inferences. For m reads of one chip, `bridge.predict(..., reads=m)`.

    Args:
      tables: of `bridge.predict` or `bridge.jax_chips.predict`, with logits, one a chip, of the
        same samples in the same order.

    Returns:
      A table as theirs, its rows labelled as the first's: logits are the mean, float32 `[class]`,
      and prediction and correct follow from them. Columns that `predict` does not give are left
      out.

    Raises:
      ValueError: no table, one without logits, or tables of other samples or classes.
    """
    wanted = "average_logits takes a list of tables of bridge.predict, one a chip"
    if isinstance(tables, pd.DataFrame) or not isinstance(tables, Iterable):
        raise ValueError(f"{wanted}; got a {type(tables).__name__}")
    tables = list(tables)
    if not tables or not all(isinstance(table, pd.DataFrame) for table in tables):
        raise ValueError(f"{wanted}; got {', '.join(type(one).__name__ for one in tables) or '[]'}")
    require_same_samples({f"table {number}": table for number, table in enumerate(tables)})
    logits = [logits_of(table, f"table {number}") for number, table in enumerate(tables)]
    if len(shapes := {one.shape[1] for one in logits}) > 1:
        raise ValueError(f"the tables have logits of {' and '.join(map(str, shapes))} classes")
    return with_logits(tables[0], mean_logits(logits))


def mean_logits(logits: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The mean of logits `[batch, class]`; of equal ones it is them, to the bit."""
    if len(logits) == 1:
        return logits[0]
    # Sums in float64 are exact there, and so is the quotient.
    found: NDArray[np.float64] = np.stack(logits).mean(axis=0, dtype=np.float64)
    return found.astype(np.float32)


def logits_of(table: pd.DataFrame, what: str) -> NDArray[np.float32]:
    """A table's logits, float32 `[samples, class]`; `what` names the table in the message.

    Raises:
      ValueError: it has none.
    """
    if not len(table):
        raise ValueError(f"{what} has no rows: give the images that the logits are of")
    if "logits" not in table:
        raise ValueError(
            f"{what} has no logits: make it with bridge.predict, without keep; its columns are "
            f"{', '.join(map(str, table.columns))}"
        )
    return np.stack(table["logits"].to_list()).astype(np.float32)


def require_same_samples(tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuses tables of other samples, by index and label, or in another order.

    Args:
      tables: by what messages call them.

    Raises:
      ValueError: a table differs from the first, or is none of `bridge.predict`.
    """
    (first_name, first), *_ = tables.items()
    for name, table in tables.items():
        require_predictions(table, name)
        for column in _SAMPLE:
            if not np.array_equal(table[column].to_numpy(), first[column].to_numpy()):
                raise ValueError(
                    f"{name} has other samples than {first_name}, or in another order, by "
                    f"{column}: predict the same source"
                )


def require_predictions(table: pd.DataFrame, what: str) -> None:
    """Refuses a table without the columns that say which samples its rows are."""
    if missing := [column for column in _SAMPLE if column not in table]:
        raise ValueError(
            f"{what} is none of bridge.predict: it has no column {' and '.join(missing)}"
        )


def with_logits(table: pd.DataFrame, logits: NDArray[np.float32]) -> pd.DataFrame:
    """A table of predictions with other logits, and the predictions that these are, its rows
    labelled as the given one's.

    Args:
      table: of `bridge.predict`.
      logits: `[samples, class]`.
    """
    paths = {"path": table["path"].to_numpy()} if "path" in table else {}
    labels, indices = table["label"].tolist(), table["index"].tolist()
    rows = rows_of(logits, labels, indices, paths, "the table", None)
    return frame_of(pa.Table.from_batches([rows])).set_index(table.index)
