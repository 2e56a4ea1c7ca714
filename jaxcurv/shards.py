"""A table of scores that grows on disk shard by shard, survives being killed, and is made by many
processes.

`OUT.parts/` beside the table `OUT` holds `run.json`, which says what the table is of, and one
Parquet file for each finished shard, a run of consecutive samples. Shards appear whole or not at
all. The settings decide whether a table may go on; the list of samples decides which shards there
are. Rows of samples that are not in the latest list stay in `OUT.parts/kept-*.parquet`.
"""

import contextlib
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxcurv.engine.checks import check_indices
from jaxcurv.score_tables import (
    checksums_of,
    described,
    frame_of_scores,
    made_of,
    sample_keys,
    shard_metadata,
    table_metadata,
    take_samples,
)
from jaxcurv.storage.checksums import read_json, read_table, write_json, write_table, write_tables
from jaxcurv.storage.lock import FolderInUse, lock

if TYPE_CHECKING:
    import pandas as pd

_LIST = ("samples", "data", "shard_length")
"""Entries of an identity that say which samples a table is of, and not how they are scored."""

_FOUND = ("matrix",)
"""Entries that the first samples of a list may change."""

_GRADIENTS = ("gradient_in_range", "gradient_in_wide_range", "loss_gradient")

_WHERE_KNOWN = ("logits_in_range", "logits_in_wide_range", *_GRADIENTS)
"""Entries that earlier tables lack, or that other first samples do not need."""

_MEASURED = ("logits", "losses", "own_scores", *_WHERE_KNOWN)

_TOLERANCE = 1e-4
"""Difference that counts as equal, relative to the largest value: more than another machine's last
bits, less than what other weights change."""

