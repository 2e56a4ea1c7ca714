"""Moments of weights in phase-change memories; the formulas are in `jax_chips.devices.drifting`.

A weight's mean and variance are taken over its programmed value v and the largest programmed
magnitude m of its tile, m >= |v|, on the nodes of `weight_distributions`. Given both, the devices
have the conductances g of v / m. Each is read as g T^-nu (1 + sigma z), not below 0, with T = (t +
t_0) / t_0 and moments that are known: those of T^-nu (`expectations.decay`), whose nu the device
has of its target, times those of the read noise (`expectations.rectified`). For the mean magnitude
alone a weight whose devices of both signs conduct counts as normal, given v and m.
"""

import math
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bridge.chips.memories import measured
from bridge.chips.memories.conductances import WeightMapping
from bridge.chips.memories.expectations import DeviceMoments, Floats, decay, folded, rectified
from bridge.chips.memories.pairs import ZERO, split
from bridge.chips.memories.protocol import Ageing
from bridge.chips.memories.weight_distributions import Distributions, distributions


class Drifting(Ageing, Protocol):
    """A phase-change memory."""

    @property
    def mapping(self) -> WeightMapping: ...
    @property
    def full_scale(self) -> float: ...
    @property
    def constants(self) -> measured.PhaseChange: ...


def moments(memory: Drifting, targets: NDArray[Any]) -> DeviceMoments:
    """Moments of the weights of one tile.

    Args:
      memory: its settings.
      targets: `[rows, columns]`, the largest magnitude 1, or all 0.
    """
    targets = np.asarray(targets, np.float64)
    unit = 1.0 if targets.any() else ZERO
    table = _table(memory.mapping, memory.full_scale, memory.constants, memory.programming_noise)
    largest, chances = table.largest(targets)
    floor = ZERO / unit
    value = table.weights[:, :, None]
    m = np.maximum(np.maximum(np.abs(value), largest[:, None, :]), floor)
    mean, variance, magnitude = _read(memory, table, value / m)
    mass = table.mass[:, :, None] * chances

    def expected(values: Floats) -> Floats:
        return (mass * values).sum((1, 2))

    first = expected(m * mean)
    second = expected(m**2 * (variance + mean**2))
    found = (
        unit * first,
        unit**2 * np.maximum(second - first**2, 0.0),
        unit * expected(m * magnitude),
        unit * (table.mass * np.abs(table.weights)).sum(1),
    )
    return DeviceMoments(*(table.at(targets, one) for one in found))


@lru_cache(maxsize=8)
def _table(
    mapping: WeightMapping, g_max: float, constants: measured.PhaseChange, factor: float
) -> Distributions:
    def spread(g: Floats) -> Floats:
        found: Floats = measured.spread(constants.programming, constants.reference, g_max, g)
        return factor * found

    return distributions(mapping, g_max, spread)


def _read(
    memory: Drifting, table: Distributions, relative: Floats
) -> tuple[Floats, Floats, Floats]:
    """Mean, variance and mean magnitude of weights that were programmed to `relative` of the
    tile's largest, in its unit, `[targets, nodes, largest]`."""
    constants, g_max = memory.constants, memory.full_scale
    t = memory.t_inference + constants.t_0
    growth = math.sqrt(math.log((t + constants.t_read) / (2 * constants.t_read)))
    rate = memory.drift * math.log(t / constants.t_0)
    mean, variance = np.zeros(relative.shape), np.zeros(relative.shape)
    plus, minus = np.zeros(relative.shape), np.zeros(relative.shape)
    conductances, _ = split(memory.mapping, relative, g_max, largest=1.0)
    devices = zip(conductances, table.conductances, table.currents, strict=True)
    for g, target, current in devices:
        exponent = constants.exponent(np.maximum(target / g_max, measured.SMALLEST))
        kept, squared = (decay(n * rate, *exponent)[:, None, None] for n in (1, 2))
        sigma = constants.read_noise(g / g_max) * growth * memory.read_noise
        read, read_squared = rectified(np.ones(()), sigma)
        first = g * kept * read
        mean += current * first
        variance += current**2 * np.maximum(g**2 * squared * read_squared - first**2, 0.0)
        (plus if current > 0 else minus)[...] += g
    # Where all devices of a sign are at 0, the weight has the other sign for certain.
    opposed = (plus > 0) & (minus > 0)
    magnitude = np.where(opposed, folded(mean, np.sqrt(variance)), np.abs(mean))
    return mean, variance, magnitude
