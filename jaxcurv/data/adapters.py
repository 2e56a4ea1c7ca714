"""What others call a data set, as a source: arrays, torch's data sets, Hugging Face's, any rows."""

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np

from jaxcurv.data.layouts import (
    as_image,
    as_images,
    comes_from,
    is_picture,
    is_tensor,
    plain_array,
)
from jaxcurv.data.loaders import dataset_of
from jaxcurv.data.sources import Sample, Source, samples_at
from jaxcurv.rows import require_labels_of

SourceLike: TypeAlias = Any
"""What `as_source` takes."""

Keys: TypeAlias = Mapping[str, str]
"""What rows call "image", "label" and "index", such as `{"image": "img"}`."""

_NAMES = ("image", "label", "index")

_READ_TWICE = 4
"""Samples that are read twice, to see whether a data set is random."""


def as_source(given: SourceLike, *, keys: Keys | None = None, classes: bool = True) -> Source:
    """Samples by position, from arrays or anybody's data set.

    Nothing is copied, and a few images are read. Images become `[height, width, channel]`:
    torch tensors `[channel, height, width]` are transposed, gray images of Pillow get an axis,
    arrays stay as they are. So do vectors, signals `[length, channel]` and token ids in their
    place, tensors of these too. Pixels keep their type; `Normalised` makes what a model expects of
    uint8.

    >>> images, labels = np.zeros((2, 8, 8, 3), np.float32), np.array([4, 7])
    >>> as_source((images, labels))[1]["label"]
    7
    >>> rows = [{"img": images[0], "fine_label": 4}]
    >>> as_source(rows, keys={"image": "img", "label": "fine_label"})[0]["index"]
    0

    Args:
        given: one of

            - a `Source`, which is returned as it is;
            - a pair (images, labels): arrays `[n, height, width, channel]` and integers `[n]`; of
              torch tensors the images are `[n, channel, height, width]`; a DataFrame `[n, feature]`
              goes with labels of its own index;
            - a data set with `len()` whose items by position are pairs (image, label), such as a
              map-style torch `Dataset`, or rows with names, such as Hugging Face's. A row's index
              is its "index", or else its position, as that of a pair is. So it is the position in
              a torch `Subset`, not in the data set that it was taken from;
            - a torch `DataLoader` that gives each sample of its data set once, in whatever order:
              the data set, in its own order.
        keys: what the rows call "image", "label" and "index", where it is something else.
        classes: whether labels must be whole numbers; else they are any numbers, one or several a
            sample.

    Raises:
        ValueError: what has no length or no access by position (a generator, a stream), a table,
            a dictionary (of splits, say), arrays of unequal lengths, a shuffled Series of labels
            (whose index counts from 0, in another order), labels of another index than a
            DataFrame's, labels that are not whole numbers,
            items that are neither pairs nor rows, a name that no row has, or a
            `DataLoader` with a sampler or a collate function of its own.
    """
    names = _checked_keys(keys)
    given = dataset_of(given)
    _refuse_unsuitable(given)
    if _is_pair_of_arrays(given):
        if names:
            raise ValueError("keys name what rows have; a pair (images, labels) has no names")
        images, labels = given
        return _from_arrays(images, labels, classes)
    if len(given) == 0 or (not names and _tells_indices(given)):
        return given
    first = _first(given)
    if isinstance(first, Mapping):
        source = _of_rows(given, first, names, classes)
    elif names:
        raise ValueError("keys name what rows have; the items are pairs (image, label)")
    else:
        sample = partial(sample_of_pair, classes=classes)
        source = Converted(given, sample, operator.itemgetter(1))
    _refuse_random(source)
    return source


def as_unlabelled(given: SourceLike, *, keys: Keys | None = None) -> Source:
    """As `as_source`, for what uses no labels: an array of images alone will do.

    >>> as_unlabelled(np.zeros((2, 8, 8, 3), np.float32))[1]["index"]
    1
    """
    if _is_array(given) and len(given.shape) > 1:
        given = (given, np.zeros(len(given), np.int64))
    return as_source(given, keys=keys)


def _of_rows(
    given: Any, first: Mapping[str, Any], names: Mapping[str, str], classes: bool
) -> Source:
    """A source of rows, one of which is `first`: the data set itself where it is one."""
    names = {"image": "image", "label": "label", **names}
    if "index" in first:
        names.setdefault("index", "index")
    own_names = names == {name: name for name in _NAMES}
    if own_names and _is_sample(first) and not comes_from(given, "torch", "Subset"):
        return given
    label = operator.itemgetter(names["label"])
    return Converted(given, partial(sample_of_row, names, classes=classes), label)


