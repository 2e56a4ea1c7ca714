"""Weights as conductances of pairs of devices, and back."""

from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.conductances import Pairs, SinglePair, WeightMapping
from bridge.jax_chips.grids import Tile

Conductances = tuple[Tile, ...]
"""Microsiemens: for each pair those of the positive devices, then those of the negative ones."""

_ZERO = 1e-7
"""The largest weight that a tile of zeros is taken to have; AIHWKit's."""


def split(mapping: WeightMapping, weights: Tile, g_max: float) -> tuple[Conductances, Array]:
    """Conductances of a tile's weights, and the conductance of a weight of 1, which `join` takes.

    With m the largest magnitude of the weights, `SinglePair` gives a weight w the conductances
    `g_min + (g_max - g_min) max(w, 0) / m` and the same of -w; `Pairs` fills one pair after the
    other; `MappedPairs` is linear between its points.
    """
    largest = jnp.maximum(jnp.abs(weights).max(), _ZERO)
    if isinstance(mapping, SinglePair):
        scale = (g_max - mapping.g_min) / largest
        return tuple(
            jnp.clip(one * scale, 0.0, g_max) + mapping.g_min for one in (weights, -weights)
        ), scale
    if isinstance(mapping, Pairs):
        span = g_max - mapping.g_min
        scale = sum(mapping.factors) * span / largest
        found: list[Tile] = []
        below = 0.0
        for factor in mapping.factors:
            for one in (weights, -weights):
                current = (jnp.maximum(one * scale, 0.0) - below) / factor
                found.append(jnp.clip(current + mapping.g_min, mapping.g_min, g_max))
            below += factor * span
        return tuple(found), scale
    lists = [jnp.asarray(values) for values in mapping.conductances]
    scale = jnp.abs(_current(lists, mapping.factors)).max() / largest
    points = jnp.linspace(-largest, largest, len(lists[0]))
    return tuple(jnp.interp(weights, points, values) for values in lists), scale


def join(mapping: WeightMapping, conductances: Sequence[Tile], scale: Array) -> Tile:
    """The weights that conductances stand for."""
    factors = (1.0,) if isinstance(mapping, SinglePair) else mapping.factors
    return _current(conductances, factors) / scale


def _current(conductances: Sequence[Array], factors: Sequence[float]) -> Array:
    pairs = zip(factors, conductances[::2], conductances[1::2], strict=True)
    return sum((f * (plus - minus) for f, plus, minus in pairs), jnp.zeros(()))
