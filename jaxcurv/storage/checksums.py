"""Files that carry a seal, and are refused when it is not that of what they hold.

A seal is the number of the files' format and the SHA-256 of the content: names, types, values and
metadata, not bytes. A damaged byte therefore either changes nothing or is noticed.
"""

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxcurv.storage.files import write_whole

SEAL = "seal"
"""Name of the entry that holds the seal, in a JSON object or a file's metadata."""

_FORMAT = 1

_ENCODINGS = {
    pa.int64(): "DELTA_BINARY_PACKED",  # indices, which grow
    pa.int32(): "DELTA_BINARY_PACKED",
    pa.float32(): "BYTE_STREAM_SPLIT",  # scores, whose exponents are alike
    pa.float64(): "BYTE_STREAM_SPLIT",
}
"""Parquet encodings that halve tables of scores and predictions; other types: dictionaries."""


def write_json(path: Path, value: Mapping[str, Any]) -> Path:
    """Writes JSON with its seal, atomically, keys in their order.

    Raises:
      ValueError: a number that JSON does not have (NaN, infinity), or an entry "seal".
    """
    if SEAL in value:
        raise ValueError(f"{path} cannot have an entry {SEAL}: that is where its seal goes")
    sealed = {**value, SEAL: seal(_hash_json(value))}
    content = json.dumps(sealed, indent=2, allow_nan=False) + "\n"
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
    found = value.pop(SEAL, None) if isinstance(value, dict) else None
    check_seal(path, found, lambda: _hash_json(value))
    return value


def _hash_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def write_table(path: Path, table: pa.Table, *, level: int = 3) -> Path:
    """Writes a table with its seal as Parquet, atomically; `level` as in `write_tables`."""
    return write_tables(path, table.schema, [table], level=level)


def write_tables(
    path: Path, schema: pa.Schema, tables: Iterable[pa.Table], *, level: int = 3
) -> Path:
    """Writes the rows of several tables as one, one of them in memory at a time.

    Args:
      path: the file, written atomically.
      schema: schema of the file, with its metadata; the tables' own metadata are dropped.
      tables: tables of this schema, in order; numbers, booleans, strings, bytes and lists of
        these.
      level: effort of the compression, 1 to 22; 3 is zstd's own default.

    Raises:
      ValueError: a column of another type.
    """
    encodings = {field.name: _ENCODINGS[t] for field in schema if (t := field.type) in _ENCODINGS}

    def save(temporary: Path) -> None:
        content = _TableHash()
        with pq.ParquetWriter(
            temporary,
            schema,
            compression="zstd",
            compression_level=level,
            use_dictionary=[field.name for field in schema if field.name not in encodings],
            column_encoding=encodings,
        ) as writer:
            for table in tables:
                content.update(table)
                writer.write_table(table.replace_schema_metadata(schema.metadata))
            writer.add_key_value_metadata({SEAL: seal(content.hexdigest(schema))})

    return write_whole(path, save)


def read_table(path: Path) -> pa.Table:
    """Reads what `write_table` or `write_tables` wrote.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, or was not written by them.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError, ValueError) as error:
        if getattr(error, "errno", None) or path.is_dir():
            raise  # nothing is wrong with the file
        raise ValueError(_damaged(path, error)) from error
    metadata = dict(table.schema.metadata or {})
    found = metadata.pop(SEAL.encode(), b"").decode(errors="replace")
    table = table.replace_schema_metadata(metadata)
    content = _TableHash()
    content.update(table)
    check_seal(path, found, lambda: content.hexdigest(table.schema))
    return table


def seal(digest: str) -> str:
    """The seal of a content whose SHA-256 is given in hexadecimal digits."""
    return f"{_FORMAT}:{digest}"


def check_seal(path: str | os.PathLike[str], found: Any, digest: Callable[[], str]) -> None:
    """Refuses a file whose seal is not that of its content.

    Args:
      path: the file, for the message.
      found: its seal, or whatever is in that place.
      digest: computes the SHA-256 of what was read.

    Raises:
      ValueError: it has no seal, one of another format, or another content's.
    """
    format_, colon, hexadecimal = str(found or "").partition(":")
    if not colon:
        raise ValueError(
            f"{path} carries no seal: it was made or changed by another program, or by a version "
            "without seals; delete or replace it, and run again"
        )
    if format_ != str(_FORMAT):
        raise ValueError(
            f"{path} is of format {format_}, and this version reads {_FORMAT}: use the version "
            "that wrote it, or delete or replace it and run again"
        )
    if hexadecimal != digest():
        raise ValueError(_damaged(path, "its content is not that of its seal"))


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of named arrays: names, types, shapes and values, whatever their order."""
    content = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        content.update(json.dumps([name, array.dtype.str, array.shape]).encode())
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def hash_tree(tree: Any) -> str:
    """`hash_arrays` of a tree of arrays, JAX's random keys among them, by their paths."""
    import jax

    def array(leaf: Any) -> np.ndarray:
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    leaves, _ = jax.tree.flatten_with_path(tree)
    return hash_arrays({jax.tree_util.keystr(path): array(leaf) for path, leaf in leaves})


class _TableHash:
    """Hash of rows that come in parts; where one part ends makes no difference."""

    def __init__(self) -> None:
        self._streams: dict[str, Any] = defaultdict(hashlib.sha256)

    def update(self, table: pa.Table) -> None:
        for number, column in enumerate(table.columns):
            for chunk in column.chunks:
                self._add(str(number), chunk)

    def hexdigest(self, schema: pa.Schema) -> str:
        described = [(field.name, _described(field.type)) for field in schema]
        metadata = sorted((schema.metadata or {}).items())
        content = hashlib.sha256(repr((described, metadata)).encode())
        for name in sorted(self._streams):
            content.update(f"{name} {self._streams[name].hexdigest()}\n".encode())
        return content.hexdigest()

    def _add(self, name: str, array: pa.Array) -> None:
        if not len(array):  # some have chunks of no rows where others have no chunk
            return
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        kind = array.type
        self._streams[f"{name} valid"].update(_bytes(array.is_valid()))
        array = array.drop_null()
        if not len(array):
            return
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            self._streams[f"{name} length"].update(_bytes(pc.list_value_length(array)))
            self._add(f"{name} item", array.flatten())
        elif pa.types.is_fixed_size_list(kind):
            self._add(f"{name} item", array.flatten())
        elif _described(kind) in ("string", "binary"):
            array = array.cast(pa.large_binary())
            self._streams[f"{name} length"].update(_bytes(pc.binary_length(array)))
            _, offsets, values = array.buffers()
            ends = np.frombuffer(offsets, np.int64)[array.offset :][: len(array) + 1]
            self._streams[name].update(memoryview(values or b"")[ends[0] : ends[-1]])
        elif pa.types.is_primitive(kind) and not pa.types.is_temporal(kind):
            self._streams[name].update(_bytes(array))
        else:
            raise ValueError(f"a column of type {kind} cannot be sealed")


def _described(kind: pa.DataType) -> str:
    """A type as far as Parquet keeps it: not how values are coded, nor what an item is called."""
    if pa.types.is_dictionary(kind):
        return _described(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_described(kind.value_type)}"
    if pa.types.is_fixed_size_list(kind):
        return f"{kind.list_size} of {_described(kind.value_type)}"
    return str(kind).removeprefix("large_")


def _bytes(array: pa.Array) -> Any:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).data.cast("B")


def _damaged(path: str | os.PathLike[str], why: Any) -> str:
    return f"{path} is damaged ({why}): delete or replace it, and run again"
