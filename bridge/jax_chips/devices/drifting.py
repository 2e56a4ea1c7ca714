"""What phase-change memories have in common: conductances with noise that drift by a power of time.

With g the target and z standard normals:

    g_prog = max(0, g + s_p sigma_p(g) z),  nu = s_d |mu(g) + sigma_nu(g) z|
    g(t)   = max(0, d + s_r sigma_r(g_prog, t) d z),  d = g_prog ((t + t_0) / t_0)^-nu
    sigma_r(g, t) = q(g) sqrt(log((t + t_0 + t_read) / (2 t_read)))

(Nandakumar et al., ICECS 2019). As in AIHWKit, drift begins with the programmed weights split among
their devices anew: of a pair only one device drifts, and the largest programmed weight has g_max.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.pcm import PCM, Hermes
from bridge.jax_chips.devices.pairs import join, split
from bridge.jax_chips.grids import Tile
from bridge.jax_chips.normals import normal

SMALLEST = 1e-7
"""Smallest relative conductance in the logarithms; AIHWKit's."""


class Constants(NamedTuple):
    """What was measured; conductances are relative to `g_max`."""

    programming: tuple[float, ...]
    """Coefficients of sigma_p in microsiemens, from the constant one on, at the reference."""
    reference: float
    """The `g_max` at which they were fitted, microsiemens."""
    t_0: float
    """Time of the first reading, seconds."""
    t_read: float
    """Duration of a reading, seconds."""
    exponent: Callable[[Tile], tuple[Tile, Tile]]
    """Mean and standard deviation of nu."""
    read_noise: Callable[[Tile], Tile]
    """The factor q."""


def programming_spread(constants: Constants, g_max: float, g: Tile) -> Tile:
    """Standard deviation of the programming noise, microsiemens."""
    polynomial = jnp.polyval(jnp.asarray(constants.programming[::-1]), g / g_max)
    return polynomial * (g_max / constants.reference)


def program(
    constants: Constants, memory: PCM | Hermes, g_max: float, key: Array, targets: Tile
) -> tuple[Tile, tuple[Tile, ...]]:
    """The weights right after programming, and each device's drift exponent."""
    conductances, scale = split(memory.mapping, targets, g_max)
    programmed, exponents = [], []
    for g, one in zip(conductances, jax.random.split(key, len(conductances)), strict=True):
        noise, spread = jax.random.split(one)
        sigma = programming_spread(constants, g_max, g) * memory.programming_noise
        programmed.append(jnp.maximum(g + sigma * normal(noise, g.shape), 0.0))
        mean, deviation = constants.exponent(jnp.maximum(g / g_max, SMALLEST))
        exponent = jnp.abs(mean + deviation * normal(spread, g.shape))
        exponents.append(exponent * memory.drift)
    return join(memory.mapping, programmed, scale), tuple(exponents)


def read(
    constants: Constants,
    memory: PCM | Hermes,
    g_max: float,
    key: Array,
    programmed: Tile,
    exponents: tuple[Tile, ...],
) -> Tile:
    """The weights at `t_inference`, with the noise of one reading."""
    conductances, scale = split(memory.mapping, programmed, g_max)
    t = memory.t_inference + constants.t_0
    growth = math.sqrt(math.log((t + constants.t_read) / (2 * constants.t_read)))
    found = []
    keys = jax.random.split(key, len(conductances))
    for g, exponent, one in zip(conductances, exponents, keys, strict=True):
        drifted = g * (t / constants.t_0) ** -exponent
        sigma = constants.read_noise(g / g_max) * growth * memory.read_noise
        found.append(jnp.maximum(drifted * (1 + sigma * normal(one, g.shape)), 0.0))
    return join(memory.mapping, found, scale)
