"""Files that are either whole or absent, and their hashes."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from jaxcurv.storage.checksums import read_table, write_table, write_tables
from jaxcurv.storage.files import write_whole


def write_parquet(
    path: Path,
    table: pd.DataFrame,
    *,
    level: int = 3,
    attrs: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a Parquet file with its checksum, atomically.

    Args:
      path: the file.
      table: its index is dropped, and its `attrs`, for the run's records say how it was made.
      level: effort of the compression (zstd), 1 to 22.
      attrs: what the `attrs` of the table shall be when it is read; empty by default.
    """
    rows = table.copy(deep=False)
    rows.attrs = dict(attrs or {})
    return write_table(path, pa.Table.from_pandas(rows, preserve_index=False), level=level)


def read_parquet(path: Path) -> pd.DataFrame:
    """Reads a Parquet file, whoever wrote it; what `write_parquet` wrote is compared first.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or no Parquet file.
    """
    return read_table(path).to_pandas()


def join_parquet(path: Path, parts: Sequence[Path]) -> Path:
    """Writes the rows of Parquet files with the same columns into one, in their order, atomically.

    One of them is in memory at a time.
    """
    return write_tables(path, read_table(parts[0]).schema, map(read_table, parts))


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


@contextmanager
def writable(folder: Path, flag: str = "--out") -> Iterator[None]:
    """Makes the folder as `require_writable` does; what fails within leaves no empty folder behind.

    Raises:
      OSError: files cannot be written there.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    require_writable(folder, flag)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # something is in it
            for one in made:
                one.rmdir()
        raise


def require_writable(folder: Path, flag: str = "--out") -> None:
    """Makes the folder, which `flag` named, and proves that files can be written there.

    Raises:
      OSError: they cannot.
    """
    probe = folder / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"cannot write to the output folder {folder} ({error.strerror}): choose another with "
            f"{flag}"
        ) from error
