"""A programmed chip over a data set: one row a sample."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa

from bridge.checks import require_count
from bridge.chips.outcomes import Keep, gathered, refuse_other_scale, rows_of
from bridge.jax_chips.chips import Chip, Programmed
from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.reading import Batch, read_batches
from jaxcurv.data.sources import Source, check_unique, path_column
from jaxcurv.frames import frame_of
from jaxcurv.progress import progress


def predict(
    chip: Chip,
    weights: Programmed,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    batch_size: int = 64,
    description: str = "predict",
    keep: Keep | None = None,
) -> pd.DataFrame:
    """What a programmed chip makes of every sample, in the source's order.

    Args:
      chip: made by `bridge.analog`.
      weights: one chip of `chip.program`.
      source, keys, batch_size, description, keep: as for `bridge.predict`. The last batch is filled
        up, so that one program serves all.

    Returns:
      The table of `bridge.predict`.

    Raises:
      ValueError: a source that `jaxcurv.data.as_source` refuses, samples of another shape than the
        chip was made for or of another scale than it was calibrated on, labels that have no logit,
        an index that occurs twice, or logits that are not finite.
    """
    batch_size = require_count("batch_size", batch_size)
    given = as_source(source, keys=keys)
    if not len(given):
        raise ValueError("nothing to predict: the source has no samples")
    with progress(len(given), description) as shown:

        def rows() -> Iterator[pa.RecordBatch]:
            start, seen = 0, list[np.ndarray]()
            for batch, logits in _run(chip, weights, given, batch_size):
                labels, indices = (list(map(int, one)) for one in (batch.labels, batch.indices))
                named = path_column(given, slice(start, start := start + len(labels)))
                yield rows_of(np.asarray(logits), labels, indices, named, description, keep)
                seen.append(np.array(indices))
                shown.update(len(labels))
            check_unique(np.concatenate(seen))

        return frame_of(pa.concat_tables(gathered(rows())))


def _run(
    chip: Chip, weights: Programmed, source: Source, batch_size: int
) -> Iterator[tuple[Batch, jax.Array]]:
    """Each batch with its logits; the next one is under way when they are fetched."""
    waiting: tuple[Batch, jax.Array] | None = None
    for batch, images in batches_of(chip, source, batch_size):
        indices = np.resize(batch.indices, batch_size)
        found = chip.apply(weights, images, indices=indices)
        if waiting is not None:
            yield waiting
        waiting = batch, found[: len(batch.labels)]
    if waiting is not None:
        yield waiting


def batches_of(chip: Chip, source: Source, batch_size: int) -> Iterator[tuple[Batch, jax.Array]]:
    """Each batch, and its images with the first ones again where it is not full."""
    for batch in read_batches(source, batch_size, pixels=np.float32):
        if chip.largest_pixel is not None:
            refuse_other_scale(batch.images, batch.indices.tolist(), chip.largest_pixel)
        rows = np.resize(np.arange(len(batch.labels)), batch_size)
        yield batch, jnp.asarray(batch.images[rows])
