"""What was measured of the memories that ship: constants and curves, for NumPy and for JAX.

Curves take arrays of either and return the same kind. Conductances are in microsiemens, or relative
to `g_max` where an argument is called `r`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Values = Any
"""An array of NumPy or JAX."""

SMALLEST = 1e-7
"""Smallest relative conductance in the logarithms; AIHWKit's."""


class PhaseChange(NamedTuple):
    """A phase-change memory; see `bridge.jax_chips.devices.drifting` for the formulas."""

    programming: tuple[float, ...]
    """Coefficients of sigma_p in microsiemens, from the constant one on, at the reference."""
    reference: float
    """The `g_max` at which they were fitted, microsiemens."""
    t_0: float
    """Time of the first reading, seconds."""
    t_read: float
    """Duration of a reading, seconds."""
    exponent: Callable[[Values], tuple[Values, Values]]
    """Mean and standard deviation of the drift exponent nu."""
    read_noise: Callable[[Values], Values]
    """The factor q."""


def spread(coefficients: tuple[float, ...], reference: float, g_max: float, g: Values) -> Values:
    """Standard deviation of conductances around their targets g, microsiemens.

    A polynomial in `g / g_max`, its coefficients from the constant one on, fitted at `reference`.
    """
    xp = g.__array_namespace__()
    return xp.polyval(xp.asarray(coefficients[::-1]), g / g_max) * (g_max / reference)


def _pcm_exponent(r: Values) -> tuple[Values, Values]:
    xp = r.__array_namespace__()
    log = xp.log(r)
    mean = xp.clip(-0.0155 * log + 0.0244, 0.049, 0.1)
    return mean, xp.clip(-0.0125 * log - 0.0059, 0.008, 0.045)


def _pcm_read_noise(r: Values) -> Values:
    xp = r.__array_namespace__()
    # AIHWKit's bound of 1e-3 on the power, which has a derivative at 0 on this side of it.
    power = xp.maximum(r, 1e-3 ** (1 / 0.65)) ** 0.65
    return xp.minimum(0.0088 / power, 0.2)


PCM = PhaseChange(
    programming=(0.26348, 1.9650, -1.1731),
    reference=25.0,
    t_0=20.0,
    t_read=250e-9,
    exponent=_pcm_exponent,
    read_noise=_pcm_read_noise,
)
"""Nandakumar et al. (ICECS 2019): AIHWKit's PCMLikeNoiseModel."""


def _hermes_mean(r: Values) -> Values:
    xp = r.__array_namespace__()
    low = xp.clip(-0.0387 * xp.log(r) - 0.0182, 0.0720, 0.13)
    return xp.where(r < 0.0945, low, -0.0436 * r**2 - 0.0126 * r + 0.0736)


def _one_exponent(r: Values) -> tuple[Values, Values]:
    xp = r.__array_namespace__()
    low = xp.clip(-0.0120 * xp.log(r) - 0.0023, 0.0124, 0.04)
    return _hermes_mean(r), xp.where(r < 0.3039, low, -0.0165 * r**2 + 0.0116 * r + 0.0104)


def _two_exponents(r: Values) -> tuple[Values, Values]:
    xp = r.__array_namespace__()
    low = xp.clip(-0.0117 * xp.log(r) - 0.0057, 0.0091, 0.04)
    return _hermes_mean(r), xp.where(r < 0.3055, low, -0.0118 * r**2 + 0.0093 * r + 0.0073)


def _log(r: Values) -> Values:
    xp = r.__array_namespace__()
    return xp.log(xp.maximum(r, SMALLEST))  # of 0 too, where the clip decides


def _one_read_noise(r: Values) -> Values:
    xp = r.__array_namespace__()
    low = xp.clip(-0.0078 * _log(r) + 0.0038, 0.0179, 0.04)
    return xp.where(r < 0.1591, low, 0.0664 * r**3 - 0.1352 * r**2 + 0.0768 * r + 0.0088)


def _two_read_noises(r: Values) -> Values:
    xp = r.__array_namespace__()
    low = xp.clip(-0.0117 * _log(r) - 0.0069, 0.015, 0.04)
    return xp.where(r < 0.16, low, 0.0069 * r**3 - 0.0280 * r**2 + 0.0211 * r + 0.0123)


HERMES = {
    1: PhaseChange(
        programming=(0.15781817, 2.32443916, -2.16310839, 0.68841818),
        reference=10.35,
        t_0=200.0,
        t_read=512e-9,
        exponent=_one_exponent,
        read_noise=_one_read_noise,
    ),
    2: PhaseChange(
        programming=(0.16603222, 4.71806468, -8.48101252, 4.68961419),
        reference=20.7,
        t_0=300.0,
        t_read=512e-9,
        exponent=_two_exponents,
        read_noise=_two_read_noises,
    ),
}
"""The HERMES chip (Le Gallo et al., 2023), AIHWKit's HermesNoiseModel, by the devices for each sign
of a weight."""

WAN2022_REFERENCE = 40.0
"""The `g_max` at which the spread was fitted, microsiemens."""

WAN2022_SPREAD = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    86400.0: (0.701, 22.086, -50.773, 47.095, -16.458),
    172800.0: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Coefficients of sigma in microsiemens, from the constant one on, by seconds since programming
(Wan et al., Nature 2022)."""

CMO_PROGRAMMING = {0.2: (0.00081107, 0.00106879), 2.0: (0.0112185391, 0.01129027418)}
"""a and b of the spread a + b g in microsiemens, by the acceptance range in percent (Falcone et
al.; AIHWKit's ReRamCMONoiseModel)."""
CMO_DECAY_MEAN = -0.08900206
"""m."""
CMO_DECAY_SPREAD = (0.04201137, 0.41183342)
"""r and r_0."""
CMO_READ = 0.0277316483
"""K."""
CMO_T_READ = 1e-6
"""Seconds."""
