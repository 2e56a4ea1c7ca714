"""Moments of weights in CMO/HfOx resistive memory; the formulas are in `devices.reram_cmo`.

A weight's mean and variance are taken over its programmed value, over the lowest and the highest
programmed weight of its tile, between which the conductances are spread anew, and over the decay.
Given these, the noise of a reading is normal and held within the conductances' bounds
(`expectations.bounded`). For the mean magnitude alone the weight counts as normal.
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from bridge.chips.memories import measured
from bridge.chips.memories.expectations import DeviceMoments, Floats, bounded, folded
from bridge.chips.memories.protocol import Ageing
from bridge.chips.memories.weight_distributions import counts, quantiles

_UNIFORM = 257
_HERMITE = np.polynomial.hermite_e.hermegauss(12)
_NORMALS = np.linspace(-6, 6, 49)
_LEGENDRE = np.polynomial.legendre.leggauss(3)


class Cmo(Ageing, Protocol):
    """A memory of one device for each weight."""

    @property
    def g_max(self) -> float: ...
    @property
    def g_min(self) -> float: ...
    @property
    def acceptance(self) -> float: ...


def moments(memory: Cmo, targets: NDArray[Any]) -> DeviceMoments:
    """Moments of the weights of one tile.

    Args:
      memory: its settings.
      targets: `[rows, columns]`, the largest magnitude 1, or all 0.
    """
    targets = np.asarray(targets, np.float64)
    low, high = float(targets.min()), float(targets.max())
    scale = (memory.g_max - memory.g_min) / float(_range(np.array(low), np.array(high)))

    def spread(values: Floats) -> Floats:
        """Standard deviation of programmed weights."""
        constant, slope = measured.CMO_PROGRAMMING[memory.acceptance]
        g = (values - low) * scale + memory.g_min
        return memory.programming_noise * (constant + slope * g) / scale

    programmed = folded(targets, spread(targets))
    if memory.t_inference == 0:
        return DeviceMoments(targets, spread(targets) ** 2, programmed, programmed)
    log = math.log(memory.t_inference)
    decay = memory.drift * (measured.CMO_DECAY_SPREAD[0] * log + measured.CMO_DECAY_SPREAD[1])
    nodes = _nodes(low, high, float(spread(np.array(high))), decay / scale)
    lowest, highest, chances = _extremes(nodes, spread(nodes), targets)
    steps, weights = _HERMITE
    shift = spread(nodes)[:, None, None] * steps[:, None]
    value = nodes[:, None, None] + shift
    ranges = np.minimum(value, lowest), np.maximum(value, highest)
    first, second = _read(memory, value, *ranges, decay)
    mass = (weights / weights.sum())[:, None] * chances
    mean = (mass * (shift + first)).sum((1, 2))
    square = (mass * (shift**2 + 2 * shift * first + second)).sum((1, 2))
    at_targets = targets + np.interp(targets, nodes, mean)
    variance = np.interp(targets, nodes, np.maximum(square - mean**2, 0.0))
    return DeviceMoments(at_targets, variance, folded(at_targets, np.sqrt(variance)), programmed)


def _range(low: Floats, high: Floats) -> Floats:
    """The weights between the bounds of the conductances, also of weights that are all equal."""
    return np.where(high > low, high - low, np.where(low == 0, 1.0, np.abs(low)))


def _nodes(low: float, high: float, programming: float, later: float) -> Floats:
    """Targets that the moments are computed at, closer where the range ends, `[nodes]`.

    Args:
      low, high: the range.
      programming: spread of programmed weights.
      later: spread of what is added to them.
    """
    fine = np.concatenate([np.arange(48) * max(programming / 4, 1e-5), np.arange(96) * later / 8])
    nodes = np.concatenate([np.linspace(low, high, _UNIFORM), low + fine, high - fine])
    nodes = np.unique(np.clip(nodes, low, high))
    return nodes if len(nodes) > 1 else np.array([low, low + 1.0])


def _extremes(nodes: Floats, spreads: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
    """The lowest and the highest programmed weight of a tile's others, and their weights.

    Three nodes by target, `[nodes, 1, 3]`, as in `Distributions.largest`; low and high go together,
    for what both decide is all but linear in them.
    """
    number = counts(nodes, targets)
    points, weights = _LEGENDRE
    found = []
    for sign in (-1.0, 1.0):
        end = float((sign * targets).max())
        reach = float(spreads.max()) * np.linspace(-10, 10, 400)
        values = np.unique(end + reach) if reach.any() else end + np.linspace(-1e-12, 1e-12, 3)
        steps = (values - sign * nodes[:, None]) / np.maximum(spreads, 1e-15)[:, None]
        logs = np.maximum(log_ndtr(steps), -1e3)
        others = np.minimum(number @ logs - logs, 0.0)
        found.append(sign * quantiles(values, others, (points + 1) / 2)[:, None, :])
    return found[0], found[1], weights / 2


def _read(
    memory: Cmo, value: Floats, lowest: Floats, highest: Floats, decay: float
) -> tuple[Floats, Floats]:
    """First and second moment of the later weight less the programmed one.

    Args:
      memory: its settings.
      value: the programmed weight.
      lowest, highest: of the tile.
      decay: standard deviation of the decay, microsiemens.
    """
    scale = (memory.g_max - memory.g_min) / _range(lowest, highest)
    log = math.log(memory.t_inference)
    growth = math.sqrt(
        math.log((memory.t_inference + measured.CMO_T_READ) / (2 * measured.CMO_T_READ))
    )
    g = (value - lowest) * scale + memory.g_min
    noise = measured.CMO_READ * growth * memory.read_noise
    first, second = np.zeros(g.shape), np.zeros(g.shape)
    chances = np.exp(-(_NORMALS**2) / 2)
    for z, chance in zip(_NORMALS, chances / chances.sum(), strict=True):
        moved = memory.drift * measured.CMO_DECAY_MEAN * log + decay * z
        there = g + moved > 0
        sigma = noise * np.abs(np.log10(np.where(there, g + moved, 1.0)))
        moved = np.where(there, moved, memory.g_min - g)
        one, square = bounded(moved, sigma, memory.g_min - g, memory.g_max - g)
        first += chance * one
        second += chance * square
    return first / scale, second / scale**2
