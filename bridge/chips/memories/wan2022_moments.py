"""Moments of weights in resistive memory after Wan et al. (Nature 2022).

The devices of a weight are read as max(0, g + s sigma(g) z) around their targets g: rectified
normals, whose moments are known (`expectations.rectified`), and the distribution of the weight from
`weight_distributions`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge.chips.memories import measured
from bridge.chips.memories.conductances import WeightMapping
from bridge.chips.memories.expectations import DeviceMoments, Floats
from bridge.chips.memories.pairs import ZERO
from bridge.chips.memories.weight_distributions import Distributions, distributions


def moments(
    mapping: WeightMapping, g_max: float, noise: float, t_inference: float, targets: NDArray[Any]
) -> DeviceMoments:
    """Moments of the weights of one tile.

    Args:
      mapping, g_max, noise, t_inference: the memory's settings.
      targets: `[rows, columns]`, the largest magnitude 1, or all 0.
    """
    targets = np.asarray(targets, np.float64)
    unit = 1.0 if targets.any() else ZERO

    def at(time: float) -> Distributions:
        def spread(g: Floats) -> Floats:
            coefficients = measured.WAN2022_SPREAD[time]
            found: Floats = measured.spread(coefficients, measured.WAN2022_REFERENCE, g_max, g)
            return noise * found

        return distributions(mapping, g_max, spread)

    before, later = at(min(measured.WAN2022_SPREAD)), at(t_inference)
    mean = (later.mass * later.weights).sum(1)
    variance = (later.mass * (later.weights - mean[:, None]) ** 2).sum(1)
    return DeviceMoments(
        unit * later.at(targets, mean),
        unit**2 * later.at(targets, variance),
        unit * later.at(targets, (later.mass * np.abs(later.weights)).sum(1)),
        unit * before.at(targets, (before.mass * np.abs(before.weights)).sum(1)),
    )
