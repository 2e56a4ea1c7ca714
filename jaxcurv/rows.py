"""Whether pandas objects that are taken together hold the same samples in the same order."""

import sys
import warnings
import zlib
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

_KEY, _COLUMNS = "index_checksum", "column_checksums"


def index_checksum(index: np.ndarray, labels: np.ndarray | None = None) -> dict[str, str]:
    """What a table's `attrs` say of its columns `index` and `label`: which rows, in what order.

    pandas hands `attrs` on to columns and to what is computed of them, so that `require_same_rows`
    can tell columns of two tables apart whose rows are both numbered from 0.

    Args:
        index: whole numbers `[rows]`.
        labels: those of the same rows, `[rows]`; all but whole numbers, which are no classes, are
            left out.

    Returns:
        One entry, a text: the count, the CRC-32 of the sorted and of the given numbers, and, of
        labels, that of them in the order of the numbers.
    """
    numbers = np.asarray(index, np.int64)
    parts = [np.sort(numbers), numbers]
    if labels is not None and labels.dtype.kind in "iu":
        classes = labels.astype(np.int64)
        parts.append(classes[np.lexsort((classes, numbers))])
    return {
        _KEY: " ".join([f"{len(numbers)}", *(f"{zlib.crc32(one.tobytes()):08x}" for one in parts)])
    }


def column_checksums(columns: Mapping[str, np.ndarray]) -> dict[str, dict[str, str]]:
    """What a table's `attrs` say of its columns' values, and of their order.

    After a sort and `reset_index(drop=True)` rows are numbered anew: by these, `require_same_rows`
    can tell that a column is not in the order in which its table was made.

    Args:
        columns: by name, `[rows]` each, `index` among them; those that hold other things than
            numbers are left out.

    Returns:
        One entry: by column a text, the CRC-32 of the sorted values, of the given ones and of those
        in the order of `index`.
    """
    numbers = {name: one for name, one in columns.items() if one.dtype.kind in "biuf"}
    by_sample = np.argsort(columns["index"], kind="stable")
    return {
        _COLUMNS: {
            name: " ".join(map(_crc, (np.sort(one), one, one[by_sample])))
            for name, one in numbers.items()
        }
    }


def _crc(values: np.ndarray) -> str:
    return f"{zlib.crc32(values.tobytes()):08x}"


def require_rows_in_order(values: Any, what: str = "labels") -> None:
    """Refuses a pandas Series beside an array, where its index numbers the array's rows and is in
    another order: nothing tells which of its rows the array's first one is.

    An index that is no permutation of 0 to n - 1, as of `train_test_split`, numbers no rows of the
    array: such a Series goes by position.

    Args:
        values: a Series; all else is let through.
        what: its name in the message.

    Raises:
        ValueError: its index is such a permutation.
    """
    index: Any = getattr(values, "index", None)
    if not hasattr(values, "sort_index") or index.nlevels > 1 or index.dtype.kind not in "iu":
        return
    if index.is_monotonic_increasing or not np.array_equal(np.sort(index), np.arange(len(index))):
        return
    raise ValueError(
        f"{what} are a Series whose rows are in an order of their own by its index, and an array "
        f"has none: give {what}.to_numpy() if they are in the images' order, or "
        f"{what}.sort_index() if the index counts the images"
    )


def require_labels_of(images: Any, labels: Any, name: str = "labels") -> None:
    """Refuses labels in another order than images, where pandas says so: of a DataFrame `[samples,
    features]` the labels of another index, several a row too, of an array a Series as
    `require_rows_in_order` does.

    Raises:
        ValueError: they are.
    """
    if hasattr(images, "iloc"):  # a DataFrame
        several = hasattr(labels, "iloc") and labels.ndim == 2 and labels.shape[1] > 1
        require_same_rows(**{"images": images.T, name: labels.T if several else labels})
    else:
        require_rows_in_order(labels, name)


