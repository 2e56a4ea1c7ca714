"""Files that carry the SHA-256 of what they hold, and are refused when it is another.

A damaged byte either changes nothing that is read, or is noticed.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxcurv.storage.files import write_whole

CHECKSUM = "checksum"
"""Name of the entry that holds the checksum, in a JSON object or a file's metadata."""

HEADER = "header"
"""The metadata entry of a safetensors file that holds its JSON header."""

_EARLIER = "seal"
"""Name of that entry in files of earlier versions."""

_MARK = b"SHA-256\n"
"""What comes before the 32 bytes of a table's checksum, after Parquet's own four first bytes."""

_ENCODINGS = {
    pa.int64(): "DELTA_BINARY_PACKED",  # indices, which grow
    pa.int32(): "DELTA_BINARY_PACKED",
    pa.float32(): "BYTE_STREAM_SPLIT",  # scores, whose exponents are alike
    pa.float64(): "BYTE_STREAM_SPLIT",
}
"""Parquet encodings that halve tables of scores and predictions; other types: dictionaries."""


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Writes JSON with its checksum, atomically, keys in their order.

    Raises:
      ValueError: a number that JSON does not have (NaN, infinity), or an entry "checksum".
    """
    if CHECKSUM in value:
        raise ValueError(f"{path} cannot have an entry {CHECKSUM}: that is where its own goes")
    described = {**value, CHECKSUM: _hash_json(value)}
    content = json.dumps(described, indent=2, allow_nan=False) + "\n"
    return write_whole(path, lambda temporary: temporary.write_text(content))


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or was not written by `write_json`.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(_damaged(path, error)) from error
    content = dict(value) if isinstance(value, dict) else {}
    found = take_checksum(content)
    check(path, found, lambda: _hash_json(content))
    return content


def _hash_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_table(path: Path, table: pa.Table, *, level: int = 3) -> Path:
    """Writes a table with its checksum as Parquet, atomically; `level` as in `write_tables`."""
    return write_tables(path, table.schema, [table], level=level)


def write_tables(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], *, level: int = 3
) -> Path:
    """Writes the rows of several tables as one, one of them in memory at a time.

    The checksum is of all bytes of the file but its own, and stands before the first page, where
    no other reader looks.

    Args:
      path: the file, written atomically.
      schema: schema of the file, with its metadata; the tables' own metadata are dropped.
      tables: tables of this schema, in order.
      level: effort of the compression, 1 to 22; 3 is zstd's own default.
    """
    encodings = {field.name: _ENCODINGS[t] for field in schema if (t := field.type) in _ENCODINGS}

    def save(temporary: Path) -> None:
        with (
            pa.OSFile(str(temporary), "wb") as file,
            pq.ParquetWriter(
                file,
                schema,
                compression="zstd",
                compression_level=level,
                use_dictionary=[field.name for field in schema if field.name not in encodings],
                column_encoding=encodings,
                write_page_checksum=True,
            ) as writer,
        ):
            file.write(_MARK + bytes(32))
            for table in tables:
                writer.write_table(table.replace_schema_metadata(schema.metadata))
        _, computed = _table_checksums(temporary)
        with temporary.open("r+b") as written:
            written.seek(4 + len(_MARK))
            written.write(computed)

    return write_whole(path, save)


def read_table(path: Path) -> pa.Table:
    """Reads a Parquet file, whoever wrote it; what `write_tables` wrote is compared first.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or no Parquet file.
    """
    found, computed = _table_checksums(path)
    if found not in (None, computed):
        raise ValueError(_damaged(path, "its content is not that of its checksum"))
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None):
            raise  # nothing is wrong with the file
        raise ValueError(_damaged(path, error)) from error
    metadata = dict(table.schema.metadata or {})
    metadata.pop(_EARLIER.encode(), None)
    return table.replace_schema_metadata(metadata)


def _table_checksums(path: Path) -> tuple[bytes | None, bytes]:
    """The checksum in a table's file, None in another program's, and that of its bytes."""
    with path.open("rb") as file:
        first, found = file.read(4 + len(_MARK)), file.read(32)
        content = hashlib.sha256(first)
        while block := file.read(1 << 16):
            content.update(block)
    return found if first.endswith(_MARK) else None, content.digest()


def take_checksum(entries: dict[str, Any]) -> Any:
    """Takes the checksum out of a JSON object or a file's metadata; None where there is none."""
    earlier = entries.pop(_EARLIER, None)
    return entries.pop(CHECKSUM, earlier)


def check(path: str | os.PathLike[str], found: Any, digest: Callable[[], str]) -> None:
    """Refuses a file whose checksum is not that of its content.

    Args:
      path: the file, for the message.
      found: its checksum, SHA-256 in hexadecimal digits, or whatever is in that place.
      digest: computes that of what was read.

    Raises:
      ValueError: it has no checksum, or another content's.
    """
    if not found:
        raise ValueError(
            f"{path} carries no checksum: it was made or changed by another program, or by a "
            "version without checksums; delete or replace it, and run again"
        )
    if str(found).removeprefix("1:") != digest():  # as earlier versions began theirs
        raise ValueError(_damaged(path, "its content is not that of its checksum"))


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: names, types, shapes and values, whatever their order."""
    content = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        content.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def hash_content(arrays: Mapping[str, np.ndarray], header: str) -> str:
    """`hash_arrays` of a file's arrays and its JSON header."""
    return hash_arrays({**arrays, f" {HEADER}": np.frombuffer(header.encode(), np.uint8)})


def hash_tree(tree: Any) -> str:
    """`hash_arrays` of a tree of arrays, JAX's random keys among them, by their paths."""
    import jax

    def array(leaf: Any) -> np.ndarray:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    leaves, _ = jax.tree.flatten_with_path(tree)
    return hash_arrays({jax.tree_util.keystr(path): array(leaf) for path, leaf in leaves})


def _damaged(path: str | os.PathLike[str], why: Any) -> str:
    return f"{path} is damaged ({why}): delete or replace it, and run again"
