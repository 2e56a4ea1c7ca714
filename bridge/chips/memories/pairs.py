"""Weights as conductances of pairs of devices, and back, for arrays of NumPy and of JAX."""

from collections.abc import Sequence
from typing import Any

from bridge.chips.memories.conductances import Pairs, SinglePair, WeightMapping
from bridge.chips.memories.measured import Values

ZERO = 1e-7
"""The largest weight that a tile of zeros is taken to have; AIHWKit's."""


def split(
    mapping: WeightMapping, weights: Values, g_max: float, largest: Values | None = None
) -> tuple[tuple[Values, ...], Values]:
    """Conductances of a tile's weights, and the conductance of a weight of 1, which `join` takes.

    With m the largest magnitude of the weights, `SinglePair` gives a weight w the conductances
    `g_min + (g_max - g_min) max(w, 0) / m` and the same of -w; `Pairs` fills one pair after the
    other; `MappedPairs` is linear between its points.

    Args:
      mapping: the memory's.
      weights: an array of NumPy or JAX.
      g_max: largest conductance, microsiemens.
      largest: m, a number; None for that of the weights.

    Returns:
      Microsiemens: for each pair those of the positive devices, then those of the negative ones;
      and the scale in microsiemens.
    """
    xp = weights.__array_namespace__()
    if largest is None:
        largest = xp.maximum(xp.abs(weights).max(), ZERO)
    if isinstance(mapping, SinglePair):
        scale = (g_max - mapping.g_min) / largest
        return tuple(
            xp.clip(one * scale, 0.0, g_max) + mapping.g_min for one in (weights, -weights)
        ), scale
    if isinstance(mapping, Pairs):
        span = g_max - mapping.g_min
        scale = sum(mapping.factors) * span / largest
        found: list[Values] = []
        below = 0.0
        for factor in mapping.factors:
            for one in (weights, -weights):
                current = (xp.maximum(one * scale, 0.0) - below) / factor
                found.append(xp.clip(current + mapping.g_min, mapping.g_min, g_max))
            below += factor * span
        return tuple(found), scale
    lists = [xp.asarray(values) for values in mapping.conductances]
    scale = xp.abs(_current(lists, mapping.factors)).max() / largest
    points = xp.linspace(-largest, largest, len(lists[0]))
    return tuple(xp.interp(weights, points, values) for values in lists), scale


def join(mapping: WeightMapping, conductances: Sequence[Values], scale: Values) -> Values:
    """The weights that conductances stand for."""
    return _current(conductances, factors_of(mapping)) / scale


def factors_of(mapping: WeightMapping) -> tuple[float, ...]:
    """The factor on the current of each pair."""
    return (1.0,) if isinstance(mapping, SinglePair) else mapping.factors


def _current(conductances: Sequence[Any], factors: Sequence[float]) -> Any:
    pairs = zip(factors, conductances[::2], conductances[1::2], strict=True)
    total, *others = [factor * (plus - minus) for factor, plus, minus in pairs]
    return sum(others, total)
