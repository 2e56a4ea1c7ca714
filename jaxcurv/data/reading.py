"""Reading a source: sample by sample, in batches, or whole into memory; every sample is checked."""

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from jaxcurv.data.layouts import plain_array
from jaxcurv.data.sources import Arrays, Source, paths_at, samples_at
from jaxcurv.progress import progress

NORMALISE = (
    "jaxcurv.data.Normalised(source, jaxcurv.data.Normalisation(mean, std)) makes them of uint8 "
    "pixels, and Normalisation(mean, std).apply(images) of an array"
)
"""How to come to the images that a model takes."""

LEVELS = (
    "levels of more than 8 bits are scaled to 0..1, as with images / 65535 where that is white, "
    "and normalised as the model expects, as float32"
)
"""The same of pixels that are whole numbers of 16 bits or more."""


class Batch(NamedTuple):
    """Samples on the host."""

    images: np.ndarray
    """`[batch, ...]`; where they go into a model, floating."""
    labels: np.ndarray
    """Integer `[batch]`."""
    indices: np.ndarray
    """Integer `[batch]`, the stable index of each sample."""

    def take(self, rows: np.ndarray) -> "Batch":
        """The samples at `rows`, positions in the batch or a mask `[batch]`."""
        return Batch(self.images[rows], self.labels[rows], self.indices[rows])


def read(
    source: Source,
    positions: Integer[np.ndarray, " m"] | Sequence[int] | None = None,
    *,
    description: str = "reading images",
) -> Arrays:
    """Decode the samples at `positions` (default: all) into memory, in that order.

    Raises:
        ValueError: malformed samples, images that are not all uint8 of one shape, or an index that
            occurs twice.
    """
    positions = np.arange(len(source)) if positions is None else np.asarray(positions, np.int64)
    count = len(positions)
    labels, indices = np.empty(count, np.int32), np.empty(count, np.int64)
    images = np.empty((0, 0, 0, 0), np.uint8)
    samples = _checked(source, positions, np.uint8, None)
    with progress(count, description, side=True) as shown:
        for row, (image, label, index) in enumerate(samples):
            if row == 0:
                images = np.empty((count, *image.shape), np.uint8)
            images[row], labels[row], indices[row] = image, label, index
            shown.update()
    return Arrays(images, labels, indices, paths_at(source, positions))


def read_batches(
    source: Source, batch_size: int, *, pixels: type[np.generic] | None = None
) -> Iterator[Batch]:
    """All samples in the source's order; the last batch may be smaller. See `read_batch`."""
    shape = None
    for start in range(0, len(source), batch_size):
        positions = range(start, min(start + batch_size, len(source)))
        batch = read_batch(source, positions, pixels=pixels, shape=shape)
        shape = batch.images.shape[1:]
        yield batch


def read_batch(
    source: Source,
    positions: Sequence[int],
    *,
    pixels: type[np.generic] | None = None,
    shape: tuple[int, ...] | None = None,
    classes: bool = True,
) -> Batch:
    """The samples at `positions`, at least one, in that order.

    Args:
        pixels: the dtype that images must have, which then are `[height, width, channel]`; of
            float32 also vectors `[feature]`, signals and sequences of two axes and videos and
            volumes of four, or int32 and int64 token ids `[length]`. None leaves both open.
        shape: shape that every image must have; None for that of the first one.
        classes: whether labels must be whole numbers; else they are any numbers of one shape.

    Raises:
        ValueError: a sample that is no mapping of image, label and index, a label or an index that
            is no whole number from 0 on, or images that are not of the dtype and of one shape.
    """
    images, labels, indices = zip(
        *_checked(source, np.asarray(positions, np.int64), pixels, shape, classes), strict=True
    )
    for label, index in zip(labels, indices, strict=True):
        if np.shape(label) != np.shape(labels[0]):
            raise ValueError(
                f"labels must have one shape; that of {index} is {np.shape(label)}, that of "
                f"{indices[0]} {np.shape(labels[0])}"
            )
    return Batch(np.stack(images), np.asarray(labels), np.asarray(indices))


def _checked(
    source: Source,
    positions: Integer[np.ndarray, " m"],
    pixels: type[np.generic] | None,
    shape: tuple[int, ...] | None,
    classes: bool = True,
) -> Iterator[tuple[np.ndarray, Any, Any]]:
    """Image, label and index of each sample, the numbers in the types that the source gives."""
    for position, sample in zip(positions.tolist(), samples_at(source, positions), strict=True):
        if not isinstance(sample, Mapping) or not {"image", "label", "index"} <= sample.keys():
            keys = ", ".join(map(str, sample)) if isinstance(sample, Mapping) else ""
            got = f"keys {keys}" if keys else type(sample)
            raise ValueError(
                f"the sample at position {position} must be "
                f'{{"image": array, "label": int, "index": int}}, not {got}'
            )
        index = _whole("index", sample["index"], position)
        label = sample["label"]
        label = _whole("label", label, position) if classes else label
        image = plain_array(sample["image"], f"the pixels at position {position}")
        shape = image.shape if shape is None else shape
        of_kind = pixels is None or (image.dtype == pixels and image.ndim == 3)
        if pixels == np.float32:
            of_kind |= image.dtype == pixels and image.ndim in (1, 2, 4)
            of_kind |= image.dtype in (np.int32, np.int64) and image.ndim == 1
        if image.shape != shape or not of_kind:
            kind = f"be {pixels.__name__} [height, width, channel] of" if pixels else "have"
            need, first = f"{kind} one shape", f", the first {shape}"
            cure = "for one size: a Preprocessing, or --data.image-size"
            if pixels is not None and image.dtype != pixels and not of_kind:
                need, first = f"be {pixels.__name__} [height, width, channel] arrays", ""
                cure = _cure_of_type(image, pixels)
            raise ValueError(
                f"images must {need}; image {index}, at position {position}, is "
                f"{image.dtype} {image.shape}{first} ({cure})"
            )
        yield image, label, index


def _cure_of_type(image: np.ndarray, wanted: type[np.generic]) -> str:
    if wanted == np.uint8:
        if image.dtype == np.uint16:
            return "(image / 257).round().astype(numpy.uint8) of levels up to 65535"
        return "the pixels as they are before they are normalised, from 0 to 255"
    if image.dtype == np.uint8:
        return NORMALISE
    if image.dtype.kind not in "iu":
        return f"image.astype(numpy.{wanted.__name__})"
    return LEVELS if image.ndim > 1 else "of token ids image.astype(numpy.int64)"


def _whole(name: str, value: Any, position: int) -> Any:
    try:
        number = operator.index(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a whole number; got {value!r} at position {position}"
        ) from error
    if number < 0:
        raise ValueError(f"{name} must not be negative; got {number} at position {position}")
    return value
