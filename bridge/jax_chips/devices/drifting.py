"""What phase-change memories have in common: conductances with noise that drift by a power of time.

With g the target and z standard normals:

    g_prog = max(0, g + s_p sigma_p(g) z),  nu = s_d |mu(g) + sigma_nu(g) z|
    g(t)   = max(0, d + s_r sigma_r(g_prog, t) d z),  d = g_prog ((t + t_0) / t_0)^-nu
    sigma_r(g, t) = q(g) sqrt(log((t + t_0 + t_read) / (2 t_read)))

(Nandakumar et al., ICECS 2019). As in AIHWKit, drift begins with the programmed weights split among
their devices anew: of a pair only one device drifts, and the largest programmed weight has g_max.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories import measured
from bridge.chips.memories.pairs import join, split
from bridge.chips.memories.pcm import PCM, Hermes
from bridge.jax_chips.grids import Tile
from bridge.jax_chips.normals import normal


def program(memory: PCM | Hermes, key: Array, targets: Tile) -> tuple[Tile, tuple[Tile, ...]]:
    """See `Device.program`; the devices keep their drift exponents."""
    constants, g_max = memory.constants, memory.full_scale
    conductances, scale = split(memory.mapping, targets, g_max)
    programmed, exponents = [], []
    for g, one in zip(conductances, jax.random.split(key, len(conductances)), strict=True):
        noise, spread = jax.random.split(one)
        sigma = measured.spread(constants.programming, constants.reference, g_max, g)
        sigma = sigma * memory.programming_noise
        programmed.append(jnp.maximum(g + sigma * normal(noise, g.shape), 0.0))
        mean, deviation = constants.exponent(jnp.maximum(g / g_max, measured.SMALLEST))
        exponent = jnp.abs(mean + deviation * normal(spread, g.shape))
        exponents.append(exponent * memory.drift)
    return join(memory.mapping, programmed, scale), tuple(exponents)


def read(memory: PCM | Hermes, key: Array, programmed: Tile, exponents: tuple[Tile, ...]) -> Tile:
    """See `Device.read`: the weights at `t_inference`, with the noise of one reading."""
    constants, g_max = memory.constants, memory.full_scale
    conductances, scale = split(memory.mapping, programmed, g_max)
    t = memory.t_inference + constants.t_0
    growth = jnp.sqrt(jnp.log((t + constants.t_read) / (2 * constants.t_read)))
    found = []
    keys = jax.random.split(key, len(conductances))
    for g, exponent, one in zip(conductances, exponents, keys, strict=True):
        drifted = g * (t / constants.t_0) ** -exponent
        sigma = constants.read_noise(g / g_max) * growth * memory.read_noise
        found.append(jnp.maximum(drifted * (1 + sigma * normal(one, g.shape)), 0.0))
    return join(memory.mapping, found, scale)
