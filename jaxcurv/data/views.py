"""Views of a source: some of its samples, or the same ones with other labels. They decode nothing
before they are read."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Integer

from jaxcurv.data.sources import Sample, Source, check_unique, paths_at, samples_at
from jaxcurv.progress import progress


@dataclass(frozen=True, eq=False)
class Chosen:
    """The samples of a source at some positions `[m]`, in that order."""

    source: Source
    positions: np.ndarray

    @property
    def indices(self) -> np.ndarray:
        """Stable indices of the chosen samples, where the source has them."""
        return np.asarray(self.source.indices)[self.positions]  # type: ignore[attr-defined]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the chosen samples, where the source has them."""
        return np.asarray(self.source.labels)[self.positions]  # type: ignore[attr-defined]

    @cached_property
    def paths(self) -> np.ndarray | None:
        """The files of the chosen samples, where the source has them."""
        return paths_at(self.source, self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, position: int, /) -> Sample:
        return self.source[int(self.positions[position])]

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        return list(samples_at(self.source, self.positions[positions]))

    def take(self, positions: Integer[np.ndarray, " k"]) -> "Chosen":
        """The chosen samples at `positions` `[k]`, in that order."""
        return Chosen(self.source, self.positions[positions])


@dataclass(frozen=True, eq=False)
class Labelled:
    """The samples of a source with other labels (int32 `[n]`) and indices (int64 `[n]`).

    Raises:
        ValueError: there is not one of each a sample, or two indices are equal.
    """

    source: Source
    labels: np.ndarray
    indices: np.ndarray

    def __post_init__(self) -> None:
        if not len(self.source) == len(self.labels) == len(self.indices):
            raise ValueError(
                f"{len(self.source)} samples, {len(self.labels)} labels and {len(self.indices)} "
                "indices: there must be one of each a sample"
            )
        check_unique(self.indices)

    @property
    def paths(self) -> np.ndarray | None:
        """The files of all samples, where the source has them."""
        return paths_at(self.source, slice(None))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: int, /) -> Sample:
        return self._named(position, self.source[position])

    def __getitems__(self, positions: Sequence[int]) -> list[Sample]:
        samples = samples_at(self.source, np.asarray(positions, np.int64))
        return [self._named(*pair) for pair in zip(positions, samples, strict=True)]

    def _named(self, position: int, sample: Sample) -> Sample:
        return Sample(
            image=sample["image"],
            label=int(self.labels[position]),
            index=int(self.indices[position]),
        )


def with_labels(source: Source, *, description: str = "reading labels") -> Labelled:
    """A source with the labels and indices of all its samples at hand.

    They are the source's own `labels` and `indices` where it has both; else each sample is read
    once, and its image let go.

    Raises:
        ValueError: two samples share an index.
    """
    if hasattr(source, "labels") and hasattr(source, "indices"):
        labels, indices = source.labels, source.indices
    else:
        pairs = []
        with progress(len(source), description, side=True) as shown:
            for sample in samples_at(source, np.arange(len(source))):
                pairs.append((sample["label"], sample["index"]))
                shown.update()
        labels, indices = zip(*pairs, strict=True) if pairs else ((), ())
    return Labelled(source, np.asarray(labels, np.int32), np.asarray(indices, np.int64))