_GRADIENT_TOLERANCE = 1e-2
"""The same of gradients, which jump where the last bit decides on which side of a kink it is."""

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Shards:
    """The shards of one table, for one list of samples.

    Attributes:
      out: the table's own file.
      identity: what the table is of, as JSON: the settings, and `samples` (how many), `data` (a
        hash that tells this list of samples from others) and `shard_length` (samples a shard; the
        last may have fewer).
    """

    out: Path
    identity: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """Folder of the shards, `OUT.parts/`."""
        return _folder(self.out)

    @property
    def rows_a_sample(self) -> int:
        """Rows that each sample has: one, or one for each checkpoint."""
        return _rows_a_sample(self.identity)

    @property
    def all_files(self) -> str:
        """What a user would delete to begin anew."""
        return f"{self.out} and {self.folder}" if self.folder.exists() else str(self.out)

    def starts(self) -> range:
        """Position of every shard's first sample."""
        return range(0, self.identity["samples"], self.identity["shard_length"])

    def finished(self, start: int) -> bool:
        """Whether the shard that begins at position `start` is on disk."""
        return self._path(start).exists()

    def write(self, start: int, table: pa.Table) -> None:
        """Writes the shard that begins at position `start`, atomically."""
        write_table(self._path(start), table)

    def read(self, start: int) -> pa.Table:
        """Reads the shard that begins at position `start`.

        Raises:
          FileNotFoundError: it is not on disk.
          ValueError: it is damaged.
        """
        return read_table(self._path(start))

    def check_folder(self) -> None:
        """Refuses a folder whose shards cannot belong to this table.

        Raises:
          ValueError: they are of other settings or another version, or nothing says of which.
        """
        # Looked for before the record, which another process may write at this moment, then shards.
        orphans = any(self.folder.glob("*.parquet"))
        if _record(self.out).exists():
            refuse_other(self.folder, read_record(self.out), self.identity)
        elif orphans:
            raise ValueError(f"{self.folder} has shards but no run.json: delete it and run again")

    def begin(self) -> None:
        """Notes in `run.json` that this list of samples is scored from now on.

        Waits for who merges or removes another list's shards, or the note would go with them.

        Raises:
          ValueError: another process has just begun a table of other settings there.
          OSError: the folder cannot be written.
        """
        with _merging(self.out, wait=True):
            if _record(self.out).exists():
                found = read_record(self.out)
                refuse_other(self.folder, found, self.identity)
                if self._is_of(found):
                    return
            write_json(_record(self.out), self.identity)

    def read_others(self) -> list[tuple[pa.Table, int | None]]:
        """Finished rows that belong to other lists of samples.

        Returns:
          Tables, each with the position that its first sample had, or None where its samples did
          not follow each other.

        Raises:
          ValueError: one is damaged or of other settings.
        """
        tables = []
        for path in sorted(self._others()):
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile: in the table below
                table = read_table(path)
                try:
                    tables.append((table, described(table.schema)["start"]))
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{path} is no shard of scores: move it elsewhere") from error
        if (table := read_scores(self.out, self.identity)) is not None:
            tables.append((table, 0))
        return tables

    def remove_left(self) -> None:
        """Removes what a kill between the finished table and the removal of its shards has left.

        Not where another process merges, or the folder cannot be written.
        """
        if not self.folder.exists() or (
            self._others() and not any(map(self.finished, self.starts()))
        ):
            return
        with contextlib.suppress(OSError), _merging(self.out):
            if self.out.exists() and not self.is_other_list(self.out):
                self.remove()

    def remove(self) -> None:
        """Removes the shards of the finished table, and the folder where nothing else is in it.

        To be called by who merges, and by nobody else at that time.
        """
        try:
            latest = self._is_of(read_record(self.out))
        except FileNotFoundError:
            return
        if latest and not self._others():
            _remove(self.folder)
            return
        for path in [*self._own, *(self.folder.glob("batch-*.json") if latest else ())]:
            path.unlink(missing_ok=True)

    def keep_others(self, samples: np.ndarray) -> None:
        """Keeps the rows of the table `out` whose samples are not among `samples`, and says so.

        Args:
          samples: as of `sample_keys`; the table will be replaced by theirs.
        """
        table = read_scores(self.out, self.identity)
        if table is None:
            return
        others = np.flatnonzero(~np.isin(sample_keys(table, self.rows_a_sample), samples))
        if not len(others):
            return
        follow = others[-1] - others[0] + 1 == len(others)
        kept = take_samples(table, others, self.rows_a_sample).replace_schema_metadata(
            shard_metadata(
                made_of(table),
                checksums_of(table)[others],
                start=int(others[0]) if follow else None,
            )
        )
        name = f"{zlib.crc32(sample_keys(kept, self.rows_a_sample).data):08x}"
        write_table(self.folder / f"kept-{name}.parquet", kept)
        print(
            f"{self.out} has {len(others)} samples that are not asked for now: their scores stay "
            f"in {self.folder} and are used when they are asked for again",
            file=sys.stderr,
        )

    def remove_others(self, samples: np.ndarray) -> None:
        """Removes shards of other lists all of whose samples are among `samples`."""
        for path in self._others():
            if np.isin(sample_keys(read_table(path), self.rows_a_sample), samples).all():
                path.unlink()

    def is_other_list(self, table: Path) -> bool:
        """Whether a table says that it is of another list of samples; reads no row."""
        try:
            return not self._is_of(described(pq.read_schema(table)))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            return False  # reading it all will tell what is wrong

    def check_list(self, table: pa.Table) -> None:
        """Refuses a table that a merge gave and that is of another list of samples.

        Raises:
          ValueError: another process has scored other samples, or by other settings, meanwhile.
        """
        found = described(table.schema)
        refuse_other(self.out, found, self.identity)
        if not self._is_of(found):
            raise ValueError(
                f"{self.out} is of other samples now: another process scores those, or has removed "
                f"{self.folder}. Choose another file, or wait for it and run again"
            )

    @property
    def _own(self) -> set[Path]:
        """Files of this list's shards, finished or not."""
        return {self._path(start) for start in self.starts()}

    def _others(self) -> set[Path]:
        """Files of rows that are no shards of this list."""
        return set(self.folder.glob("*.parquet")) - self._own

    def _path(self, start: int) -> Path:
        samples, data = self.identity["samples"], self.identity["data"]
        return self.folder / f"{start:012d}-of-{samples}-{data[:12]}.parquet"

    def _is_of(self, found: Mapping[str, Any]) -> bool:
        """Whether a record or a table, of these settings, is of this list of samples."""
        return all(found[name] == self.identity[name] for name in _LIST)


def read_record(out: Path) -> dict[str, Any]:
    """What `OUT.parts/run.json` says.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged, or an earlier version's.
    """
    found = read_json(_record(out))
    if not set(_LIST) <= found.keys():
        raise ValueError(
            f"{_folder(out)} was begun by another version of jaxcurv: finish it with that one, "
            "choose another file, or delete it and run again"
        )
    return found


def check_name(out: Path) -> None:
    """Refuses a file whose name does not say that it holds Parquet.

    Raises:
      ValueError: its suffix is another one.
    """
    if out.suffix != ".parquet":
        raise ValueError(
            f"scores are kept as Parquet: give a file NAME.parquet, not {out}; for another format "
            "convert the finished table, such as pandas.read_parquet(...).to_csv(...)"
        )


def read_scores(out: Path, identity: Mapping[str, Any]) -> pa.Table | None:
    """The finished table `out`, of whichever samples; None where there is none.

    Raises:
      ValueError: it is of other settings, or is none of ours as we wrote it.
    """
    if not out.exists():
        return None
    table = _read_ours(out)
    refuse_other(out, described(table.schema), identity)
    return table


def read_finished(out: Path, identity: Mapping[str, Any]) -> pa.Table | None:
    """The table `out` if it is finished and of this list of samples.

    Raises:
      ValueError: it is of other settings, or is none of ours as we wrote it.
    """
    if not out.exists() or Shards(out, identity).is_other_list(out):
        return None
    return read_scores(out, identity)


