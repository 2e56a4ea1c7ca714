"""Rows that were scored before, for samples of any source of the same data: a data set that has
grown is scored where it is new."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from jaxcurv.data.reading import Batch, read_batch
from jaxcurv.data.sources import Source
from jaxcurv.score_tables import (
    checksums_of,
    image_checksums,
    keys_of,
    made_of,
    merged_made,
    sample_keys,
    shard_metadata,
    take_samples,
)
from jaxcurv.shards import Shards

_FIRST, _SPREAD = 4, 8
"""Reused samples that are read again: the first ones, and as many spread over all."""

_TOLERANCE = 1e-3
"""Difference of losses that counts as equal, relative to the largest logit or loss."""


@dataclass(frozen=True)
class Finished:
    """Rows of a source's samples that need no computing.

    Attributes:
      numbers: int64 `[samples]`, the place of each of the source's samples in `table`, counted in
        samples; -1 for one that is not there.
      table: the rows.
      rows_a_sample: rows that each sample has.
      checksums: `image_checksums` of the table's samples.
      made: on what the rows were computed, as in `shard_metadata`.
    """

    numbers: np.ndarray
    table: pa.Table | None = None
    rows_a_sample: int = 1
    checksums: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    made: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    def completed(self, start: int, stop: int, computed: pa.Table | None) -> pa.Table:
        """The shard of the positions `start` to `stop`, in the source's order.

        Args:
          start, stop: the first position, and the one after the last.
          computed: rows of the samples that are not in `table`; None where all are.
        """
        numbers = self.numbers[start:stop]
        known = numbers >= 0
        if self.table is None or not known.any():
            assert computed is not None
            return computed
        rows = [take_samples(self.table, numbers[known], self.rows_a_sample)]
        checksums, made = [self.checksums[numbers[known]]], [self.made]
        if computed is not None:
            rows.append(computed.select(rows[0].column_names))
            checksums.append(checksums_of(computed))
            made.append(made_of(computed))
        # The known ones come first, then the others, each in the source's order.
        order = np.argsort(np.argsort(~known, kind="stable"))
        table = take_samples(pa.concat_tables(rows), order, self.rows_a_sample)
        metadata = shard_metadata(merged_made(made), np.concatenate(checksums)[order], start=start)
        return table.combine_chunks().replace_schema_metadata(metadata)


def find_finished(
    shards: Shards, source: Source, losses: Callable[[Batch], tuple[np.ndarray, float]]
) -> Finished:
    """Rows that the table and its unfinished work have of a source's samples, scored for other
    lists of samples.

    A source that tells `indices` and `labels` finds a sample by both, wherever it stands. Another
    is taken to have the samples that it had at the same positions. Up to twelve of the reused
    samples are read again, and must have the index, the label, the image and the loss that were
    scored.

    Args:
      shards: the table.
      source: the samples.
      losses: losses of a batch, `[batch, rows a sample]`, and the largest logit.

    Raises:
      ValueError: there are rows, but of other samples or images, or with other losses.
    """
    each, count = shards.rows_a_sample, len(source)
    others = shards.read_others()
    if not others:
        return Finished(np.full(count, -1))
    tables = [table for table, _ in others]
    keys = np.concatenate([sample_keys(table, each) for table in tables])
    if hasattr(source, "indices") and hasattr(source, "labels"):
        numbers = _numbers_by_key(
            keys, keys_of(np.asarray(source.indices), np.asarray(source.labels))
        )
    else:
        numbers = np.full(count, -1)
        first = 0
        for table, start in others:
            samples = len(table) // each
            if start is not None:
                there = range(start, min(start + samples, count))
                numbers[there.start : there.stop] = first + np.arange(len(there))
            first += samples
    reused = np.flatnonzero(numbers >= 0)
    if not len(reused):
        raise ValueError(
            f"{shards.out} has the scores of {len(keys)} samples, none of which is among the "
            f"{count} of the source: choose another file, or delete {shards.all_files}"
        )
    checksums = np.concatenate([checksums_of(table) for table in tables])
    floats = _are_floats(tables[0]["label"].type)
    table = pa.concat_tables([table.select(tables[0].column_names) for table in tables])
    scored = table["loss"].to_numpy().reshape(len(keys), each)[numbers[reused]]
    spots, batch = _check_spots(
        shards, source, reused, keys[numbers[reused]], checksums[numbers[reused]], floats
    )
    _check_losses(shards, batch, scored[spots], *losses(batch))
    return Finished(
        numbers,
        table,
        each,
        checksums,
        merged_made(map(made_of, tables)),
    )


def _numbers_by_key(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each wanted key among `keys`, -1 where it is not."""
    unique, places = np.unique(keys, return_index=True)
    found = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    return np.where(unique[found] == wanted, places[found], -1)


def _are_floats(labels: pa.DataType) -> bool:
    return pa.types.is_floating(
        labels.value_type if pa.types.is_fixed_size_list(labels) else labels
    )


def _check_spots(
    shards: Shards,
    source: Any,
    reused: np.ndarray,
    keys: np.ndarray,
    checksums: np.ndarray,
    floats: bool,
) -> tuple[np.ndarray, Batch]:
    """Reads some of the reused samples again and compares them with those that were scored, whose
    labels are `floats` or whole numbers.

    Returns:
      Which of the reused samples they are, and the samples.
    """
    spread = np.linspace(0, len(reused) - 1, _SPREAD).astype(np.int64)
    spots = np.unique([*range(min(_FIRST, len(reused))), *spread])
    batch = read_batch(source, reused[spots].tolist(), classes=False)
    labels = batch.labels.astype(np.float32) if floats else batch.labels
    same_sample = keys_of(batch.indices, labels) == keys[spots]
    if not same_sample.all():
        first = np.flatnonzero(~same_sample)[0]
        raise ValueError(
            f"{shards.out} has the scores of other samples: another one is at position "
            f"{reused[spots][first]} now (index {batch.indices[first]}, label "
            f"{batch.labels[first]}). Choose another file, or delete {shards.all_files}; a source "
            "that tells its `indices` and `labels` may have its samples in any order"
        )
    same_image = image_checksums(batch.images) == checksums[spots]
    if not same_image.all():
        raise ValueError(
            f"{shards.out} has the scores of other images: that of index "
            f"{batch.indices[~same_image][0]} has changed. Choose another file, or delete "
            f"{shards.all_files}"
        )
    return spots, batch._replace(labels=labels)


def _check_losses(
    shards: Shards, batch: Batch, scored: np.ndarray, now: np.ndarray, largest_logit: float
) -> None:
    """Refuses a loss, or a model, that gives samples read again other losses than were scored."""
    largest = max(largest_logit, float(np.abs(scored).max()))
    off = np.abs(now - scored).max(axis=1)
    if (wrong := ~(off <= _TOLERANCE * largest)).any():
        first = int(np.argmax(wrong))
        raise ValueError(
            f"{shards.out} has the scores of another loss or model: that of index "
            f"{batch.indices[first]} was {scored[first].tolist()} and is {now[first].tolist()} now."
            f" Choose another file, or delete {shards.all_files}"
        )
