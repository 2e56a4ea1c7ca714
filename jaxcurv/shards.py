"""A table that grows on disk piece by piece, survives being killed, and is made by many processes.

`OUT.parts/` beside the table `OUT` holds `run.json`, which says what the table is of, and one
Parquet file for each finished run of consecutive samples. Pieces appear whole or not at all.
"""

import contextlib
import json
import operator
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jaxcurv.engine.checks import check_indices
from jaxcurv.storage.checksums import read_json, read_table, write_json, write_table, write_tables
from jaxcurv.storage.lock import lock

METADATA_KEY = b"jaxcurv"

_MEASURED = ("logits", "losses")


@dataclass(frozen=True)
class Pieces:
    """The pieces of one table.

    Attributes:
      out: the table's own file.
      samples: how many the table is of.
      length: samples a piece; the last may have fewer.
    """

    out: Path
    samples: int
    length: int

    @property
    def folder(self) -> Path:
        """Folder of the pieces, `OUT.parts/`."""
        return _folder(self.out)

    def starts(self) -> range:
        """First position of every piece."""
        return range(0, self.samples, self.length)

    def finished(self, start: int) -> bool:
        """Whether the piece that begins at position `start` is on disk."""
        return self._path(start).exists()

    def write(self, start: int, table: pa.Table) -> None:
        """Writes the piece that begins at position `start`, atomically."""
        write_table(self._path(start), table)

    def read(self, start: int) -> pa.Table:
        """Reads the piece that begins at position `start`.

        Raises:
          FileNotFoundError: it is not on disk.
          ValueError: it is damaged.
        """
        return read_table(self._path(start))

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:012d}.parquet"


def open_pieces(out: Path, identity: Mapping[str, Any]) -> Pieces:
    """Starts the table `out`, or goes on with it.

    Args:
      identity: what the table is of, as JSON; holds `samples` and `piece_length`.

    Raises:
      ValueError: the pieces there are of another table.
      OSError: the folder cannot be written.
    """
    record = _folder(out) / "run.json"
    # Looked for before the record, which another process may write at this moment, then pieces.
    orphans = any(_folder(out).glob("*.parquet"))
    if not record.exists():
        if orphans:
            raise ValueError(f"{_folder(out)} has pieces but no run.json: delete it and run again")
        write_json(record, identity)
    # Read back in any case: another process may have started another table there.
    refuse_other(_folder(out), read_json(record), identity)
    return _pieces(out, identity)


def read_finished(out: Path, identity: Mapping[str, Any]) -> pa.Table | None:
    """The table `out` if it is finished.

    Raises:
      ValueError: it is of something else.
    """
    if not out.exists():
        return None
    try:
        table = read_table(out)
        found = json.loads(table.schema.metadata[METADATA_KEY])
    except (ValueError, KeyError, RecursionError) as error:
        raise ValueError(
            f"{out} exists and is no whole table of scores: choose another file, or delete it"
        ) from error
    refuse_other(out, found, identity)
    _remove(_folder(out))
    return table


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses what was made with other settings, naming them.

    Raises:
      ValueError: the identities differ.
    """
    differing = [
        name
        for name, value in wanted.items()
        if not (_close if name in _MEASURED else operator.eq)(found.get(name), value)
    ]
    if differing:
        raise ValueError(
            f"{path} belongs to other settings ({', '.join(differing)} differ): choose another "
            "file, or delete it"
        )


def _close(found: Any, wanted: Any) -> bool:
    """What was measured agrees: not to the bit, for another machine may go on with a table."""
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=0, atol=1e-3 * np.abs(b).max()))


def merge_scores(out: str | os.PathLike[str]) -> pa.Table:
    """Makes the table `out` from its pieces, in the source's order, and removes them.

    Returns `out` as it is where that was done before.

    Raises:
      FileNotFoundError: there is neither the table nor a piece of it.
      ValueError: pieces are missing, or two samples share an index.
      FolderInUse: another process merges them.
    """
    path = Path(out)
    record = _folder(path) / "run.json"
    if not record.exists():
        if not path.exists():
            raise FileNotFoundError(f"there is neither {path} nor {_folder(path)}: score first")
        return read_table(path)
    with lock(path.parent, name=f".{path.name}.merge.lock", of=path):
        return _merged(path, record)


def _merged(path: Path, record: Path) -> pa.Table:
    if not record.exists():  # another process was faster
        return read_table(path)
    identity = read_json(record)
    if (finished := read_finished(path, identity)) is not None:
        return finished
    pieces = _pieces(path, identity)
    if missing := [start for start in pieces.starts() if not pieces.finished(start)]:
        raise ValueError(
            f"{len(missing)} of {len(pieces.starts())} pieces of {path} are missing, the first "
            f"from sample {missing[0]} on: run the processes or shards that did not finish again"
        )
    # A sample may have a row for each of several checkpoints, all in one piece.
    indices, metadata = [], []
    for start in pieces.starts():
        piece = pieces.read(start)
        indices.append(np.unique(piece["index"]))
        metadata.append(piece.schema.metadata)
    check_indices(indices)
    schema = piece.schema.with_metadata(merged_metadata(identity, metadata))
    write_tables(path, schema, map(pieces.read, pieces.starts()))
    _remove(pieces.folder)
    return read_table(path)


def _remove(folder: Path) -> None:
    """Removes the pieces of a finished table; killed half way, none is left under its name."""
    if folder.exists():
        discarded = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            folder.rename(discarded / folder.name)
        shutil.rmtree(discarded, ignore_errors=True)


def merged_metadata(
    identity: Mapping[str, Any], metadata: Iterable[Mapping[bytes, bytes]]
) -> dict[bytes, bytes]:
    """Metadata of a table: its identity, and on what its pieces were computed."""
    made: dict[str, set[Any]] = {}
    for one in metadata:
        for name, value in json.loads(one[METADATA_KEY]).items():
            made.setdefault(name, set()).add(value)
    lists = {name: sorted(values) for name, values in made.items()}
    return {METADATA_KEY: json.dumps({**identity, **lists}).encode()}


def _pieces(out: Path, identity: Mapping[str, Any]) -> Pieces:
    return Pieces(out, identity["samples"], identity["piece_length"])


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")