def _refuse_random(source: Source) -> None:
    """Refuses a data set that gives another image when it is asked again.

    Not seen: a change that none of the first samples, each read twice, happens to undergo.
    """
    positions = np.arange(min(_READ_TWICE, len(source)))
    once, again = (samples_at(source, positions) for _ in range(2))
    for position, one, other in zip(positions, once, again, strict=True):
        # As bytes, for NaN is told elsewhere.
        if np.asarray(one["image"]).tobytes() != np.asarray(other["image"]).tobytes():
            raise ValueError(
                f"the data set gives another image each time the sample at position {position} is "
                "read, as with random crops and flips, and samples are read more than once: take "
                "its evaluation transform"
            )


@dataclass(frozen=True, eq=False)
class ArrayPair:
    """A source of images `[n, ...]` and labels `[n, ...]`; a sample's index is its position.

    Attributes:
        images, labels: the arrays.
    """

    images: np.ndarray
    labels: np.ndarray

    @cached_property
    def indices(self) -> np.ndarray:
        """int64 `[n]`."""
        return np.arange(len(self.labels))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int, /) -> Sample:
        image, label = self.images[position], self.labels[position]
        whole = label.ndim == 0 and label.dtype.kind in "iu"
        return Sample(image=image, label=int(label) if whole else label, index=int(position))


@dataclass(frozen=True, eq=False)
class Converted:
    """A source of a data set's items, each made a sample when it is read.

    Attributes:
        items: the data set.
        sample: from an item's position and the item to the sample.
        label: from an item to its label alone.
    """

    items: Any
    sample: Callable[[int, Any], Sample]
    label: Callable[[Any], Any] = operator.itemgetter("label")

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, position: int, /) -> Sample:
        return self.sample(position, self.items[position])

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        items = samples_at(self.items, np.asarray(positions, np.int64))
        return [self.sample(*one) for one in zip(positions, items, strict=True)]


def sample_of_pair(position: int, item: Any, *, classes: bool = True) -> Sample:
    """The sample of an item (image, label); its index is its position.

    Raises:
        ValueError: it is no pair of an image and a whole number.
    """
    if not isinstance(item, tuple | list) or len(item) != 2:
        length = f" of length {len(item)}" if isinstance(item, tuple | list) else ""
        raise ValueError(
            f"the items must be pairs (image, label), or rows such as "
            f'{{"image": ..., "label": ..., "index": ...}}; that at position {position} is a '
            f"{type(item).__name__}{length}"
        )
    image, label = item
    return Sample(image=as_image(image), label=_label(label, position, classes), index=position)


def sample_of_row(
    names: Mapping[str, str], position: int, row: Any, *, classes: bool = True
) -> Sample:
    """The sample of a row.

    Args:
        names: what the row calls "image", "label" and, unless it is the position, "index".

    Raises:
        ValueError: it lacks a name, or label or index are no whole numbers.
    """
    there = list(row) if isinstance(row, Mapping) else []
    if missing := {name: key for name, key in names.items() if key not in there}:
        wanted = ", ".join(f'"{name}": ...' for name in missing)
        raise ValueError(
            f"the row at position {position} has no {', '.join(map(repr, missing.values()))}, "
            f"but {', '.join(map(repr, there)) or type(row).__name__}: say which of them is "
            f"what, keys={{{wanted}}}"
        )
    index = row[names["index"]] if "index" in names else position
    return Sample(
        image=as_image(row[names["image"]]),
        label=_label(row[names["label"]], position, classes),
        index=_whole("index", index, position),
    )


def _checked_keys(keys: Keys | None) -> dict[str, str]:
    if keys is None:
        return {}
    if not isinstance(keys, Mapping) or not set(keys) <= set(_NAMES):
        raise ValueError(
            'keys say what rows call "image", "label" and "index", such as {"image": "img"}; '
            f"got {keys!r}"
        )
    return dict(keys)


