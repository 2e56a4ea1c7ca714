"""What the rows and the metadata of a table of scores say: which sample each row is of, which image
was scored, and on what.
"""

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

METADATA_KEY = b"jaxcurv"
_IMAGES_KEY = b"jaxcurv.images"

_MADE = ("devices", "jax", "batch_sizes")

_SAID = (
    *("estimators", "loss", "precision", "matrix", "key", "checkpoints", "average", "weights"),
    *("samples", "data", "batch_size_a_device", *_MADE),
)
"""What a DataFrame of scores says of itself; the rest, such as logits, only compares."""


def described(schema: pa.Schema) -> dict[str, Any]:
    """What a table or a shard says of itself.

    Raises:
      KeyError: it has no such entry.
      ValueError: the entry is no JSON.
    """
    return json.loads((schema.metadata or {})[METADATA_KEY])


def frame_of_scores(table: pa.Table) -> "pd.DataFrame":
    """A table of scores as a DataFrame; what was scored, how and on what is at its `attrs`."""
    from jaxcurv.frames import frame_of

    says = described(table.schema)
    return frame_of(table, {name: says[name] for name in _SAID})


def image_checksums(images: np.ndarray) -> np.ndarray:
    """CRC-32 of each image's bytes, uint32 `[batch]`: whether it is still the one that was scored.

    Args:
      images: `[batch, ...]`.
    """
    return np.array([zlib.crc32(np.ascontiguousarray(image).data) for image in images], np.uint32)


def checksums_of(table: pa.Table) -> np.ndarray:
    """`image_checksums` of a table's samples, in its order."""
    return np.frombuffer(base64.b64decode(table.schema.metadata[_IMAGES_KEY]), "<u4")


def shard_metadata(
    made: Mapping[str, Sequence[Any]], checksums: np.ndarray, *, start: int | None
) -> dict[bytes, bytes]:
    """Metadata of a shard.

    Args:
      made: on what it was computed: the devices, versions of JAX, and batch sizes.
      checksums: `image_checksums` of its samples, in its order.
      start: position of its first sample; None where they do not follow each other.
    """
    return {
        METADATA_KEY: json.dumps({**made, "start": start}).encode(),
        _IMAGES_KEY: _encoded(checksums),
    }


def made_of(table: pa.Table) -> dict[str, list[Any]]:
    """On what a table or a shard was computed, as in `shard_metadata`."""
    says = described(table.schema)
    return {name: says[name] for name in _MADE}


def merged_made(made: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    """On what any of several tables was computed."""
    values: dict[str, set[Any]] = {name: set() for name in _MADE}
    for one in made:
        for name in values:
            values[name].update(one[name])
    return {name: sorted(values[name]) for name in values}


def table_metadata(identity: Mapping[str, Any], shards: Iterable[pa.Table]) -> dict[bytes, bytes]:
    """Metadata of the table of some shards: its identity and columns, and on what it was computed.

    Args:
      identity: as of `Shards`.
      shards: the shards, whose rows are not kept.
    """
    made, checksums, columns = [], [np.empty(0, np.uint32)], list[str]()
    for shard in shards:
        made.append(made_of(shard))
        checksums.append(checksums_of(shard))
        columns = shard.column_names
    says = {**identity, **merged_made(made), "table_columns": columns}
    return {
        METADATA_KEY: json.dumps(says).encode(),
        _IMAGES_KEY: _encoded(np.concatenate(checksums)),
    }


def sample_keys(table: pa.Table, rows_a_sample: int) -> np.ndarray:
    """What tells a table's samples apart, uint64: a sample's index and its label."""
    indices, labels = (_numbers(table[name])[::rows_a_sample] for name in ("index", "label"))
    return keys_of(indices, labels)


def keys_of(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Indices, below 2**32, and labels, each pair as one uint64.

    A whole number stands for itself, below 2**31; other labels for 31 bits of their CRC-32.
    """
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        numbers = labels.astype(np.int64) & 0x7FFFFFFF
    else:
        stored = as_stored(labels)
        rows = (zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in stored)
        numbers = np.fromiter(rows, np.int64, len(stored)) & 0x7FFFFFFF
    return indices.astype(np.uint64) << np.uint64(31) | numbers.astype(np.uint64)


def as_stored(labels: np.ndarray) -> np.ndarray:
    """Labels as a table has them: int32 or float32, `[batch]`, or `[batch, size]` of several."""
    kind = np.int32 if labels.dtype.kind in "iu" else np.float32
    return labels.astype(kind).reshape(len(labels), *([-1] if labels.ndim > 1 else []))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """A column as an array, `[rows]` or, of lists, `[rows, size]`."""
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy()
    flat = column.combine_chunks().flatten().to_numpy()
    return flat.reshape(len(column), column.type.list_size)


def take_samples(table: pa.Table, samples: np.ndarray, rows_a_sample: int) -> pa.Table:
    """The rows of some samples of a table, numbered from 0, in that order."""
    rows = samples[:, None] * rows_a_sample + np.arange(rows_a_sample)
    return table.take(rows.ravel())


def _encoded(checksums: np.ndarray) -> bytes:
    return base64.b64encode(checksums.astype("<u4").tobytes())
