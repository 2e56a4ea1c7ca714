"""Resistive memory after Wan et al. (Nature 2022): AIHWKit's ReRamWan2022NoiseModel, corrected.

Corrections: see `bridge.chips.memories.wan2022`. At each of three times the conductances spread
anew around their targets: `max(0, g + s sigma(g) z)`, sigma a polynomial of fourth degree.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories import measured
from bridge.chips.memories.pairs import join, split
from bridge.chips.memories.reram import ReRamWan2022
from bridge.jax_chips.grids import Tile
from bridge.jax_chips.normals import normal


def _spread_out(memory: ReRamWan2022, key: Array, targets: Tile, time: float) -> Tile:
    conductances, scale = split(memory.mapping, targets, memory.g_max)
    coefficients = measured.WAN2022_SPREAD[time]
    found = []
    for g, one in zip(conductances, jax.random.split(key, len(conductances)), strict=True):
        sigma = measured.spread(coefficients, measured.WAN2022_REFERENCE, memory.g_max, g)
        sigma = sigma * memory.noise
        found.append(jnp.maximum(g + sigma * normal(one, g.shape), 0.0))
    return join(memory.mapping, found, scale)


def program(memory: ReRamWan2022, key: Array, targets: Tile) -> tuple[Tile, Tile]:
    """See `Device.program`; the devices keep their targets."""
    return _spread_out(memory, key, targets, min(measured.WAN2022_SPREAD)), targets


def read(memory: ReRamWan2022, key: Array, programmed: Tile, targets: Tile) -> Tile:
    """See `Device.read`."""
    return _spread_out(memory, key, targets, memory.t_inference)