def require_same_rows(**inputs: Any) -> None:
    """Refuses what pandas would align by its index, and arrays are taken by position.

    Two pandas objects must have equal indexes. One beside arrays must have an index in ascending
    order: after a shuffle or a sort nothing tells which of its rows an array's first one is. Equal
    indexes that repeat themselves, as of shards put together, do not tell the order of two tables:
    a warning says so, unless the objects are columns of one table. Whole columns of two tables of
    jaxcurv's or of the bridge's, with rows numbered as the tables were made, must be of tables with
    the same samples by `index_checksum`, and the same labels where both have them; for another
    order there is a warning, since the tables may have been sorted since. By `column_checksums` a
    column whose rows were sorted and then numbered anew is refused beside one of another table in
    the order in which that was made. Beside a column of a table that was made with its samples in
    no ascending order, a Series that no such table gave, whose name is a number and whose rows are
    numbered from 0, is told of in a warning: so are the chips of `pivot` or `unstack` and
    `reset_index`, which sort by sample. An index with a name, as `groupby` gives, names samples:
    beside it a column by row numbers that is not in the order of its samples is refused, by
    `column_checksums`. Not seen: values that were computed of such columns, a pivot by words or of
    a `groupby` whose index was then reset, and two tables both sorted.

    Args:
        inputs: by their names in the message; a Series's samples are its index, a DataFrame's
            (`[chips, samples]`) its columns, those of a list of either each one's own, and an index
            names its own. All else with axes is an array.

    Raises:
        ValueError: the indexes, or the samples of whole tables, differ; indexes are not ascending
            beside arrays; rows were numbered anew after a sort; or a DataFrame of one column has a
            row for each sample.
    """
    if "pandas" not in sys.modules:  # nothing of its can be among them
        return
    import pandas as pd

    for name, value in inputs.items():
        others = {_samples(other) for key, other in inputs.items() if key != name}
        if isinstance(value, pd.DataFrame) and value.shape[1] == 1 and len(value) in others - {1}:
            raise ValueError(
                f"{name} is a DataFrame of one column, and not of samples by their columns: give "
                f"the column, {name}[{value.columns[0]!r}]"
            )
    rows: dict[str, pd.Index] = {}
    tables: dict[str, list[str]] = {}
    moved: dict[str, pd.Index] = {}
    as_made: dict[str, pd.Index] = {}
    unsorted: dict[str, pd.Index] = {}
    unknown: dict[str, pd.Index] = {}
    named: dict[str, pd.Index] = {}
    arrays, unsure, not_by_sample = [], [], []
    for name, value in inputs.items():
        parts = value if isinstance(value, list | tuple) else [value]
        found = [part for part in parts if isinstance(part, pd.Series | pd.DataFrame | pd.Index)]
        for part in found:
            index = part.columns if isinstance(part, pd.DataFrame) else getattr(part, "index", part)
            rows.setdefault(name, index)
            first, its = next(iter(rows.items()))
            if made := _whole_table(part):
                _require_one_table(name, made, tables)
                if (was_moved := _was_moved(part)) is not None:
                    (moved if was_moved else as_made).setdefault(name, index)
                if _is_by_sample(part) is False:
                    not_by_sample.append(name)
            if isinstance(part, pd.Series) and _in_no_order(part):
                unsorted.setdefault(name, index)
            if isinstance(part, pd.Series) and _is_one_of_a_pivot(part):
                unknown.setdefault(name, index)
            if index.name is not None:
                named.setdefault(name, index)
            _require_equal(name, index, first, its)
            if not index.is_(its) and index.has_duplicates:
                unsure.append(name)
        if not found and (isinstance(value, list | tuple) or np.ndim(value) > 0):
            arrays.append(name)
    for name, index in moved.items():
        for other, its in as_made.items():
            if not index.is_(its):  # which columns of one table share
                raise ValueError(
                    f"{name} is of a table that was sorted and its rows then numbered anew, as by "
                    f"reset_index(drop=True), and {other} of one in its first order, so that equal "
                    f"row numbers are other samples: leave out reset_index, or {_MERGE}; pass "
                    ".to_numpy() of both if row i of both is one sample"
                )
    if named and not_by_sample:
        name, (other, its) = not_by_sample[0], next(iter(named.items()))
        raise ValueError(
            f"{name} is by row numbers of a table in another order than that of its samples, and "
            f"the index of {other} names samples ({its.name!r}): take {name} of "
            f"table.set_index({its.name!r}), or pass .to_numpy() of both if row i of both is one "
            "sample"
        )
    for name, index in rows.items():
        ordered = isinstance(inputs[name], pd.Index) or index.is_monotonic_increasing
        if arrays and not ordered:
            raise ValueError(
                f"{name} is in an order of its own by its pandas index, and {arrays[0]} has no "
                f"index: make both Series of one index, or pass {name}.to_numpy() if row i of both "
                "is one sample"
            )
    for other, its in unsorted.items():
        strange = [name for name, index in (unknown | named).items() if not index.is_(its)]
        if strange:
            warnings.warn(
                f"{other} is of a table whose samples are in no ascending order by its column "
                f"'index', and {strange[0]} has row numbers of its own, or names samples: a pivot, "
                "unstack or groupby sorts by sample, so that equal numbers may be other samples; "
                "leave out reset_index "
                f"and take {other} of table.set_index('index'), both .reindex one index, or pass "
                ".to_numpy() of both if row i of both is one sample",
                stacklevel=3,
            )
            break
    if unsure:
        warnings.warn(
            f"{unsure[0]} and {first} have one pandas index that repeats itself, which does not "
            "tell whether their samples are in one order: take both from one table after "
            "table.reset_index(drop=True), or pass .to_numpy() of both if row i of both is one "
            "sample",
            stacklevel=3,
        )


