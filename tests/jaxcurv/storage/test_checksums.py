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
        "logits": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float32(), 2)),
        "ragged": pa.array([[1], [], None], pa.list_(pa.int16())),
    },
    metadata={"made by": "a test"},
)
_WEIGHTS = {"w": torch.arange(12.0).reshape(3, 4), "n": torch.zeros((), dtype=torch.int64)}

_KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "a.json": (lambda path: checksums.write_json(path, _VALUE), checksums.read_json),
    "a.parquet": (lambda path: checksums.write_table(path, _TABLE), checksums.read_table),
    "a.safetensors": (
        lambda path: bridge.save_weights(path, _WEIGHTS, {"made": "by a test"}),
        bridge.load_weights,
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
    same_rows = found.to_pylist() == _TABLE.to_pylist()
    return same_rows and found.schema.metadata == _TABLE.schema.metadata


@pytest.fixture(scope="module", params=_KINDS)
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept") / request.param
    _KINDS[request.param][0](path)
    return path


def test_what_is_written_is_read(kept: Path) -> None:
    assert _same(kept.name, _KINDS[kept.name][1](kept))


def test_any_flipped_bit_is_noticed_or_changes_nothing(kept: Path) -> None:
    content, damaged = kept.read_bytes(), kept.with_name(f"damaged-{kept.name}")
    refused = 0
    positions = range(0, len(content), max(1, len(content) // 400))
    for position in positions:
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        damaged.write_bytes(changed)
        message = ""
        try:
            found = _KINDS[kept.name][1](damaged)
        except ValueError as error:
            message = str(error)
        refused += str(damaged) in message
        assert str(damaged) in message or _same(kept.name, found), f"byte {position}"
    assert refused > len(positions) / 2


def test_any_truncated_file_is_noticed(kept: Path) -> None:
    content, damaged = kept.read_bytes(), kept.with_name(f"short-{kept.name}")
    end = len(content.rstrip())  # JSON ends with a new line
    for length in {0, 1, 7, 8, end // 2, end - 9, end - 1}:
        damaged.write_bytes(content[:length])
        with pytest.raises(ValueError, match=damaged.name):
            _KINDS[kept.name][1](damaged)


def test_a_file_without_a_seal_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(_VALUE))
    pq.write_table(_TABLE, tmp_path / "a.parquet")
    for name in ("a.json", "a.parquet"):
        with pytest.raises(
            ValueError, match=r"carries no seal.*another program.*delete or replace"
        ):
            _KINDS[name][1](tmp_path / name)


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    path = checksums.write_json(tmp_path / "a.json", _VALUE)
    path.write_text(path.read_text().replace('"seal": "1:', '"seal": "2:'))
    with pytest.raises(ValueError, match="is of format 2, and this version reads 1"):
        checksums.read_json(path)


def test_a_seal_does_not_depend_on_how_rows_came(tmp_path: Path) -> None:
    pieces = [_TABLE.slice(0, 1), _TABLE.slice(1, 0), _TABLE.slice(1, 2)]
    whole = checksums.write_table(tmp_path / "whole.parquet", _TABLE)
    joined = checksums.write_tables(tmp_path / "joined.parquet", _TABLE.schema, pieces)
    seals = [pq.read_metadata(path).metadata[checksums.SEAL.encode()] for path in (whole, joined)]
    assert seals[0] == seals[1]
    assert checksums.read_table(joined).to_pylist() == _TABLE.to_pylist()


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


def test_a_chip_file_is_sealed(tmp_path: Path) -> None:
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


def test_a_copied_table_keeps_its_seal(tmp_path: Path) -> None:
    path = checksums.write_table(tmp_path / "a.parquet", _TABLE)
    shutil.copy(path, tmp_path / "b.parquet")
    assert checksums.read_table(tmp_path / "b.parquet").to_pylist() == _TABLE.to_pylist()
