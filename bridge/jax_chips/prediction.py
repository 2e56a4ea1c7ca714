"""A programmed chip over a data set: one row a sample."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Array

from bridge.checks import require_count
from bridge.chips.averaging import mean_logits
from bridge.chips.outcomes import Keep, gathered, refuse_other_scale, require_by_row, rows_of
from bridge.jax_chips.chips import Chip, Programmed
from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.reading import Batch, read_batches
from jaxcurv.data.sources import Source, check_unique, path_column
from jaxcurv.frames import frame_of
from jaxcurv.progress import Progress, progress


def predict(
    chip: Chip,
    weights: Programmed,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    batch_size: int = 64,
    description: str = "predict",
    keep: Keep | None = None,
    reads: int = 1,
) -> pd.DataFrame:
    """What a programmed chip makes of every sample, in the source's order.

    Args:
      chip: made by `bridge.analog`.
      weights: one chip of `chip.program`.
      source, keys, batch_size, description, keep, reads: as for `bridge.predict`. The last batch
        is filled up, so that one program serves all.

    Returns:
      The table of `bridge.predict`.

    Warns:
      UserWarning: a first batch, of eight or more, far below the images that the chip was
        calibrated on.

    Raises:
      ValueError: a source that `jaxcurv.data.as_source` refuses, samples of another shape or
        kind of numbers than the chip was made for or of another scale than it was calibrated on,
        labels that have no logit, an index that occurs twice, logits that are not finite, reads
        below 1, columns to keep that `bridge.predict` refuses, or a function that computes
        otherwise than when the chip was made, as for `chip.program`.
    """
    batch_size, reads = require_count("batch_size", batch_size), require_count("reads", reads)
    given = samples_of(source, keys)
    chip.require_same_function()
    with progress(len(given), description) as shown:
        apply = partial(chip.apply, weights) if reads == 1 else _of_reads(chip, weights, reads)
        (table,) = tables_of(chip, apply, given, batch_size, [description], keep, shown)
    return table


def _of_reads(chip: Chip, weights: Programmed, reads: int) -> Callable[..., np.ndarray]:
    """From images and their indices to the mean logits of several reads, `[batch, class]`."""
    chips = [weights.read(number) for number in range(reads)]

    def apply(images: Array, indices: Any) -> np.ndarray:
        found = [chip.apply(one, images, indices=indices) for one in chips]
        return mean_logits([np.asarray(one) for one in found])

    return apply


def samples_of(source: SourceLike, keys: Keys | None) -> Source:
    """The samples of a source.

    Raises:
      ValueError: there are none, or `jaxcurv.data.as_source` refuses it.
    """
    given = as_source(source, keys=keys)
    if not len(given):
        raise ValueError("nothing to predict: the source has no samples")
    return given


def tables_of(
    chip: Chip,
    apply: Callable[..., Array | np.ndarray],
    source: Source,
    batch_size: int,
    descriptions: Sequence[str],
    keep: Keep | None,
    shown: Progress,
) -> list[pd.DataFrame]:
    """The table of each chip of a group.

    Args:
      apply: gives logits `[batch, class]`, or of several chips `[chip, batch, class]`.
      descriptions: a few words for each chip.
    """
    start, seen = 0, list[np.ndarray]()
    rows: list[list[pa.RecordBatch]] = [[] for _ in descriptions]
    for batch, found in _run(chip, apply, source, batch_size):
        labels, indices = (list(map(int, one)) for one in (batch.labels, batch.indices))
        named = path_column(source, slice(start, start := start + len(labels)))
        logits = np.asarray(found).reshape(-1, *found.shape[-2:])[:, : len(labels)]
        logits = logits[: len(descriptions)]  # a group may have been filled up
        for own, of_chip, what in zip(rows, logits, descriptions, strict=True):
            own.append(rows_of(of_chip, labels, indices, named, what, keep))
        if not seen:
            require_by_row(keep, logits[0], rows[0][0])
        seen.append(np.array(indices))
        shown.update(len(labels) * len(descriptions))
    check_unique(np.concatenate(seen))
    return [frame_of(pa.concat_tables(gathered(own))) for own in rows]


def _run(
    chip: Chip, apply: Callable[..., Array | np.ndarray], source: Source, batch_size: int
) -> Iterator[tuple[Batch, Array | np.ndarray]]:
    """Each batch with its logits; the next one is under way when they are fetched."""
    waiting: tuple[Batch, Array | np.ndarray] | None = None
    for batch, images in batches_of(chip, source, batch_size):
        found = apply(images, indices=np.resize(batch.indices, batch_size))
        if waiting is not None:
            yield waiting
        waiting = batch, found
    if waiting is not None:
        yield waiting


def batches_of(chip: Chip, source: Source, batch_size: int) -> Iterator[tuple[Batch, Array]]:
    """Each batch, and its images with the first ones again where it is not full."""
    for number, batch in enumerate(read_batches(source, batch_size, pixels=np.float32)):
        rows = np.resize(np.arange(len(batch.labels)), batch_size)
        images = chip.as_images(batch.images[rows])
        if chip.largest_pixel is not None:
            indices = batch.indices.tolist()
            refuse_other_scale(batch.images, indices, chip.largest_pixel, first=number == 0)
        yield batch, images
