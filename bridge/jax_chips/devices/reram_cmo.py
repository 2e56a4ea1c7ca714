"""CMO/HfOx resistive memory (Falcone et al.): AIHWKit's ReRamCMONoiseModel, without its NaN.

One device for each weight. With g the target and z standard normals, in microsiemens:

    g_prog = g + s_p (a + b g) z
    d      = g_prog + s_d m log(t) + s_d (r log(t) + r_0) z
    g(t)   = d + s_r K log10(d) sqrt(log((t + t_read) / (2 t_read))) z, within [g_min, g_max]

and a device that has decayed to no conductance or less (d <= 0) is read as g_min.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.measured import (
    CMO_DECAY_MEAN,
    CMO_DECAY_SPREAD,
    CMO_PROGRAMMING,
    CMO_READ,
    CMO_T_READ,
)
from bridge.chips.memories.reram import ReRamCMO
from bridge.jax_chips.grids import Tile
from bridge.jax_chips.normals import normal


def _split(memory: ReRamCMO, weights: Tile) -> tuple[Tile, Array, Array]:
    """Conductances, the conductance of a weight of 1, and the weight at g_min."""
    lowest, highest = weights.min(), weights.max()
    # Weights that are all equal are at g_min, and the range stands for their magnitude, or 1.
    alike = jnp.where(lowest == 0, 1.0, jnp.abs(lowest))
    scale = (memory.g_max - memory.g_min) / jnp.where(lowest == highest, alike, highest - lowest)
    return (weights - lowest) * scale + memory.g_min, scale, lowest


def _join(memory: ReRamCMO, g: Tile, scale: Array, lowest: Array) -> Tile:
    return lowest + (g - memory.g_min) / scale


def program(memory: ReRamCMO, key: Array, targets: Tile) -> tuple[Tile, None]:
    """See `Device.program`."""
    g, scale, lowest = _split(memory, targets)
    constant, slope = CMO_PROGRAMMING[memory.acceptance]
    spread = memory.programming_noise * (constant + slope * g)
    return _join(memory, g + spread * normal(key, g.shape), scale, lowest), None


def read(memory: ReRamCMO, key: Array, programmed: Tile, state: None) -> Tile:
    """See `Device.read`."""
    g, scale, lowest = _split(memory, programmed)
    decay, noise = jax.random.split(key)
    late = jnp.asarray(memory.t_inference) > 0
    time = jnp.where(late, memory.t_inference, 1.0)
    log = jnp.log(time)
    mean = g + memory.drift * CMO_DECAY_MEAN * log
    spread = memory.drift * (CMO_DECAY_SPREAD[0] * log + CMO_DECAY_SPREAD[1])
    drifted = mean + spread * normal(decay, g.shape)
    there = drifted > 0
    growth = jnp.sqrt(jnp.log((time + CMO_T_READ) / (2 * CMO_T_READ)))
    sigma = CMO_READ * growth * jnp.log10(jnp.where(there, drifted, 1.0)) * memory.read_noise
    found = jnp.clip(drifted + sigma * normal(noise, g.shape), memory.g_min, memory.g_max)
    aged = _join(memory, jnp.where(there, found, memory.g_min), scale, lowest)
    return jnp.where(late, aged, programmed)
