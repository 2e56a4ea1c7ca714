"""What a source tells of the samples that a page shows: their pixels, and the names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxcurv.data.normalisation import Normalised
from jaxcurv.data.sources import Sample, Source, samples_at
from jaxcurv.data.views import Chosen, with_labels


def pixels(
    source: Source, indices: npt.ArrayLike, labels: npt.ArrayLike
) -> npt.NDArray[np.uint8] | None:
    """The images of some samples as a page shows them, `[n, height, width, 1 or 3]`.

    Normalised images are read as they were before; other floating ones are stretched from the
    smallest to the largest value of those shown.

    Args:
        source: has the samples.
        indices: their stable indices, int `[n]`.
        labels: what the tables say that they are, int `[n]`.

    Returns:
        None where samples are no images of one size with 1, 3 or 4 channels; of 4 the first three.

    Raises:
        ValueError: an index is not in the source, or has another label there, as where arrays were
            shuffled since.
    """
    source = _before_normalisation(source)
    told = source if hasattr(source, "indices") else with_labels(source)
    wanted = np.asarray(indices)
    positions = pd.Index(np.asarray(told.indices)).get_indexer(pd.Index(wanted))
    if (lost := positions < 0).any():
        raise ValueError(
            f"images lacks {lost.sum()} of the samples to show, the first at index "
            f"{wanted[lost][0]}: give the source that was scored"
        )
    samples = list(samples_at(source, positions))
    _refuse_other_labels(samples, wanted, np.asarray(labels))
    images = [np.asarray(sample["image"]) for sample in samples]
    if len({image.shape for image in images}) > 1 or images[0].ndim != 3:
        return None
    found = np.stack(images)[..., :3]
    if found.shape[-1] not in (1, 3):
        return None
    if found.dtype == np.uint8:
        return found
    low, high = float(found.min()), float(found.max())
    return np.asarray(255 * (found - low) / max(high - low, 1e-12)).round().astype(np.uint8)


def _refuse_other_labels(
    samples: Sequence[Sample], indices: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> None:
    there = [np.asarray(sample["label"]) for sample in samples]
    if not all(label.ndim == 0 and label.dtype.kind in "iu" for label in there):
        return
    if (other := np.asarray(there) != labels).any():
        first = int(np.argmax(other))
        raise ValueError(
            f"images has another label for {other.sum()} of the {len(labels)} samples to show: "
            f"{there[first]} at index {indices[first]}, where the scores have {labels[first]}: "
            "give the source that was scored, in its order"
        )


def _before_normalisation(source: Source) -> Source:
    """The same samples with the pixels of their files, as far as that is known."""
    if isinstance(source, Normalised):
        return _before_normalisation(source.source)
    if isinstance(source, Chosen):
        return Chosen(_before_normalisation(source.source), source.positions)
    return source


def class_names_of(source: Any) -> Sequence[str] | None:
    """The names of the classes that a source, or what it is a view of, tells."""
    while source is not None:
        if (names := getattr(source, "class_names", None)) is not None:
            return names
        source = getattr(source, "source", None)
    return None
