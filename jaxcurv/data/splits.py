"""Random choices of samples which depend on the stable indices and the seed alone."""

import numpy as np
from jaxtyping import Int64, Integer

from jaxcurv.settings import is_number, is_whole, plain, require_whole


def split_validation(
    indices: Integer[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " validation"]]:
    """Positions of the training and the validation samples, each sorted by stable index.

    The same samples are chosen whatever the order of storage. A fraction of 0 leaves validation
    empty.

    Raises:
        ValueError: the fraction is not in `[0, 1)`, or so small or large that a side has no sample.
    """
    fraction, seed = plain(fraction), require_whole("the seed", seed, 0)
    if not is_number(fraction) or not 0 <= fraction < 1:
        raise ValueError(f"the validation fraction must be in [0, 1), not {fraction!r}")
    count = round(fraction * len(indices))
    if fraction > 0 and not 0 < count < len(indices):
        raise ValueError(
            f"a validation fraction of {fraction} of {len(indices)} samples leaves a side empty"
        )
    chosen, order = _shuffled_ranks(len(indices), seed, stream=0), np.argsort(indices)
    return order[np.sort(chosen[count:])], order[np.sort(chosen[:count])]


def subset(
    indices: Integer[np.ndarray, " n"], limit: int | None, seed: int
) -> Int64[np.ndarray, " m"]:
    """Positions of at most `limit` samples (None: all), sorted by stable index.

    The choice is nested: with one seed, the samples of a smaller limit are among a larger one's.

    Raises:
        ValueError: the limit is less than 1.
    """
    limit, seed = plain(limit), require_whole("the seed", seed, 0)
    if limit is not None and (not is_whole(limit) or limit < 1):
        raise ValueError(f"the limit must be at least 1 sample, not {limit!r}")
    chosen, order = _shuffled_ranks(len(indices), seed, stream=1), np.argsort(indices)
    return order[np.sort(chosen[:limit])]


def _shuffled_ranks(count: int, seed: int, stream: int) -> np.ndarray:
    # NumPy promises the raw bits of a bit generator across releases, but not Generator's methods.
    bits = np.random.PCG64([seed, stream]).random_raw(count)
    return np.argsort(bits, kind="stable")
