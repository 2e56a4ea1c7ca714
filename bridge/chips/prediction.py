"""A chip, or any torch module, over a data set: one row a sample."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import nn

from bridge.checks import require_count
from bridge.chips.averaging import mean_logits
from bridge.chips.evaluation import (
    as_logits,
    require_eval,
    require_independent,
    require_same_in_batch,
)
from bridge.chips.examination import refused_access
from bridge.chips.images import as_batch, refused_layout, require_rows
from bridge.chips.made_from import Remembering, identity_of, metadata_of, refuse_other
from bridge.chips.memory_layout import Layout
from bridge.chips.outcomes import Keep, gathered, refuse_other_scale, require_by_row, rows_of
from bridge.chips.plain_layers import copy_of
from bridge.chips.programming import Chip
from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.reading import read_batches
from jaxcurv.data.sources import Source, check_unique, path_column
from jaxcurv.frames import frame_of
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import read_table, write_tables


def predict(
    chip: Chip | nn.Module,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    description: str = "predict",
    out: str | os.PathLike[str] | None = None,
    keep: Keep | None = None,
    reads: int = 1,
) -> pd.DataFrame:
    """What a chip makes of every sample, in the source's order.

    No sample's logits depend on the others in its batch (up to rounding): the noise of an operation
    is that of the chip's seed, the layer and the sample's index. A module that has yet to set
    itself up on its first batch, as ActNorm does, does so on the first batch here. On a GPU,
    TensorFloat-32 is off.

    Args:
      chip: a chip, or a module on images `[batch, channel, height, width]` in eval mode.
      source: the samples, as anything that `jaxcurv.data.as_source` takes: a pair of arrays
        (images, labels), a torch `Dataset` or `DataLoader`, a data set of Hugging Face, or rows
        `{"image": ..., "label": int, "index": int}`. Images float32 `[height, width, channel]`, or
        torch tensors `[channel, height, width]`, normalised as the model expects; read batch by
        batch. In an image's place may be a vector, a signal or token ids, see
        `bridge.chips.images`.
      keys: what its rows call image, label and index, such as `{"image": "img"}`.
      batch_size: images at once.
      device: where to run; the chip itself stays where it is.
      description: a few words for the progress bar.
      out: a Parquet file. Rows go there as they are made, so that memory does not grow with the
        data set until the table is read from it at the end. A file that is there is read instead
        if it was made by the same chip, from as many samples, with the same `keep` by its name and
        by what it makes of two samples, 16 of the samples are the same, and so are their digital
        logits, within 3e-5 of the largest and what rounding does: what happens between the weights
        is seen by them alone. Where these are the same and layers are others, a warning names them.
      keep: what to make of each batch's logits and keep in their place, such as
        `jaxcurv.logit_scores`: arrays of NumPy's, JAX's or torch's by name, one value a sample,
        which must not depend on the others of the batch: it is given the first one's halves too.
        With many classes most of the table is logits: 5 GB for 1.28 million samples and 1000
        classes.
      reads: how many times the chip computes each sample; the logits are the mean. Each read draws
        the noise of operations anew, whose variance in the logits so is 1 / reads, to first order;
        what was drawn once, as programming and reading of a memory are, stays. The energy is that
        of as many inferences. `average_logits` has the mean over chips.

    Returns:
      A DataFrame with the columns index (int64), path (text, where the source has `paths`), label
      and prediction (int64), correct (bool) and logits, or what `keep` makes of them; one row a
      sample. Each sample's logits are a float32 array `[class]`, which is not to be written to.
      With `out`, its `attrs` say what it was made from: chip (a hash), samples (how many), some (a
      hash of 16 of them), keep (its name) and, of several, reads.

    Warns:
      UserWarning: a first batch, of eight or more, far below the images that a chip was calibrated
        on.

    Raises:
      ValueError: a source that `as_source` refuses, malformed samples, images of another scale
        than a chip was calibrated on, labels that the model has no logit for, an index that occurs
        twice, a module that computes as in training, mixes the samples of a batch or gives no
        logits, a chip whose network has weights on no tile (`program`), non-finite logits, columns
        to keep that the table has, that are not one value a sample or depend on the batch, reads
        below 1, several reads of what is no chip, or a file at `out` that is something else, or
        was made by the same weights and other code.
    """
    module: nn.Module = chip.executable if isinstance(chip, Chip) else chip
    if not isinstance(module, nn.Module):
        raise ValueError(f"predict takes a chip or a torch module; got {type(chip).__name__}")
    require_eval(module, "the module")
    batch_size = require_count("batch_size", batch_size)
    reads = require_count("reads", reads)
    if reads > 1 and not isinstance(chip, Chip):
        raise ValueError(f"a module draws nothing that {reads} reads would average: give reads=1")
    if keep is not None and not callable(keep):
        raise ValueError(
            f"keep makes columns of a batch's logits, such as jaxcurv.logit_scores; got {keep!r}"
        )
    source = as_source(source, keys=keys)
    if not len(source):
        raise ValueError("nothing to predict: the source has no samples")
    if hasattr(source, "indices"):
        check_unique(np.asarray(source.indices))
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"torch has no device {device!r}: use device='cpu' or 'cuda'") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} sees no CUDA device: use device='cpu'")

    def run(keep: Keep | None, update: Callable[[int], object]) -> Iterator[pa.Table]:
        return gathered(_run(chip, source, batch_size, device, description, keep, reads, update))

    if out is None:
        with progress(len(source), description) as shown:
            return frame_of(pa.concat_tables(run(keep, shown.update)))
    target = Path(out)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"no folder {target.parent} for {target.name}")
    identity, some = identity_of(chip, source, keep, reads)
    images = as_batch(some, torch.device("cpu"))
    network = chip.analog if isinstance(chip, Chip) else module
    if target.exists():
        table = read_table(target)
        refuse_other(table, identity, network, images, keep, target)
        return frame_of(table, identity)
    kept = None if keep is None else Remembering(keep)
    with progress(len(source), description) as shown:
        rows = run(kept, shown.update)
        first = next(rows)
        made_from = metadata_of(identity, network, images, kept)
        write_tables(target, first.schema.with_metadata(made_from), chain([first], rows))
    return frame_of(read_table(target), identity)


@contextmanager
def full_precision() -> Iterator[None]:
    """Within it a GPU multiplies in float32, not in TensorFloat-32, and deterministically."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _run(
    chip: Chip | nn.Module,
    source: Source,
    batch_size: int,
    device: str | torch.device,
    description: str,
    keep: Keep | None,
    reads: int,
    update: Callable[[int], object],
) -> Iterator[pa.RecordBatch]:
    module: nn.Module = chip.executable if isinstance(chip, Chip) else chip
    device = torch.device(device)
    if device.type != "cpu":
        module = copy_of(module).to(device)
    layout = Layout(module)
    with torch.inference_mode(), full_precision():
        start, seen = 0, list[np.ndarray]()
        for images, *numbers in read_batches(source, batch_size, pixels=np.float32):
            labels, indices = (list(map(int, one)) for one in numbers)
            named = path_column(source, slice(start, start := start + len(labels)))
            if isinstance(chip, Chip) and chip.largest_pixel is not None:
                refuse_other_scale(images, indices, chip.largest_pixel, first=not seen)
            # JAX's layout is channels_last, with which PyTorch is fastest too.
            batch = as_batch(images, device, first=not seen)
            with refused_layout(batch, len(seen[0]) if seen else 0):
                if isinstance(chip, Chip):
                    chip.examine(batch)
                    with refused_access():
                        found = [module(batch, indices, read) for read in range(reads)]
                else:
                    found = [layout(module, batch)]
            for one in found:
                require_rows(one, batch)
            logits = mean_logits([as_logits(one, len(batch)).numpy() for one in found])
            if not seen and not isinstance(chip, Chip):
                run = partial(layout, module)
                require_independent(run, batch, "the module")
                require_same_in_batch(run, batch, found[0], "the module")
            rows = rows_of(logits, labels, indices, named, description, keep)
            if not seen:
                require_by_row(keep, logits, rows)
            yield rows
            seen.append(np.array(indices))
            update(len(labels))
        check_unique(np.concatenate(seen))
