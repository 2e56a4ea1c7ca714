"""How far the weights of one tile are off, as mean and variance; without torch."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bridge.chips.memories.expectations import DeviceMoments, Floats, folded
from bridge.chips.memories.protocol import GivesMoments
from bridge.chips.profiles import Profile

_SMALLEST = 1e-4  # of a reading's mean magnitude, the largest target being 1; AIHWKit's


class TileMoments(NamedTuple):
    """Mean and variance of each weight's deviation from its target, float64 `[rows, columns]`, in
    units of the tile's largest target."""

    mean: Floats
    variance: Floats


def tile_moments(
    profile: Profile, targets: NDArray[Any], devices: DeviceMoments | None
) -> TileMoments:
    """Moments of a tile's weights, compensation and frozen weight noise included.

    A compensation's factor is taken as the ratio of expectations, mean magnitude before over mean
    magnitude read; what it varies by is left out, and so are converters in its readings. Noise of
    operations is in them, for which a weight counts as its mean magnitude. With f the factor, mu
    and V the read weight's mean and variance, and sigma the weight noise:

        mean = f mu - target,    variance = f^2 (V + sigma^2 h)

    h is 1 ("constant") or the mean magnitude of the read weight ("pcm_read").

    Args:
      profile: its compensation and noise.
      targets: `[rows, columns]`, the largest magnitude 1, or all 0.
      devices: what the memory gives for them, in their unit; None without a memory.
    """
    targets = np.asarray(targets, np.float64)
    mean: Floats = np.zeros(targets.shape)
    variance: Floats = np.zeros(targets.shape)
    magnitude: Floats = np.abs(targets)
    factor: Floats = np.ones(())
    if devices is not None and profile.memory is not None:
        factor = _factor(profile, targets, devices)
        mean = factor * devices.mean - targets
        variance, magnitude = devices.variance, devices.magnitude
    noise = profile.wnoise
    if noise is not None and noise.drawn == "per_chip":
        share = magnitude if noise.kind == "pcm_read" else float(targets.any())
        variance = variance + noise.sigma**2 * share
    return TileMoments(mean, factor**2 * variance)


def _factor(profile: Profile, targets: Floats, devices: DeviceMoments) -> Floats:
    """A compensation's factor, without a unit: `[]` for the tile, or `[rows, 1]`."""
    compensation = None if profile.memory is None else profile.memory.compensation
    if compensation is None:
        return np.ones(())
    exact, columns = compensation == "global_exact", compensation == "per_column"
    before = np.abs(targets) if exact else _read(profile, devices.programmed)
    after = _read(profile, devices.magnitude)
    means = (
        np.maximum(one.mean(1 if columns else None, keepdims=columns), _SMALLEST)
        for one in (before, after)
    )
    return np.asarray(np.divide(*means))


def _read(profile: Profile, magnitudes: Floats) -> Floats:
    """Mean magnitudes of weights as one operation reads them, with its noise."""
    noise, variance = profile.noise_of_operations, np.zeros(magnitudes.shape)
    if noise is not None:
        variance += noise.sigma**2 * (magnitudes if noise.kind == "pcm_read" else 1.0)
    if profile.out_noise is not None:
        variance += profile.out_noise.sigma**2
    return folded(magnitudes, np.sqrt(variance)) if variance.any() else magnitudes


def as_moments(memory: GivesMoments, targets: NDArray[Any]) -> DeviceMoments:
    """A memory's moments of one tile, float64.

    Args:
      memory: may be the user's own.
      targets: `[rows, columns]`, the largest magnitude 1, or all 0.

    Raises:
      ValueError: a memory of the user's own gives something else than four arrays like the targets.
    """
    found = tuple(memory.moments(targets))
    arrays = [np.asarray(one, np.float64) for one in found]
    if len(arrays) != 4 or any(one.shape != targets.shape for one in arrays):
        raise ValueError(
            f"{type(memory).__name__}.moments must return mean, variance, mean magnitude and mean "
            f"magnitude right after programming, each of the targets' shape {targets.shape}; got "
            f"shapes {', '.join(str(one.shape) for one in arrays)}"
        )
    return DeviceMoments(*arrays)
