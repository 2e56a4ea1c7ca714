"""The probability that a Gaussian change of the logit margin flips a prediction; NumPy alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from jaxcurv.rows import require_same_rows


def gaussian_flip_probability(
    margin: npt.ArrayLike, shift: npt.ArrayLike, variance: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Probability that noise lifts the runner-up's logit above the prediction's.

        P = Phi(-(m + s) / sd)

    with m the digital logit margin, s and sd^2 the mean and variance of its change. It takes the
    change as Gaussian and sees the digital runner-up alone: a flip to a third class is not in it.
    Where sd = 0 it is 0, 1/2 or 1, as m + s is above, at or below 0.

    >>> gaussian_flip_probability([2.0, 2.0], [0.0, -1.0], [1.0, 1.0]).round(4)
    array([0.0228, 0.1587])

    Args:
        margin: real [samples], >= 0; largest minus second largest digital logit.
        shift: real [samples]; zeros for the probability that the spread alone gives.
        variance: real [samples], >= 0, in squared units of the margin; of independent sources, the
            sum of theirs. Where the mean is estimated, its squared standard error is one of them.

    Returns:
        float64 [samples] in [0, 1].

    Raises:
        ValueError: for NaN or infinite values, negative margins or variances, other dtypes or
            shapes.
    """
    require_same_rows(margin=margin, shift=shift, variance=variance)
    m, s, v = _vector("margin", margin), _vector("shift", shift), _vector("variance", variance)
    if not len(m) == len(s) == len(v):
        raise ValueError(
            f"lengths differ: margin {len(m)}, shift {len(s)}, variance {len(v)}; pass the same "
            "samples in the same order"
        )
    if len(m) and m.min() < 0:
        raise ValueError(
            f"margin must not be negative, got {m.min():g}; give the largest minus the second "
            "largest digital logit, not a score of fragility"
        )
    if len(v) and v.min() < 0:
        raise ValueError(f"variance must not be negative, got {v.min():g}; check the moments")
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        # Both sides a fourth, which is exact, so that neither overflows.
        ratio = (m / 4 + s / 4) / np.sqrt(v / 8)
        total = m + s
    ratio = np.where(v > 0, ratio, np.copysign(np.inf, total))
    ratio[total == 0] = 0.0
    return np.array([math.erfc(value) / 2 for value in ratio])


def _vector(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{name} must be a vector of real numbers; got {array.dtype} {array.shape}"
        )
    array = array.astype(np.float64)
    for what, count in (("NaN", np.isnan(array).sum()), ("infinite", np.isinf(array).sum())):
        if count:
            raise ValueError(
                f"{name} has {count} {what} values of {len(array)}; check the model and the moments"
            )
    return array