def _samples(value: Any) -> int:
    """How many samples an input has; a DataFrame of one column has them in its rows."""
    if isinstance(value, list | tuple) and value and np.ndim(value[0]):  # chips
        value = value[0]
    shape = np.shape(value)
    return 0 if not shape else shape[0] if shape[1:] == (1,) else shape[-1]


_MERGE = (
    "merge the two tables on the column that names the sample, as with both = "
    'scores.merge(predictions, on="index"), of predictions one profile, time and chip, and take '
    "all inputs from it (both.correct_x is of scores, both.correct_y of predictions)"
)


def _whole_table(part: Any) -> list[str]:
    """What the table said of its rows that a Series has all of; empty where that is not known."""
    words = str(getattr(part, "attrs", {}).get(_KEY, "")).split()
    if len(words) not in (3, 4) or part.ndim != 1 or words[0] != str(len(part)):
        return []
    return words if _numbers_rows(part.index) else []


def _was_moved(part: Any) -> bool | None:
    """Whether a column of a whole table has the values that it was made with, under other row
    numbers; None where this is not known, as of computed values, or makes no difference."""
    made, found = _checksums(part)
    return made[1] != found if found else None


def _is_by_sample(part: Any) -> bool | None:
    """Whether a column of a whole table is in the order of its samples; None as `_was_moved`, and
    for tables of earlier versions."""
    made, found = _checksums(part)
    return made[2] == found if found and made[2:] else None


def _checksums(part: Any) -> tuple[list[str], str]:
    """What a table said of a column, and the CRC-32 of its values by row number; the latter empty
    where they are not the same values, or all alike."""
    made = part.attrs.get(_COLUMNS, {}).get(part.name, "").split()
    if len(made) not in (2, 3) or not np.array_equal(np.sort(part.index), np.arange(len(part))):
        return made, ""
    values = part.to_numpy()[np.argsort(part.index)]
    if values.dtype.kind not in "biuf" or not np.any(values != values[:1]):
        return made, ""
    return made, _crc(values) if _crc(np.sort(values)) == made[0] else ""


