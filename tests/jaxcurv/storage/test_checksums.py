"""Stored files: what is damaged, foreign or of another version is refused and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import bridge
from experiments.runs.files import read_parquet, write_parquet
from jaxcurv.storage import checksums

_VALUE = {"a": [1, 2.5, None], "b": {"c": "d", "e": True}}
_TABLE = pa.table(
    {
        "index": pa.array([3, 1, 2]),
        "score": pa.array([0.5, None, 2.0], pa.float32()),
        "fold": pa.array(["test", "train", "test"]).dictionary_encode(),
        "name": pa.array(["", None, "ä"]),
        "right": [True, False, True],
        "logits": pa.array(
            [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.field("element", pa.float32()), 2)
        ),
        "ragged": pa.array([[1], [], None], pa.list_(pa.field("element", pa.int16()))),
    },
    metadata={"made by": "a test"},
)
_WEIGHTS = {"w": torch.arange(12.0).reshape(3, 4), "n": torch.zeros((), dtype=torch.int64)}

_KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a.json": (lambda path: checksums.write_json(path, _VALUE), checksums.read_json),
    "a.parquet": (lambda path: checksums.write_table(path, _TABLE), checksums.read_table),
    "a.safetensors": (
        lambda path: bridge.weights.save_weights(path, _WEIGHTS, {"made": "by a test"}),
        bridge.weights.load_weights,
    ),
}


def _same(name: str, found: object) -> bool:
    if name == "a.safetensors":
        state_dict, header = found
        return header == {"made": "by a test"} and all(
            torch.equal(state_dict[key], value) for key, value in _WEIGHTS.items()
        )
    if name == "a.json":
        return found == _VALUE
    return found.schema.equals(_TABLE.schema, check_metadata=True) and found.equals(_TABLE)


@pytest.fixture(scope="module", params=_KINDS)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / request.param
    _KINDS[request.param][0](path)
    return path


def test_what_is_written_is_read(kept: Path) -> None:
    assert _same(kept.name, _KINDS[kept.name][1](kept))


def test_any_flipped_byte_is_noticed_or_changes_nothing(kept: Path) -> None:
    content, damaged = kept.read_bytes(), kept.with_name(f"damaged-{kept.name}")
    harmless = []
    # 18 makes of an encoding's number another one, of which Parquet's page checksums know nothing.
    flips = [(place, flip) for place in range(len(content)) for flip in (1 << place % 8, 18)]
    for position, flip in flips:
        changed = bytearray(content)
        changed[position] ^= flip
        damaged.write_bytes(changed)
        message = ""
        try:
            found = _KINDS[kept.name][1](damaged)
        except ValueError as error:
            message = str(error)
        if str(damaged) not in message:
            assert _same(kept.name, found), f"byte {position} by {flip}"
            harmless.append(position)
    if kept.name == "a.parquet":
        assert set(harmless) == set(range(4, 12))  # they say that a checksum follows
    else:
        assert len(harmless) < len(flips) / 2


def test_any_truncated_file_is_noticed(kept: Path) -> None:
    content, damaged = kept.read_bytes(), kept.with_name(f"short-{kept.name}")
    end = len(content.rstrip())  # JSON ends with a new line
    for length in {0, 1, 7, 8, end // 2, end - 9, end - 1}:
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=damaged.name):
            _KINDS[kept.name][1](damaged)


def test_json_without_a_checksum_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_VALUE))
    with pytest.raises(
        ValueError, match=r"carries no checksum.*another program.*delete or replace"
    ):
        checksums.read_json(tmp_path / "a.json")


def test_json_of_earlier_versions_is_read_and_compared(tmp_path: Path) -> None:
    path = checksums.write_json(tmp_path / "a.json", _VALUE)
    earlier = path.read_text().replace('"checksum": "', '"seal": "1:')
    assert '"seal": "1:' in earlier
    path.write_text(earlier)
    assert checksums.read_json(path) == _VALUE
    path.write_text(earlier.replace("2.5", "2.6"))
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        checksums.read_json(path)


def test_weights_of_earlier_versions_are_read_and_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    bridge.weights.save_weights(path, _WEIGHTS, {"made": "by a test"})
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    earlier = "1:" + metadata.pop("checksum")
    save_file(_WEIGHTS, path, metadata | {"seal": earlier})
    assert _same(path.name, bridge.weights.load_weights(path))
    assert bridge.weights.load_checkpoint(path).origin["header"] == {"made": "by a test"}
    save_file(_WEIGHTS, path, metadata | {"seal": earlier[:-1] + "?"})
    for load in (bridge.weights.load_weights, bridge.weights.load_checkpoint):
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
            load(path)


@pytest.mark.parametrize("entry", [{}, {"seal": "1:0123"}, {"checksum": "another program's"}])
def test_a_table_of_another_program_or_an_earlier_version_is_a_table(
    tmp_path: Path, entry: dict[str, str]
) -> None:
    table = _TABLE.replace_schema_metadata({"made by": "a test"} | entry)
    pq.write_table(table, tmp_path / "a.parquet")
    found = checksums.read_table(tmp_path / "a.parquet")
    kept = {key: value for key, value in table.schema.metadata.items() if key != b"seal"}
    assert found.schema.metadata == kept
    assert found.equals(_TABLE)


def test_a_changed_copy_of_a_table_is_a_table(tmp_path: Path) -> None:
    """What other programs make of one of ours takes nothing of its checksum along."""
    path = checksums.write_table(tmp_path / "a.parquet", _TABLE)
    half = checksums.read_table(path).slice(0, 2)
    pq.write_table(half, tmp_path / "arrow.parquet")
    pq.write_table(pq.read_table(path).slice(0, 2), tmp_path / "alone.parquet")
    for name in ("arrow", "alone"):
        assert checksums.read_table(tmp_path / f"{name}.parquet").equals(half)
    frame = pd.read_parquet(path)[["index", "score"]].head(2)
    frame.to_parquet(tmp_path / "pandas.parquet")
    found = checksums.read_table(tmp_path / "pandas.parquet").to_pandas()
    pd.testing.assert_frame_equal(found, frame)


def test_rows_of_several_tables_are_those_of_one(tmp_path: Path) -> None:
    parts = [_TABLE.slice(0, 1), _TABLE.slice(1, 0), _TABLE.slice(1, 2)]
    joined = checksums.write_tables(tmp_path / "joined.parquet", _TABLE.schema, parts)
    assert checksums.read_table(joined).equals(_TABLE)


@settings(
    max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.integers(-(2**63), 2**63 - 1),
            st.floats(width=32),
            st.text(max_size=5),
            st.booleans(),
            st.lists(st.integers(-9, 9), max_size=3),
        ),
        max_size=8,
    )
)
def test_any_table_of_a_run_comes_back(tmp_path: Path, rows: list[tuple]) -> None:
    table = pd.DataFrame(rows, columns=["a", "b", "c", "d", "e"])
    table = table.astype({"a": "int64", "b": "float32", "c": "category", "d": "bool"})
    path = write_parquet(tmp_path / "t.parquet", table)
    found = read_parquet(path)
    assert found["a"].tolist() == table["a"].tolist()
    np.testing.assert_array_equal(found["b"], table["b"])
    assert found["c"].astype(str).tolist() == table["c"].astype(str).tolist()
    assert found["d"].tolist() == table["d"].tolist()
    assert [list(row) for row in found["e"]] == table["e"].tolist()


def test_hash_of_arrays_tells_names_types_shapes_and_values() -> None:
    array = np.arange(4, dtype=np.int32)
    one = checksums.hash_arrays({"a": array, "b": array})
    assert one == checksums.hash_arrays({"b": array, "a": array.copy()})
    others = [
        {"a": array, "c": array},
        {"a": array, "b": array.astype(np.int64)},
        {"a": array, "b": array.reshape(2, 2)},
        {"a": array, "b": array[::-1]},
        {"a": array},
    ]
    assert one not in map(checksums.hash_arrays, others)


def test_a_chip_file_has_a_checksum(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    images = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    chip = bridge.program(model, bridge.PROFILES["adc+pcm"], seed=0, calibration=images)
    path = tmp_path / "chip.safetensors"
    bridge.save_chip(path, chip)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1  # the last tensor's bytes
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"chip\.safetensors is damaged"):
        bridge.load_chip(path, model)


def test_a_copied_table_keeps_its_checksum(tmp_path: Path) -> None:
    path = checksums.write_table(tmp_path / "a.parquet", _TABLE)
    shutil.copy(path, tmp_path / "b.parquet")
    assert checksums.read_table(tmp_path / "b.parquet").to_pylist() == _TABLE.to_pylist()
