"""DataFrames of Arrow tables: the same values and types, and what once was written of them."""

import copy
import io
import pickle
import subprocess
import sys
import tracemalloc

import jaxtyping._decorator
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jaxcurv.frames import Frame, frame_of
from jaxcurv.rows import column_checksums, index_checksum

COLUMNS = {
    "index": np.arange(5),
    "label": np.arange(5, dtype=np.int32),
    "correct": np.arange(5) % 2 == 0,
    "loss": np.full(5, np.nan, np.float32),
}
ROWS = {**index_checksum(np.arange(5), np.arange(5)), **column_checksums(COLUMNS)}
ATTRS = {"samples": 5, "estimators": {"curvature": {"probes": 3}}, **ROWS}
LOGITS = np.arange(15, dtype=np.float32).reshape(5, 3)


def arrow(first: int = 0, stop: int = 5) -> pa.Table:
    return pa.table(
        {
            "index": pa.array(range(first, stop), pa.int64()),
            "path": pa.array([f"{n}.png" for n in range(first, stop)], pa.string()),
            "label": pa.array(range(first, stop), pa.int32()),
            "correct": pa.array([n % 2 == 0 for n in range(first, stop)], pa.bool_()),
            "logits": pa.FixedSizeListArray.from_arrays(LOGITS[first:stop].ravel(), 3),
            "loss": pa.array([np.nan] * (stop - first), pa.float32()),
        }
    )


@pytest.mark.parametrize(
    "table",
    [arrow(), pa.concat_tables([arrow(0, 2), arrow(2, 2), arrow(2, 5)]), arrow().slice(1, 3)],
    ids=["whole", "in pieces", "a part"],
)
def test_a_frame_has_the_values_and_types_of_its_table(table: pa.Table) -> None:
    frame = frame_of(table)
    assert frame.equals(table.to_pandas())
    assert frame.dtypes.drop("path").astype(str).to_dict() == {
        "index": "int64",
        "label": "int32",
        "correct": "bool",
        "logits": "object",
        "loss": "float32",
    }
    assert list(frame.index) == list(range(len(table)))
    assert frame["logits"][0].dtype == np.float32


def test_no_rows_keep_their_types() -> None:
    none = pa.concat_tables([arrow().slice(0, 0)] * 2)
    for table in (none, arrow().slice(0, 0)):
        assert frame_of(table).dtypes.equals(frame_of(arrow()).dtypes)
        assert len(frame_of(table)) == 0


@pytest.mark.parametrize("width", [1, 1000])
def test_lists_are_not_copied(width: int) -> None:
    pieces = np.zeros((4, 500 * width), np.float32)
    column = pa.chunked_array([pa.FixedSizeListArray.from_arrays(piece, width) for piece in pieces])
    table = pa.table({"index": np.arange(2000), "logits": column})
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    frame = frame_of(table)
    of_python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert of_python + pa.total_allocated_bytes() - before < 600 * len(frame)
    for number in (0, 499, 500, 1999):
        row = frame["logits"][number]
        assert row.shape == (width,)
        assert np.shares_memory(row, pieces[number // 500])


def test_attributes_outlive_a_parquet_file_a_copy_and_a_pickle() -> None:
    frame = frame_of(arrow(), ATTRS)
    assert frame.attrs == ATTRS
    file = io.BytesIO()
    frame.to_parquet(file)
    again = pd.read_parquet(io.BytesIO(file.getvalue()))
    assert again.attrs == ATTRS
    assert again.drop(columns="logits").equals(frame.drop(columns="logits"))
    np.testing.assert_array_equal(np.stack(again["logits"]), LOGITS)
    for other in (pickle.loads(pickle.dumps(frame)), copy.deepcopy(frame), frame.copy()):
        assert other.equals(frame)
        assert other.attrs == ATTRS
    assert frame_of(arrow()).attrs == ROWS
    assert frame_of(arrow().drop_columns("index")).attrs == {}


def test_what_pandas_makes_of_a_frame_is_a_plain_one() -> None:
    frame = frame_of(arrow(), ATTRS)
    assert type(frame) is Frame
    made = (frame.copy(), frame[1:3], frame.drop(columns="loss"), frame.sort_values("label"))
    for other in (*made, frame.merge(frame, on="index"), pd.concat([frame, frame])):
        assert type(other) is pd.DataFrame
    assert type(frame["loss"]) is pd.Series
    frame["loss"] = 1.0
    frame.loc[0, "label"] = 7
    assert frame["label"].tolist() == [7, 1, 2, 3, 4]


def test_what_once_was_written_of_a_table_works_and_says_what_to_write() -> None:
    frame = frame_of(arrow(), ATTRS)
    with pytest.warns(DeprecationWarning, match=r"already: leave out \.to_pandas\(\)") as said:
        plain = frame.to_pandas()
    assert said[0].filename in (__file__, jaxtyping._decorator.__file__)  # of checked signatures
    assert type(plain) is pd.DataFrame
    assert plain.equals(frame)
    assert plain.attrs == ATTRS
    with pytest.warns(DeprecationWarning, match=r"write list\(table\.columns\)") as said:
        assert frame.column_names == arrow().column_names
    assert said[0].filename in (__file__, jaxtyping._decorator.__file__)  # of checked signatures


def test_pandas_is_imported_when_a_table_is_made() -> None:
    code = (
        "import sys, jaxcurv; jaxcurv.input_curvature, jaxcurv.score_dataset, jaxcurv.merge_scores;"
        "sys.exit('pandas' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
