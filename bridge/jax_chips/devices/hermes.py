"""Phase-change memory of the HERMES chip (Le Gallo et al., 2023): AIHWKit's HermesNoiseModel."""

import jax.numpy as jnp
from jaxtyping import Array

from bridge.chips.memories.pcm import Hermes
from bridge.jax_chips.devices import drifting
from bridge.jax_chips.grids import Tile


def _mean(r: Tile) -> Tile:
    low = jnp.clip(-0.0387 * jnp.log(r) - 0.0182, 0.0720, 0.13)
    return jnp.where(r < 0.0945, low, -0.0436 * r**2 - 0.0126 * r + 0.0736)


def _one_exponent(r: Tile) -> tuple[Tile, Tile]:
    low = jnp.clip(-0.0120 * jnp.log(r) - 0.0023, 0.0124, 0.04)
    return _mean(r), jnp.where(r < 0.3039, low, -0.0165 * r**2 + 0.0116 * r + 0.0104)


def _two_exponents(r: Tile) -> tuple[Tile, Tile]:
    low = jnp.clip(-0.0117 * jnp.log(r) - 0.0057, 0.0091, 0.04)
    return _mean(r), jnp.where(r < 0.3055, low, -0.0118 * r**2 + 0.0093 * r + 0.0073)


def _log(r: Tile) -> Tile:
    return jnp.log(jnp.maximum(r, drifting.SMALLEST))  # of 0 too, where the clip decides


def _one_read_noise(r: Tile) -> Tile:
    low = jnp.clip(-0.0078 * _log(r) + 0.0038, 0.0179, 0.04)
    return jnp.where(r < 0.1591, low, 0.0664 * r**3 - 0.1352 * r**2 + 0.0768 * r + 0.0088)


def _two_read_noises(r: Tile) -> Tile:
    low = jnp.clip(-0.0117 * _log(r) - 0.0069, 0.015, 0.04)
    return jnp.where(r < 0.16, low, 0.0069 * r**3 - 0.0280 * r**2 + 0.0211 * r + 0.0123)


CONSTANTS = {
    1: drifting.Constants(
        programming=(0.15781817, 2.32443916, -2.16310839, 0.68841818),
        reference=10.35,
        t_0=200.0,
        t_read=512e-9,
        exponent=_one_exponent,
        read_noise=_one_read_noise,
    ),
    2: drifting.Constants(
        programming=(0.16603222, 4.71806468, -8.48101252, 4.68961419),
        reference=20.7,
        t_0=300.0,
        t_read=512e-9,
        exponent=_two_exponents,
        read_noise=_two_read_noises,
    ),
}
"""By the devices for each sign of a weight."""


def _g_max(memory: Hermes) -> float:
    return memory.g_max or memory.largest_conductance


def program(memory: Hermes, key: Array, targets: Tile) -> tuple[Tile, tuple[Tile, ...]]:
    """See `Device.program`."""
    return drifting.program(CONSTANTS[memory.devices], memory, _g_max(memory), key, targets)


def read(memory: Hermes, key: Array, programmed: Tile, exponents: tuple[Tile, ...]) -> Tile:
    """See `Device.read`."""
    constants = CONSTANTS[memory.devices]
    return drifting.read(constants, memory, _g_max(memory), key, programmed, exponents)
