"""Checks of arguments that the rooms of the bridge share."""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt

from jaxcurv.settings import is_number, is_whole, plain, require_whole


def vector(name: str, values: npt.ArrayLike, kinds: str, want: str) -> npt.NDArray:
    """A vector whose dtype is of one of these kinds.

    Raises:
        ValueError: it is not; `want` says what it should hold.
    """
    array = _without_objects(name, np.asarray(values))
    if array.ndim != 1 or array.dtype.kind not in kinds:
        raise ValueError(f"{name} must be a vector of {want}; got {array.dtype} {array.shape}")
    return array


def _without_objects(name: str, array: npt.NDArray) -> npt.NDArray:
    """The array; as bools where it is of objects that are, as after `merge` and `dropna`.

    Raises:
      ValueError: objects some of which are missing, as `reindex` leaves them.
    """
    if array.dtype.kind != "O" or array.ndim == 0:
        return array
    import pandas as pd  # settings, which are checked here too, start without it

    missing = pd.isna(array)
    if missing.any():
        samples = int(missing.reshape(-1, array.shape[-1]).any(axis=0).sum())
        raise ValueError(
            f"{name} is missing (NaN) for {samples} of {array.shape[-1]} samples: give the samples "
            "that all inputs have, as with dropna() and the .reindex(its.index) of the others"
        )
    if all(isinstance(one, bool | np.bool_) for one in array.flat):
        return array.astype(np.bool_)
    return array


def real_scores(values: npt.ArrayLike, name: str = "score") -> npt.NDArray[np.float64]:
    """Scores as float64 [samples].

    Raises:
        ValueError: they are no vector of real numbers, or some are NaN.
    """
    array = vector(name, values, "fiu", "real numbers").astype(np.float64)
    if missing := int(np.isnan(array).sum()):
        raise ValueError(f"{name} has {missing} NaN of {len(array)}; score these samples again")
    return array


_QUANTILES = 100
"""Up to so many values a score may well have each equally often: it may be its decile's rate."""


def warn_of_repeated_samples(score: npt.NDArray[np.float64], outcomes: str) -> None:
    """Warns of a score [samples] that has each of its values twice, three times or the like.

    So has a long table of several chips, a row a chip and sample, whose rows would be taken for so
    many samples: intervals would be too narrow, and held-out samples known. Not seen: chips that
    did not all run on the same samples, and scores of at most a hundred values, as bins have.

    Args:
        score: a score of each row.
        outcomes: the argument that takes several chips.
    """
    _, counts = np.unique(score, return_counts=True)
    times = int(np.gcd.reduce(counts)) if len(counts) > _QUANTILES else 1
    if times > 1:
        warnings.warn(
            f"every value of the score is there {times} times: of a long table with a row for each "
            f"chip and sample give each sample once, and {outcomes} as [chips, samples], such as "
            "table.pivot(index='chip', columns='index', values='correct'); these rows count as "
            "samples of their own, which makes intervals too narrow",
            stacklevel=3,
        )


def scores_of_chips(
    values: npt.ArrayLike, chips: int, name: str = "score"
) -> npt.NDArray[np.float64]:
    """A score of the samples as float64 [1, samples], or one of each chip's own [chips, samples].

    Raises:
        ValueError: as `real_scores`; and for another number of chips.
    """
    rows = rows_of_chips(name, values)
    if rows.ndim != 2:
        return real_scores(rows, name)[None]
    if len(rows) != chips:
        raise ValueError(f"{len(rows)} chips have scores and {chips} outcomes; give both")
    return np.stack([real_scores(row, name) for row in rows])


def chips_of(name: str, values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """One chip's outcomes [samples], or several chips', as bool [chips, samples].

    Raises:
        ValueError: for other dtypes or shapes, and no chip.
    """
    array = _without_objects(name, rows_of_chips(name, values))
    if array.dtype != np.bool_ or array.ndim not in (1, 2) or array.shape[0] == 0:
        raise ValueError(
            f"{name} must be bools [samples], or [chips, samples], such as prediction == label; "
            f"got {array.dtype} {array.shape}"
        )
    return np.atleast_2d(array)


def rows_of_chips(name: str, values: npt.ArrayLike) -> npt.NDArray:
    """An array of one chip's samples, or of a row a chip.

    Raises:
        ValueError: the chips are not all of as many samples.
    """
    if isinstance(values, list | tuple):
        lengths = {np.shape(row)[-1] for row in values if np.ndim(row)}
        if len(lengths) > 1:
            raise ValueError(
                f"{name} has chips of {' and '.join(map(str, sorted(lengths)))} samples; give "
                "those of the same samples for each"
            )
    return np.asarray(values)


def sample_indices(indices: npt.ArrayLike | None, samples: int) -> npt.NDArray:
    """Unique stable indices; positions if None.

    Raises:
        ValueError: they are no vector of integers, of another length, or repeated.
    """
    if indices is None:
        return np.arange(samples)
    array = vector("indices", indices, "iu", "integers")
    if len(array) != samples:
        raise ValueError(f"{samples} samples need as many indices, not {len(array)}")
    if len(np.unique(array)) < samples:
        raise ValueError("indices must be unique; make them so before pooling folds")
    return array


def same_length(**arrays: npt.NDArray) -> None:
    """Refuses arrays of unequal numbers of samples (the last axis), naming them."""
    if len({array.shape[-1] for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{name} {array.shape[-1]}" for name, array in arrays.items())
        raise ValueError(f"lengths differ: {lengths}; pass the same samples in the same order")


def require_confidence(confidence: float) -> float:
    """A confidence in (0, 1) as a float; refuses others."""
    return require_between_0_and_1("confidence", confidence)


def require_between_0_and_1(name: str, value: float) -> float:
    """A number in (0, 1) as a float; refuses others."""
    number = plain(value)
    if not is_number(number) or not 0 < number < 1:
        raise ValueError(f"{name} must lie between 0 and 1; got {value!r}")
    return float(number)


def require_resamples(resamples: int) -> int:
    """The number of resamples as an int; refuses a bootstrap without any."""
    return require_count("resamples", resamples)


def require_count(name: str, count: int, least: int = 1) -> int:
    """A whole number as an int; refuses what is none, or a smaller one than `least`."""
    return require_whole(name, count, least)


def require_seed(seed: int) -> int:
    """A seed as an int; refuses what is no whole number from 0 on."""
    number = plain(seed)
    if not is_whole(number) or number < 0:
        raise ValueError(f"the seed must be an integer >= 0, got {seed!r}")
    return number


def require_finite(name: str, value: float, *, positive: bool = False) -> float:
    """A number as an int or a float.

    Raises:
        ValueError: it is no finite number >= 0, or > 0 where `positive`.
    """
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not is_number(number) or number < 0 or (positive and number == 0):
        raise ValueError(f"{name} must be finite and {'> 0' if positive else '>= 0'}, got {number}")
    return number


def require_stream(stream: str | None) -> str | None:
    """Returns a stream's label; raises ValueError for an empty one, or what is no text or None."""
    if stream is not None and (not isinstance(stream, str) or not stream):
        raise ValueError(f"stream must be a text that is not empty, or None; got {stream!r}")
    return stream
