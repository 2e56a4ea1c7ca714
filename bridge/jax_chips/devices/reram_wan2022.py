"""Resistive memory after Wan et al. (Nature 2022): AIHWKit's ReRamWan2022NoiseModel, corrected.

Corrections: see `bridge.chips.memories.wan2022`. At each of three times the conductances spread
anew around their targets: `max(0, g + s sigma(g) z)`, sigma a polynomial of fourth degree.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.reram import ReRamWan2022
from bridge.jax_chips.devices.pairs import join, split
from bridge.jax_chips.grids import Tile
from bridge.jax_chips.normals import normal

REFERENCE = 40.0
"""The `g_max` at which the spread was fitted, microsiemens."""

SPREAD = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    86400.0: (0.701, 22.086, -50.773, 47.095, -16.458),
    172800.0: (0.782, 20.274, -43.507, 37.062, -11.934),
}
"""Coefficients of sigma in microsiemens, from the constant one on, by seconds since programming."""


def _spread_out(memory: ReRamWan2022, key: Array, targets: Tile, time: float) -> Tile:
    conductances, scale = split(memory.mapping, targets, memory.g_max)
    coefficients = jnp.asarray(SPREAD[time][::-1]) * (memory.g_max / REFERENCE)
    found = []
    for g, one in zip(conductances, jax.random.split(key, len(conductances)), strict=True):
        sigma = memory.noise * jnp.polyval(coefficients, g / memory.g_max)
        found.append(jnp.maximum(g + sigma * normal(one, g.shape), 0.0))
    return join(memory.mapping, found, scale)


def program(memory: ReRamWan2022, key: Array, targets: Tile) -> tuple[Tile, Tile]:
    """See `Device.program`; the devices keep their targets."""
    return _spread_out(memory, key, targets, min(SPREAD)), targets


def read(memory: ReRamWan2022, key: Array, programmed: Tile, targets: Tile) -> Tile:
    """See `Device.read`."""
    return _spread_out(memory, key, targets, memory.t_inference)
