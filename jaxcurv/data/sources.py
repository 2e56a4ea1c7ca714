"""What a data source is, and the one that lives in memory."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, runtime_checkable

import numpy as np
from jaxtyping import Integer

_CHUNK = 512  # samples fetched at once: array_record reads many records far faster than one by one


class Sample(TypedDict):
    """One image `[height, width, channels]`, its label, and its stable index within its split."""

    image: np.ndarray
    label: int
    index: int


@runtime_checkable
class Source(Protocol):
    """A split with random access by storage position.

    A sample's `index` is its number in the official split and does not depend on the order of
    storage; every table of results is joined on it. A source may also have
    `__getitems__(positions) -> list[Sample]`, which reading then prefers, what an `IndexedSource`
    has, and `paths [N]`, the file of each sample, which tables then show.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Sample: ...


@runtime_checkable
class IndexedSource(Source, Protocol):
    """A source which tells the index and the label of every sample without decoding an image."""

    @property
    def indices(self) -> np.ndarray:
        """int64 `[N]`, by position."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Integers `[N]`, by position."""
        ...


if TYPE_CHECKING:
    _Split = IndexedSource
else:
    # Before Python 3.12 a type check at run time would evaluate the properties, and so read files.
    _Split = Source


@dataclass(frozen=True, eq=False)
class Arrays:
    """A source in memory.

    Attributes:
        images: uint8 `[N, height, width, channels]`.
        labels: int32 `[N]`, not negative.
        indices: int64 `[N]`, the stable index of each sample; not negative, no two equal.
        paths: str objects `[N]`, the file of each sample; None where there is none.

    Raises:
        ValueError: a dtype, a shape or a value is not as above.
    """

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    paths: np.ndarray | None = None

    def __post_init__(self) -> None:
        wanted = {"images": (np.uint8, 4), "labels": (np.int32, 1), "indices": (np.int64, 1)}
        for name, (dtype, ndim) in wanted.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.ndim != ndim:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} with {ndim} axes, "
                    f"not {array.dtype} of shape {array.shape}"
                )
        if not len(self.images) == len(self.labels) == len(self.indices):
            raise ValueError(
                f"{len(self.images)} images, {len(self.labels)} labels and {len(self.indices)} "
                "indices: there must be one of each a sample"
            )
        for name in ("labels", "indices"):
            numbers = getattr(self, name)
            if np.any(numbers < 0):
                position = int(np.argmax(numbers < 0))
                raise ValueError(
                    f"{name} must not be negative, but the one at position {position} is "
                    f"{numbers[position]}"
                )
        check_unique(self.indices)
        paths_at(self, [])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int, /) -> Sample:
        return Sample(
            image=self.images[position],
            label=int(self.labels[position]),
            index=int(self.indices[position]),
        )

    def take(self, positions: Integer[np.ndarray, " m"]) -> "Arrays":
        """The samples at `positions` `[m]`, in that order."""
        return Arrays(
            self.images[positions],
            self.labels[positions],
            self.indices[positions],
            paths_at(self, positions),
        )


@dataclass(frozen=True)
class ImageDataset:
    """A labelled image data set: `class_names[label]` is a label's name in all splits.

    Attributes:
        validation: a split of its own for validation; None where there is none.
        calibration: images that stand for those of an empty `train` where converters are
            calibrated; None where `train` has images.

    Raises:
        ValueError: a label held in memory has no class name (other sources check as they read).
    """

    name: str
    class_names: tuple[str, ...]
    train: _Split
    test: _Split
    validation: _Split | None = None
    calibration: _Split | None = None

    def __post_init__(self) -> None:
        for name, source in (("train", self.train), ("test", self.test)):
            if isinstance(source, Arrays) and len(source):
                position = int(source.labels.argmax())
                try:
                    check_label(int(source.labels[position]), len(self.class_names))
                except ValueError as error:
                    raise ValueError(f"{name}, position {position}: {error}") from error


def check_label(label: int, num_classes: int) -> None:
    """Raise ValueError unless `0 <= label < num_classes`."""
    if not 0 <= label < num_classes:
        raise ValueError(f"label {label} is outside the {num_classes} classes of the data set")


def check_unique(indices: Integer[np.ndarray, " n"]) -> None:
    """Raise ValueError if two indices are equal."""
    unique, counts = np.unique(indices, return_counts=True)
    if len(unique) < len(indices):
        raise ValueError(
            f"indices must be unique, but {unique[counts > 1][0]} occurs {counts.max()} times"
        )


def samples_at(source: Any, positions: np.ndarray) -> Iterator[Sample]:
    """The samples at `positions` `[m]`, in that order, many at once where the source can."""
    if not hasattr(source, "__getitems__"):
        yield from (source[position] for position in positions.tolist())
        return
    for start in range(0, len(positions), _CHUNK):
        yield from source.__getitems__(positions[start : start + _CHUNK].tolist())


def paths_at(
    source: Any, positions: Integer[np.ndarray, " m"] | Sequence[int] | slice
) -> np.ndarray | None:
    """The files of the samples at `positions`, `[m]`; None where the source names none.

    Raises:
        ValueError: the source names not one for each sample.
    """
    paths = getattr(source, "paths", None)
    if paths is None:
        return None
    if len(paths) != len(source):
        raise ValueError(
            f"{len(source)} samples and {len(paths)} paths: there must be one of each a sample"
        )
    if not isinstance(positions, slice):
        positions = np.asarray(positions, np.int64)
    return np.asarray(paths, object)[positions]


def path_column(
    source: Any, positions: Integer[np.ndarray, " m"] | Sequence[int] | slice
) -> dict[str, np.ndarray]:
    """The column `path` of a table of the samples at `positions`: str objects `[m]`.

    What of a file's name is no Unicode stands there escaped, as in `caf\\xe9.png`.

    Returns:
        The column by its name; nothing where the source names no files.

    Raises:
        ValueError: the source names not one file for each sample.
    """
    paths = paths_at(source, positions)
    if paths is None:
        return {}
    texts = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
    return {"path": np.array(texts, object)}
