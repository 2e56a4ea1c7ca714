"""Phase-change memory after Nandakumar et al. (ICECS 2019): AIHWKit's PCMLikeNoiseModel."""

import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.pcm import PCM
from bridge.jax_chips.devices import drifting
from bridge.jax_chips.grids import Tile


def _exponent(relative: Tile) -> tuple[Tile, Tile]:
    log = jnp.log(relative)
    mean = jnp.clip(-0.0155 * log + 0.0244, 0.049, 0.1)
    return mean, jnp.clip(-0.0125 * log - 0.0059, 0.008, 0.045)


def _read_noise(relative: Tile) -> Tile:
    # AIHWKit's bound of 1e-3 on the power, which has a derivative at 0 on this side of it.
    power = jnp.maximum(relative, 1e-3 ** (1 / 0.65)) ** 0.65
    return jnp.minimum(0.0088 / power, 0.2)


CONSTANTS = drifting.Constants(
    programming=(0.26348, 1.9650, -1.1731),
    reference=25.0,
    t_0=20.0,
    t_read=250e-9,
    exponent=_exponent,
    read_noise=_read_noise,
)


def program(memory: PCM, key: Array, targets: Tile) -> tuple[Tile, tuple[Tile, ...]]:
    """See `Device.program`."""
    return drifting.program(CONSTANTS, memory, memory.g_max, key, targets)


def read(memory: PCM, key: Array, programmed: Tile, exponents: tuple[Tile, ...]) -> Tile:
    """See `Device.read`."""
    return drifting.read(CONSTANTS, memory, memory.g_max, key, programmed, exponents)