def _in_no_order(part: Any) -> bool:
    """Whether a Series is of a table, or of rows of it, that was made with its samples in no
    ascending order, as far as its values do not tell that it was sorted since."""
    words = str(part.attrs.get(_KEY, "")).split()
    known = len(words) in (3, 4) and words[0].isdecimal() and len(part) <= int(words[0])
    if not known or words[1] == words[2] or not _numbers_rows(part.index):
        return False
    return _was_moved(part) is not True


def _require_one_table(name: str, made: list[str], tables: dict[str, list[str]]) -> None:
    tables.setdefault(name, made)
    first, its = next(iter(tables.items()))
    if made[:2] != its[:2]:
        raise ValueError(
            f"{name} is of a table of other samples than that of {first}, by their columns "
            f"'index', and row numbers would pair them at random: {_MERGE}, or pass .to_numpy() of "
            "both if row i of both is one sample"
        )
    for other, others in tables.items():
        if made[3:] and others[3:] and made[3:] != others[3:]:
            raise ValueError(
                f"{name} and {other} have the same row numbers and other labels, by their tables' "
                "columns 'index' and 'label': two random subsets? draw the subset once, or give "
                "its indices (rows with an index); pass .to_numpy() of both if row i of both is "
                "one sample"
            )
    if made[2] != its[2]:
        warnings.warn(
            f"{name} is of a table that had the samples of {first}'s in another order, by their "
            f"columns 'index': unless they are in one order by now, {_MERGE}",
            stacklevel=4,
        )


def _numbers_rows(index: Any) -> bool:
    """Whether an index has no name and whole numbers, as one that tells a table's rows."""
    return index.nlevels == 1 and index.name is None and index.dtype.kind in "iu"


def _is_one_of_a_pivot(part: Any) -> bool:
    """Whether a Series may be a column of a pivoted table whose rows were numbered anew: a chip's,
    by its number."""
    of = getattr(part.index, "start", None), getattr(part.index, "step", None)
    numbered = of == (0, 1) and part.index.name is None
    return numbered and isinstance(part.name, Real) and _KEY not in part.attrs


def _is_run(index: Any) -> bool:
    """Whether an index counts the rows of a table, or of a slice of it."""
    if not _numbers_rows(index) or not len(index) or not index.is_monotonic_increasing:
        return False
    return bool(index[-1] - index[0] + 1 == len(index))


def _require_equal(name: str, index: Any, first: str, its: Any) -> None:
    if index.equals(its):
        return
    what = "the same samples in another order"
    cure = f"align them, as with {name}.reindex({first}.index)"
    if set(index) != set(its):
        what = "other samples"
        cure = (
            f"keep those that both have, as with common = {first}.index.intersection({name}.index) "
            "and .reindex(common) of both, or merge their tables on the index with how='inner'"
        )
    cure += " (and .T of a DataFrame [samples, chips])"
    if what == "other samples" and _numbers_rows(index) and _numbers_rows(its):
        of_one_table = "" if _is_run(index) and _is_run(its) else f"; of one table's rows {cure}"
        cure = f"row numbers name no samples, so {_MERGE}{of_one_table}"
    elif _numbers_rows(index) != _numbers_rows(its):
        rows, samples = (name, its) if _numbers_rows(index) else (first, index)
        of = f"table.set_index({samples.name or 'index'!r})"
        cure = f"{rows} is by row numbers, which name no samples: take it of {of}"
    if index.has_duplicates or its.has_duplicates:  # which reindex does not take
        cure = "take both from one table after table.reset_index(drop=True)"
    raise ValueError(
        f"{name} has {what} than {first} by their pandas indexes: {cure}, or pass .to_numpy() of "
        "both if row i of both is one sample"
    )
