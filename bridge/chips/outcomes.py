"""Rows of predictions: what logits become, whichever engine computed them."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Keep: TypeAlias = Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]]
"""From a batch's logits `[batch, class]` to columns by name, `[batch]` each."""

_GATHERED = 1024  # rows a stored piece: each piece costs memory and space of its own
_BEYOND = 4.0  # times the largest calibrated pixel: another normalisation, not another image
_BELOW = 16.0  # as many times below it: pixels of 0 to 255 beside normalised ones are about 100
_SEVERAL = 8  # images: fewer may all be dark


def gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in pieces of `_GATHERED` or a little more."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(map(len, waiting)) >= _GATHERED:
            yield pa.Table.from_batches(waiting).combine_chunks()
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting).combine_chunks()


def refuse_other_scale(
    images: NDArray[np.float32], indices: list[int], calibrated: float, *, first: bool = False
) -> None:
    """Refuses images far beyond the largest pixel that a chip was calibrated on.

    Args:
      calibrated: that pixel.
      first: whether they are the first, of which eight or more that stay far below it are told.
    """
    largest = np.abs(images).max(axis=tuple(range(1, images.ndim)))
    if (beyond := largest > _BEYOND * calibrated).any():
        place = int(np.argmax(beyond))
        raise ValueError(
            f"image {indices[place]} reaches {largest[place]:g}, the images that the chip was "
            f"calibrated on {calibrated:g}: normalise both as the model expects"
        )
    many = first and len(images) >= _SEVERAL
    if many and 0 < (most := float(largest.max())) < calibrated / _BELOW:
        warnings.warn(
            f"the first {len(images)} images reach {most:g} at most, and those that the chip was "
            f"calibrated on {calibrated:g}, so that its converters are too coarse here: "
            "normalise both as the model expects, or calibrate on images like these",
            stacklevel=2,
        )


def rows_of(
    logits: NDArray[np.float32],
    labels: list[int],
    indices: list[int],
    named: Mapping[str, np.ndarray],
    description: str,
    keep: Keep | None,
) -> pa.RecordBatch:
    """One row a sample; see `bridge.predict`.

    Raises:
      ValueError: labels that have no logit, logits that are not finite, or a bad `keep`.
    """
    if max(labels) >= logits.shape[1]:
        raise ValueError(
            f"labels must lie in [0, {logits.shape[1]}), the model's classes; that of image "
            f"{indices[int(np.argmax(labels))]} is {max(labels)}"
        )
    finite = np.isfinite(logits).all(axis=-1)
    if not finite.all():
        raise ValueError(
            f"{description}: non-finite logits, first for image {indices[int(np.argmin(finite))]}; "
            "check the weights and the images"
        )
    prediction = logits.argmax(axis=1)
    columns = {
        "index": pa.array(indices, pa.int64()),
        **{name: pa.array(values) for name, values in named.items()},
        "label": pa.array(labels, pa.int64()),
        "prediction": pa.array(prediction, pa.int64()),
        "correct": pa.array(prediction == np.asarray(labels)),
    }
    if keep is None:
        columns["logits"] = pa.FixedSizeListArray.from_arrays(logits.ravel(), logits.shape[1])
        return pa.RecordBatch.from_pydict(columns)
    for name, values in kept_columns(keep(logits)).items():
        if name in columns or values.shape != (len(labels),):
            raise ValueError(
                f"what to keep of the logits must be one value a sample, and not one of "
                f"{', '.join(columns)}; got {name} of shape {values.shape} for "
                f"{len(labels)} samples"
            )
        try:
            columns[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise ValueError(
                f"what to keep of the logits must be numbers or text; got {name} of dtype "
                f"{values.dtype} ({error})"
            ) from error
    return pa.RecordBatch.from_pydict(columns)


def require_by_row(keep: Keep | None, logits: NDArray[np.float32], rows: pa.RecordBatch) -> None:
    """Refuses a `keep` by which a row's columns depend on the other rows of the batch.

    It is given the batch's halves too, which must have what the batch has, numbers up to 1e-4, or
    four units in the last place, of themselves and 1e-5 of a column's largest. Not seen: what
    depends on the batch by less; a `keep` that takes no halves; batches of one.

    Args:
      keep: as `bridge.predict` takes it; None has no columns.
      logits: a batch, `[batch, class]`.
      rows: what `rows_of` made of it.

    Raises:
      ValueError: some do; the column is named.
    """
    if keep is None or len(logits) < 2:
        return
    middle = len(logits) // 2
    try:
        parts = [kept_columns(keep(half)) for half in (logits[:middle], logits[middle:])]
    except Exception:
        return  # which a last batch of that size is told of
    for name in set(rows.schema.names) & parts[0].keys():
        values = rows.column(name).to_numpy(zero_copy_only=False)
        halves = [part[name] for part in parts if name in part and part[name].ndim == 1]
        if sum(map(len, halves)) == len(values) and not _close(np.concatenate(halves), values):
            raise ValueError(
                f"keep makes {name} of the batch as a whole, such as by its mean or its ranks: it "
                "has other values for the same rows in half of the batch; keep what each row of "
                "logits has by itself, and standardise or rank in the finished table"
            )


def _close(found: NDArray[Any], wanted: NDArray[Any]) -> bool:
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(found, wanted))
    finite = np.abs(wanted[np.isfinite(wanted)], dtype=np.float64)
    relative = max(1e-4, 4 * float(np.finfo(wanted.dtype).eps))
    return np.allclose(found, wanted, relative, 1e-5 * finite.max(initial=0.0), equal_nan=True)


def kept_columns(kept: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """What `keep` made, arrays of NumPy's, whoever's they were.

    Raises:
      ValueError: it is no mapping of columns by name.
    """
    if not isinstance(kept, Mapping) and not hasattr(kept, "items"):
        raise ValueError(
            f'keep must make columns by name, such as {{"largest": logits.max(1)}}; got '
            f"{type(kept).__name__}"
        )
    return {name: _as_numpy(values) for name, values in kept.items()}


def _as_numpy(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor of PyTorch's, which need not be there
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    array = np.asarray(values)
    # That of JAX is none that NumPy knows.
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array
