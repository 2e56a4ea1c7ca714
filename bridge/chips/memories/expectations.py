"""Moments of normals that are cut, folded or held within bounds, elementwise in float64.

With z a standard normal, Phi its distribution and phi its density.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.floating[Any]]

_TINY = 1e-300


class DeviceMoments(NamedTuple):
    """What can be expected of each weight of a tile, float64 `[rows, columns]`, the largest of the
    tile's targets 1; compensation of drift is not in it."""

    mean: Floats
    """Mean of the weight read at `t_inference`."""
    variance: Floats
    """Its variance."""
    magnitude: Floats
    """Mean of its magnitude."""
    programmed: Floats
    """Mean magnitude of the weight right after programming."""


def density(x: Floats) -> Floats:
    """phi."""
    return np.exp(-0.5 * np.clip(x, -40, 40) ** 2) / np.sqrt(2 * np.pi)  # 0 from there on


def rectified(mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """First and second moment of max(0, mean + spread z), mean >= 0.

    With c = mean / spread: mean Phi(c) + spread phi(c), and (mean^2 + spread^2) Phi(c) + mean
    spread phi(c). (The rectified normal: Socci, Lee and Seung, NIPS 1997.)
    """
    c = mean / np.maximum(spread, _TINY)
    above, at = ndtr(c), density(c)
    first = mean * above + spread * at
    return first, (mean * mean + spread * spread) * above + mean * spread * at


def folded(mean: Floats, spread: Floats) -> Floats:
    """Mean of |mean + spread z|: spread sqrt(2 / pi) exp(-c^2 / 2) + mean (1 - 2 Phi(-c)), c = mean
    / spread (the folded normal: Leone, Nelson and Nottingham, Technometrics 1961)."""
    c = mean / np.maximum(spread, _TINY)
    return 2 * spread * density(c) + mean * (1 - 2 * ndtr(-c))


def decay(rate: float, mean: Floats, spread: Floats) -> Floats:
    """Mean of exp(-rate |mean + spread z|): the folded normal's moment-generating function.

    exp(r^2 s^2 / 2) (exp(-r m) Phi(m / s - r s) + exp(r m) Phi(-m / s - r s)).
    """
    c, shift = mean / np.maximum(spread, _TINY), rate * spread
    grown = np.exp(0.5 * shift * shift)
    found: Floats = grown * (
        np.exp(-rate * mean) * ndtr(c - shift) + np.exp(rate * mean) * ndtr(-c - shift)
    )
    return found


def bounded(mean: Floats, spread: Floats, lowest: Floats, highest: Floats) -> tuple[Floats, Floats]:
    """First and second moment of mean + spread z held within two bounds.

    lowest Phi(a) + highest Phi(-b) + mean (Phi(b) - Phi(a)) + spread (phi(a) - phi(b)), with a and
    b the bounds in units of the spread around the mean; alike the second (integration by parts).
    """
    spread = np.maximum(spread, _TINY)
    a, b = (lowest - mean) / spread, (highest - mean) / spread
    below, beyond, at_a, at_b = ndtr(a), ndtr(-b), density(a), density(b)
    within = 1 - below - beyond
    first = lowest * below + highest * beyond + mean * within + spread * (at_a - at_b)
    second = lowest**2 * below + highest**2 * beyond + (mean**2 + spread**2) * within
    second += spread * ((lowest + mean) * at_a - (highest + mean) * at_b)
    return first, second
