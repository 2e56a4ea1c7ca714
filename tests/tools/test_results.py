"""The results in the repository can be read by this version."""

from pathlib import Path

import pytest

import bridge
from experiments.runs.records import read_records
from jaxcurv.storage.checksums import read_json, read_table

RESULTS = Path(__file__).parents[2] / "experiments" / "results"
READERS = {".json": read_json, ".parquet": read_table, ".safetensors": bridge.weights.load_weights}


@pytest.mark.parametrize("folder", sorted(path.name for path in RESULTS.iterdir() if path.is_dir()))
def test_archived_files_can_be_read(folder: str) -> None:
    files = [path for path in (RESULTS / folder).rglob("*") if path.suffix in READERS]
    for path in files:
        READERS[path.suffix](path)
    assert files
    read_records(RESULTS / folder)
