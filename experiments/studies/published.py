"""Figures of single training images that others computed and published, read from their files.

Whatever is in such a file, it is checked before anything is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from experiments.runs.files import sha256

_CSCORES = "takes an .npz file with scores and labels of every training image"
_RANKING = "--validate.ranking takes an .npy file with the index of every training image once"


@dataclass(frozen=True)
class Reference:
    """One figure of every training image."""

    name: str
    """Its name in tables."""
    title: str
    """What figures and tables printed call it."""
    path: Path
    values: npt.NDArray[np.float64]
    """By the official index of the image, `[images]`."""
    labels: npt.NDArray[np.int64] | None
    """Labels by official index, `[images]`; None where the file has none."""
    digest: str
    """The file's SHA-256."""

    def at(self, indices: npt.NDArray, labels: npt.NDArray) -> npt.NDArray[np.float64]:
        """The figures of some images, float64 `[n]`.

        Args:
          indices: their official indices `[n]`.
          labels: their labels in the run's data set `[n]`.

        Raises:
          ValueError: the file is of another data set: it ends before an index, or has other labels.
        """
        another = "it is of another data set: give the file of the one that the network trained on"
        if (highest := int(indices.max(initial=-1))) >= len(self.values):
            raise ValueError(
                f"{self.path} has {len(self.values):,} figures and no index {highest:,}, which the "
                f"run has scored: {another}"
            )
        if self.labels is not None and (other := self.labels[indices] != labels).any():
            raise ValueError(
                f"{self.path} has other labels at {int(other.sum()):,} of {len(indices):,} images, "
                f"the first at index {indices[other][0]}: {another}"
            )
        return self.values[indices]


def read_references(cscores: str | None, ranking: str | None) -> tuple[Reference, ...]:
    """The references that flags name.

    Args:
      cscores: as for `read_cscores`; None for none.
      ranking: as for `read_ranking`; None for none.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no file is named, what `read_cscores` or `read_ranking` refuses, or the two are of
        other numbers of images.
    """
    found = []
    if cscores is not None:
        found.append(read_cscores(Path(cscores)))
    if ranking is not None:
        found.append(read_ranking(Path(ranking)))
    if not found:
        raise ValueError(
            "validate compares with what others published: give --validate.cscores FILE.npz, "
            "--validate.ranking FILE.npy, or both"
        )
    if len({len(one.values) for one in found}) > 1:
        raise ValueError(
            f"{found[0].path} has {len(found[0].values):,} images and {found[1].path} "
            f"{len(found[1].values):,}: give files of one data set"
        )
    return tuple(found)


def read_cscores(path: Path, flag: str = "--validate.cscores") -> Reference:
    """Consistency scores: `scores` and `labels` of every training image, in the official order.

    A score is the estimated probability that networks trained without the image get it right: high
    for what is regular. Source of such files: Z. Jiang, C. Zhang, K. Talwar, M. C. Mozer,
    "Characterizing Structural Regularities of Labeled Data in Overparameterized Models", ICML 2021.

    Args:
      path: an .npz file with `scores`, numbers `[images]`, and `labels`, whole numbers `[images]`.
      flag: the flag that gave it, for messages.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, no .npz, lacks one of these, or they are not as they should be.
    """
    wanted = f"{flag} {_CSCORES}"
    scores, labels = _load(path, ("scores", "labels"), wanted)
    if scores.ndim != 1 or scores.dtype.kind not in "fiu" or not len(scores):
        raise ValueError(f"scores in {path} are {scores.dtype} {scores.shape}: {wanted}")
    if labels.shape != scores.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"labels in {path} are {labels.dtype} {labels.shape} beside {scores.shape} scores: "
            f"{wanted}"
        )
    if bad := int((~np.isfinite(scores)).sum()):
        raise ValueError(
            f"{bad:,} of {len(scores):,} scores in {path} are not finite: get the file again"
        )
    return Reference(
        "cscore",
        "consistency score",
        path,
        scores.astype(np.float64),
        labels.astype(np.int64),
        sha256(path),
    )


def read_ranking(path: Path) -> Reference:
    """A ranking: the indices of all training images, from the lowest figure to the highest.

    The figure of an image is its place in it, 0 for the lowest. Source of such a file for CIFAR-100
    and input loss curvature: I. Garg, D. Ravikumar, K. Roy, "Memorization Through the Lens of
    Curvature of Loss Function Around Samples", ICML 2024, and its authors' code.

    Args:
      path: an .npy file with a permutation of 0 .. images - 1.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged, no .npy, or holds no permutation.
    """
    (order,) = _load(path, (), _RANKING)
    if order.ndim != 1 or order.dtype.kind not in "iu" or not len(order):
        raise ValueError(f"{path} holds {order.dtype} {order.shape}: {_RANKING}")
    count = len(order)
    if not np.array_equal(np.sort(order), np.arange(count)):
        there = np.intersect1d(order, np.arange(count)).size
        raise ValueError(
            f"{path} has {count:,} entries, among them {there:,} of the indices 0 to {count - 1:,}:"
            f" {_RANKING}"
        )
    rank = np.empty(count, np.float64)
    rank[order] = np.arange(count)
    return Reference("curvature_rank", "published curvature rank", path, rank, None, sha256(path))


def _load(path: Path, names: tuple[str, ...], wanted: str) -> list[npt.NDArray]:
    """Those arrays of an archive, or without names the array of a file; nothing in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: {wanted}")
    try:
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            array = isinstance(found, np.ndarray)
            there = ["one array"] if array else list(found.files)
            if array and not names:
                return [found]
            if not array and names and set(names) <= set(there):
                return [found[name] for name in names]
    except MemoryError:
        raise  # nothing is wrong with the file
    except Exception as error:  # zipfile, zlib and NumPy raise each their own for a damaged file
        raise ValueError(f"{path} is damaged or of another kind ({error}): {wanted}") from error
    raise ValueError(f"{path} holds {', '.join(there) or 'nothing'}: {wanted}")