def _refuse_unsuitable(given: Any) -> None:
    """Refuses what looks like a data set and would be read wrongly, or not at all."""
    kind = type(given).__name__
    if isinstance(given, Mapping):
        if all(map(_is_array, given.values())) and len(given):
            raise ValueError(
                f"got a {kind} of arrays, {', '.join(map(repr, given))}: give the pair "
                "(images, labels), or rows with an index each"
            )
        names = list(map(repr, given))[:5] or ["'train'"]
        raise ValueError(
            f"a source has its samples by position; got a {kind} of {', '.join(names)}: give one "
            f"of its splits, such as source[{names[0]}]"
        )
    if hasattr(given, "columns") and (hasattr(given, "dtypes") or hasattr(given, "schema")):
        raise ValueError(
            f"a source has its samples by position; got a {kind}: give the pair "
            "(np.stack(images), labels) of its columns"
        )
    if isinstance(given, str | bytes) or hasattr(given, "__fspath__"):
        raise ValueError(f"a source holds samples; got the {kind} {given!r}: open it first")
    if hasattr(given, "train") and hasattr(given, "test") and not hasattr(given, "__len__"):
        raise ValueError(f"a source is one split; got a {kind}: give its .train or its .test")
    if isinstance(given, tuple) and len(given) == 3 and all(map(_is_array, given)):
        raise ValueError(
            "got three arrays: give the pair (images, labels), whose indices are their positions, "
            'or rows {"image": ..., "label": ..., "index": ...}'
        )
    if _is_array(given):
        raise ValueError(f"an array needs its labels: give (images, labels); got one {kind}")
    stream = any(comes_from(given, one, "IterableDataset") for one in ("torch", "datasets"))
    if stream or not hasattr(given, "__getitem__") or not _has_length(given):
        raise ValueError(
            "samples are read by position, some of them twice, which needs len() and [position]; "
            f"got a {kind}: give list(samples) where memory suffices, or a map-style data set"
        )


def _has_length(given: Any) -> bool:
    try:
        len(given)
    except (TypeError, NotImplementedError):
        return False
    return True


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and hasattr(value, "__array__")


def _is_pair_of_arrays(given: Any) -> bool:
    """Whether it is (images, labels), the labels in an array too or in a list, the images in an
    array or a DataFrame."""
    if not isinstance(given, tuple | list) or len(given) != 2:
        return False
    if not _is_array(given[0]) and not hasattr(given[0], "iloc"):
        return False
    return hasattr(given[1], "__array__") or isinstance(given[1], tuple | list)


def _from_arrays(images: Any, labels: Any, classes: bool) -> ArrayPair:
    require_labels_of(images, labels)
    images = as_images(images)
    labels = as_images(labels) if is_tensor(labels) else plain_array(labels, "labels")
    if images.ndim < 2 or labels.ndim == 0 or len(images) != len(labels):
        raise ValueError(
            "a pair (images, labels) must have one label an image; got images of shape "
            f"{images.shape} and labels of shape {labels.shape}"
        )
    if classes and len(labels) and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ValueError(
            f"labels must be whole numbers [{len(labels)}]; got {labels.dtype} of shape "
            f"{labels.shape}: {_cure(labels[0])}"
        )
    return ArrayPair(images, labels)


def _tells_indices(given: Any) -> bool:
    """Whether it is a source by what it tells of all samples, so that none need be read.

    A torch `Subset` has `indices` too, but those of its samples in another data set.
    """
    told = inspect.getattr_static(given, "indices", None)  # a property may read files
    return told is not None and not comes_from(given, "torch", "Dataset")


def _first(given: Any) -> Any:
    try:
        return given[0]
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ValueError(
            f"a {type(given).__name__} gives no sample at position 0 "
            f"({type(error).__name__}: {error}): a source has len() and [position]"
        ) from error


def _is_sample(row: Mapping[str, Any]) -> bool:
    """Whether the readers take the row as it is."""
    values = [row.get(name) for name in _NAMES]
    return set(_NAMES) <= row.keys() and not any(
        is_tensor(value) or is_picture(value) for value in values
    )


def _label(value: Any, position: int, classes: bool) -> Any:
    """A whole number, or numbers of any kind where `classes` is false."""
    if classes:
        return _whole("label", value, position)
    try:
        return operator.index(value)
    except TypeError:  # an array of several has the method too
        numbers = plain_array(value, f"labels (that at position {position})")
    if numbers.dtype.kind not in "fiub":
        raise ValueError(f"label must be numbers; at position {position} it is {value!r}")
    return numbers


def _whole(name: str, value: Any, position: int) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(
            f"{name} must be a whole number; at position {position} it is {value!r}: {_cure(value)}"
        ) from error


def _cure(value: Any) -> str:
    """What to do about a label, or an index, that is no whole number."""
    shape = np.shape(value)
    if len(shape) == 1:
        return "of one-hot labels give the argmax, of a single number that number"
    return "give the number as an integer, from 0 on"
