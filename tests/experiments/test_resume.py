"""Tables that are made once, and the commands that are studies."""

import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from subprocess import run
from typing import Any

import pandas as pd
import pytest

from experiments.runs.files import read_parquet, write_parquet
from experiments.runs.resume import key_of, table_at, tables_at
from experiments.studies import (
    atlas,
    compare_noise,
    drift,
    finetune,
    layers,
    rank_correlation,
    remedies,
    rescore,
    student,
    validate,
)

TABLE = pd.DataFrame({"index": [3, 1], "correct": [True, False], "name": ["a", None]})


def refuse() -> Any:
    raise AssertionError("made again")


def test_a_table_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.parquet"
    made = table_at(path, lambda: TABLE)
    before = path.read_bytes()
    pd.testing.assert_frame_equal(table_at(path, refuse), made)
    pd.testing.assert_frame_equal(made, TABLE)
    assert path.read_bytes() == before


def test_nothing_is_left_of_a_table_that_could_not_be_made(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    with pytest.raises(AssertionError):
        table_at(path, refuse)
    assert list(tmp_path.iterdir()) == []
    pd.testing.assert_frame_equal(table_at(path, lambda: TABLE), TABLE)


@pytest.mark.parametrize("lost", [0, 1])
def test_tables_of_one_making_are_made_together(tmp_path: Path, lost: int) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    calls = []

    def make() -> Sequence[pd.DataFrame]:
        calls.append(1)
        return [TABLE, TABLE.head(1)]

    tables_at(paths, make)
    paths[lost].unlink()
    first, second = tables_at(paths, make)
    assert len(calls) == 2
    assert (len(first), len(second)) == (2, 1)
    tables_at(paths, refuse)


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_table_is_named_and_not_made_again(tmp_path: Path, damaged: int) -> None:
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    tables_at(paths, lambda: [TABLE, TABLE])
    paths[damaged].write_bytes(paths[damaged].read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{paths[damaged].name} is damaged"):
        tables_at(paths, refuse)


def test_keys_stay_what_they_were() -> None:
    """The files of a run that was interrupted before are found again."""
    settings = {"data": {"name": "digits"}, "samples": 30, "calibration": None, "limit": 0.5}
    assert key_of(settings) == "524c72d42745"
    assert key_of(settings, digits=16)[:12] == key_of(settings)
    assert key_of(settings | {"samples": 31}) != key_of(settings)


@pytest.mark.parametrize(
    "module",
    [
        *(atlas, compare_noise, drift, finetune, layers, rank_correlation, remedies, rescore),
        *(student, validate),
    ],
)
def test_a_study_is_opened_with_what_its_settings_have(module: Any) -> None:
    study = module.STUDY
    settings = study.settings()
    assert settings.out is None
    taken = {name: getattr(settings, name) for name in study.opened_with}
    inspect.signature(study.open).bind(None, None, None, **taken)
    inspect.signature(study.run).bind(None, None, settings, Path())


@pytest.mark.parametrize("arguments", [["--help"], ["drift", "digits", "--help"]])
def test_help_imports_neither_jax_nor_torch(arguments: list[str]) -> None:
    script = (
        f"import sys; from experiments.cli import commands; assert commands.run({arguments}) == 0; "
        "sys.exit(int(bool({'jax', 'torch'} & sys.modules.keys())))"
    )
    assert run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 0


def test_a_run_s_tables_hold_no_attrs_but_those_given(tmp_path: Path) -> None:
    table = pd.DataFrame({"index": [1, 2]})
    table.attrs = {"weights": "a hash"}
    assert read_parquet(write_parquet(tmp_path / "a.parquet", table)).attrs == {}
    kept = write_parquet(tmp_path / "b.parquet", table, attrs={"devices": "cpu"})
    assert read_parquet(kept).attrs == {"devices": "cpu"}
    assert table.attrs == {"weights": "a hash"}
