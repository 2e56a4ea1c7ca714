"""Files that are either whole or absent, and their hashes."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from jaxcurv.files import write_whole


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes bytes atomically."""
    return write_whole(path, lambda temporary: temporary.write_bytes(content))


def write_json(path: Path, value: Any) -> Path:
    """Writes JSON atomically, keys in their order."""
    return write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      ValueError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from error


def write_parquet(path: Path, table: pd.DataFrame) -> Path:
    """Writes a Parquet file atomically."""

    def write(temporary: Path) -> None:
        table.to_parquet(temporary, index=False, compression="zstd")

    return write_whole(path, write)


def join_parquet(path: Path, parts: Sequence[Path]) -> Path:
    """Writes the rows of Parquet files with the same columns into one, in their order, atomically.

    One of them is in memory at a time.
    """

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, pq.read_schema(parts[0]), compression="zstd") as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))

    return write_whole(path, write)


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Writes a CSV file atomically."""
    return write_whole(path, lambda temporary: table.to_csv(temporary, index=False))


def sha256(path: Path) -> str:
    """Hash of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    if path.is_file():
        with path.open("rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
        return digest.hexdigest()
    for file_path in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(file_path.relative_to(path).as_posix().encode() + b"\0")
        digest.update(sha256(file_path).encode())
    return digest.hexdigest()
