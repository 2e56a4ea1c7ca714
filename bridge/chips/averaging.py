"""Several tables of predictions as one: the mean of their logits."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from bridge.chips.outcomes import rows_of
from jaxcurv.frames import frame_of


def average_logits(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """What several chips predict together: the class of the largest mean logit.

    Errors that chips make independently, as those of programming, have 1 / m of the variance in
    the mean of m chips; what all have alike, as drift's mean, stays. The energy is that of m
    inferences. For m reads of one chip, `bridge.predict(..., reads=m)`.

    Args:
      tables: of `bridge.predict` or `bridge.jax_chips.predict`, with logits, one a chip, of the
        same samples in the same order.

    Returns:
      A table as theirs: logits are the mean, float32 `[class]`, and prediction and correct follow
      from them.

    Raises:
      ValueError: no table, one without logits, or tables of other samples or classes.
    """
    if isinstance(tables, pd.DataFrame) or not len(tables):
        raise ValueError("average_logits takes a list of tables of bridge.predict, one a chip")
    require_same_samples(tables)
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
    if "logits" not in table or not len(table):
        raise ValueError(
            f"{what} has no logits: make it with bridge.predict, without keep; its columns are "
            f"{', '.join(map(str, table.columns))}"
        )
    return np.stack(table["logits"].to_list()).astype(np.float32)


def require_same_samples(tables: Sequence[pd.DataFrame]) -> None:
    """Refuses tables of other samples, by index and label, or in another order.

    Raises:
      ValueError: a table differs from the first.
    """
    first = tables[0]
    for number, table in enumerate(tables):
        for column in ("index", "label"):
            if column not in table or column not in first:
                raise ValueError(
                    f"table {number} is none of bridge.predict: it has no column {column}"
                )
            if not np.array_equal(table[column].to_numpy(), first[column].to_numpy()):
                raise ValueError(
                    f"table {number} has other samples than the first, or in another order, by "
                    f"{column}: predict the same source"
                )


def with_logits(table: pd.DataFrame, logits: NDArray[np.float32]) -> pd.DataFrame:
    """A table of predictions with other logits, and the predictions that these are.

    Args:
      table: of `bridge.predict`.
      logits: `[samples, class]`.
    """
    paths = {"path": table["path"].to_numpy()} if "path" in table else {}
    labels, indices = table["label"].tolist(), table["index"].tolist()
    rows = rows_of(logits, labels, indices, paths, "the table", None)
    return frame_of(pa.Table.from_batches([rows]))