def _read_ours(out: Path) -> pa.Table:
    try:
        table = read_table(out)
        found = described(table.schema)
        whole = (
            table.column_names == found["table_columns"]
            and len(table) == found["samples"] * _rows_a_sample(found)
            and len(checksums_of(table)) == found["samples"]
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_not_ours(out)) from error
    if not whole:
        raise ValueError(_not_ours(out))
    return table


def refuse_other(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuses what was made with other settings, naming them; which samples it has is no setting.

    Raises:
      ValueError: the settings differ.
    """
    differing = [
        name
        for name, value in wanted.items()
        if name not in (*_LIST, *_FOUND)
        and (name in found or name not in _WHERE_KNOWN)
        and not _agree(name, found.get(name), value)
    ]
    if differing:
        earlier = "columns" in differing or not set(differing) <= found.keys()
        raise ValueError(
            f"{path} belongs to other settings ({', '.join(differing)} differ)"
            f"{', or to an earlier version of jaxcurv' * earlier}: choose another file, or delete "
            "it"
        )


def _agree(name: str, found: Any, wanted: Any) -> bool:
    """Whether two entries of this name agree: what was measured not to the bit, for another machine
    may go on with a table."""
    if name not in _MEASURED:
        return bool(found == wanted)
    if isinstance(wanted, Mapping):
        return found is not None and all(_agree(name, found.get(k), v) for k, v in wanted.items())
    a, b = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    tolerance = _GRADIENT_TOLERANCE if name in _GRADIENTS else _TOLERANCE
    return a.shape == b.shape and bool(
        np.allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max(initial=0))
    )


def merge_scores(out: str | os.PathLike[str]) -> "pd.DataFrame":
    """Makes the table `out` from its shards, in the source's order, and removes them.

    Returns `out` as it is where that was done before, as a DataFrame like that of `score_dataset`.
    Rows that `out` had of samples which are no longer in the source stay in `OUT.parts/`.

    Raises:
      FileNotFoundError: there is neither the table nor a shard of it.
      ValueError: shards are missing, two samples share an index, or `out` is no `.parquet` or not a
        table as it was written.
      FolderInUse: another process merges them.
    """
    path = Path(out)
    check_name(path)
    return frame_of_scores(merge_shards(path))


def merge_shards(path: Path) -> pa.Table:
    """The work of `merge_scores`; returns the table as it is on disk."""
    if not _record(path).exists():
        if not path.exists():
            raise FileNotFoundError(f"there is neither {path} nor {_folder(path)}: score first")
        return _read_ours(path)
    with _merging(path):
        return _merged(path)


@contextlib.contextmanager
def _merging(out: Path, *, wait: bool = False) -> Iterator[None]:
    """Locks what merges and removes shards of `out`.

    Raises:
      FolderInUse: another process has the lock, and it is not waited for.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(out.parent, name=f".{out.name}.merge.lock", of=out))
                break
            except FolderInUse:
                if not wait:
                    raise
            time.sleep(_POLL_SECONDS)
        yield


def _merged(path: Path) -> pa.Table:
    if not _record(path).exists():  # another process was faster
        return _read_ours(path)
    identity = read_record(path)
    shards = Shards(path, identity)
    if (finished := read_finished(path, identity)) is not None:
        shards.remove()
        return finished
    if missing := [start for start in shards.starts() if not shards.finished(start)]:
        raise ValueError(
            f"{len(missing)} of {len(shards.starts())} shards of {path} are missing, the first "
            f"from sample {missing[0]} on: run the calls that did not finish again"
        )
    indices, keys = [], []

    def read() -> Iterator[pa.Table]:
        for start in shards.starts():
            shard = shards.read(start)
            # A sample may have a row for each of several checkpoints, all in one shard.
            indices.append(np.unique(shard["index"]))
            keys.append(sample_keys(shard, shards.rows_a_sample))
            yield shard

    metadata = table_metadata(identity, read())
    check_indices(indices)
    samples = np.concatenate(keys)
    shards.keep_others(samples)
    schema = shards.read(0).schema.with_metadata(metadata)
    rows = (shards.read(start).select(schema.names) for start in shards.starts())
    write_tables(path, schema, rows)
    shards.remove_others(samples)
    shards.remove()
    return read_table(path)


def _remove(folder: Path) -> None:
    """Removes a folder; killed half way, nothing of it is left under its name."""
    discarded = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        folder.rename(discarded / folder.name)
    shutil.rmtree(discarded, ignore_errors=True)


def _rows_a_sample(identity: Mapping[str, Any]) -> int:
    return 1 if identity["average"] else identity["checkpoints"]


def _not_ours(out: Path) -> str:
    return (
        f"{out} exists and is no whole table of scores as this version writes them (another "
        "program or version wrote or changed it, or it is damaged): it is left as it is; rename "
        "it, or choose another file"
    )


def _folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def _record(out: Path) -> Path:
    return _folder(out) / "run.json"
