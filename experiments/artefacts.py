"""Files that are either whole or absent, and their hashes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd

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
    except (ValueError, RecursionError) as error:  # no text, no JSON, or nested beyond measure
        raise ValueError(f"{path} is damaged ({error}): delete it and run again") from error


def write_parquet(path: Path, table: pd.DataFrame) -> Path:
    """Writes a Parquet file atomically."""

    def write(temporary: Path) -> None:
        table.to_parquet(temporary, index=False, compression="zstd")

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
