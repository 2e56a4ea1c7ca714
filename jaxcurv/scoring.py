"""Scoring a whole data set: one compiled shape, one row a sample."""

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from flax import nnx
from jaxtyping import Array, Key
from tqdm import tqdm

from jaxcurv.curvature import (
    PRECISION,
    Curvature,
    LogitsFn,
    check_batch,
    check_labels,
    check_per_sample,
    collect,
    dispatch,
    functional,
)
from jaxcurv.data import Source
from jaxcurv.estimators import FiniteDifference

_IN_FLIGHT = 2
"""Batches computing while the host prepares the next; more would only hold memory."""


def score_dataset(
    logits_fn: LogitsFn | nnx.Module,
    source: Source,
    *,
    key: Key[Array, ""],
    params: Any = None,
    estimator: FiniteDifference = FiniteDifference(),
    batch_size: int = 64,
    description: str = "score",
) -> pa.Table:
    """Scores every sample of a source.

    Args:
      logits_fn, key, params, estimator: as for `input_curvature`.
      source: `len()` samples `{"image": float [...], "label": int, "index": int}`, images
        normalised as the model expects.
      batch_size: samples a batch; the last one is padded, so that one shape compiles.
      description: label of the progress bar.

    Returns:
      A table with the columns index, label, prediction, correct, loss, curvature,
      curvature_standard_error, hessian_trace, hessian_trace_standard_error and gradient_norm, in
      the source's order. Its metadata hold the estimator, precision, device and JAX's version.

    Raises:
      ValueError: an empty source, duplicate indices, or what `input_curvature` refuses.
    """
    if len(source) == 0 or batch_size < 1:
        raise ValueError(
            f"nothing to score: {len(source)} samples in batches of {batch_size}; both must be "
            "at least 1"
        )
    model, params = functional(logits_fn, params)
    classes: int | None = None
    seen: set[int] = set()
    labels: list[np.ndarray] = []
    indices: list[np.ndarray] = []
    results: list[Curvature] = []
    pending: deque[tuple[int, np.ndarray, dict[str, Array]]] = deque()

    with tqdm(total=len(source), desc=description, unit="img", unit_scale=True) as progress:

        def fetch() -> None:
            count, batch_indices, arrays = pending.popleft()
            results.append(collect(arrays, batch_indices, estimator))
            progress.update(count)

        for count, images, batch_labels, batch_indices in _batches(source, batch_size):
            check_batch(images, batch_labels, batch_indices)
            if classes is None:
                classes = check_per_sample(model, params, images)
            check_labels(batch_labels, classes)
            for index in batch_indices[:count].tolist():
                if index in seen:
                    raise ValueError(f"two samples share index {index}; indices must differ")
                seen.add(index)
            labels.append(batch_labels[:count])
            indices.append(batch_indices[:count])
            arrays = dispatch(model, params, images, batch_labels, batch_indices, key, estimator)
            pending.append((count, batch_indices, arrays))
            if len(pending) > _IN_FLIGHT:
                fetch()
        while pending:
            fetch()
    return _table(labels, indices, results, estimator)


def _batches(
    source: Source, batch_size: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Batches of one shape, the last padded with its last sample; `count` rows are real."""
    for start in range(0, len(source), batch_size):
        samples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        count = len(samples)
        samples += [samples[-1]] * (batch_size - count)
        yield (
            count,
            np.stack([sample["image"] for sample in samples]),
            np.asarray([sample["label"] for sample in samples]),
            np.asarray([sample["index"] for sample in samples]),
        )


def _table(
    labels: list[np.ndarray],
    indices: list[np.ndarray],
    results: list[Curvature],
    estimator: FiniteDifference,
) -> pa.Table:
    label, index = np.concatenate(labels), np.concatenate(indices)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(result, name) for result in results])[: len(label)]

    prediction = column("prediction")
    device = jax.devices()[0]
    return pa.table(
        {
            "index": index.astype(np.int64),
            "label": label.astype(np.int32),
            "prediction": prediction.astype(np.int32),
            "correct": prediction == label,
            "loss": column("loss"),
            "curvature": column("score"),
            "curvature_standard_error": column("standard_error"),
            "hessian_trace": column("hessian_trace"),
            "hessian_trace_standard_error": column("hessian_trace_standard_error"),
            "gradient_norm": column("gradient_norm"),
        },
        metadata={
            "jaxcurv": json.dumps(
                {
                    "estimator": {"name": type(estimator).__name__, **asdict(estimator)},
                    "precision": PRECISION,
                    "device": device.device_kind,
                    "jax": jax.__version__,
                }
            )
        },
    )
