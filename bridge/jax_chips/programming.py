"""What happens to a tile's weights, from scaling and programming to frozen noise."""

import zlib
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bridge.chips.profiles import Clipping, Profile, WeightNoise
from bridge.jax_chips import devices
from bridge.jax_chips.converters import converted
from bridge.jax_chips.grids import Grid, Tile
from bridge.jax_chips.levels import Levels, levels_of, with_levels
from bridge.jax_chips.maxima import largest
from bridge.jax_chips.normals import normal


class OnTiles(NamedTuple):
    """A layer's weights on tiles."""

    matrix: Float[Array, "outputs inputs"]
    """As the layer's outputs come out, compensation of drift included."""
    units: Float[Array, "columns outputs"]
    """What a tile's own unit of outputs amounts to, for each column of tiles; 0 where all targets
    are."""


def layer_key(key: Array, name: str) -> Array:
    """The key of a layer, by its name alone."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def program_layer(
    profile: Profile,
    grid: Grid,
    targets: Float[Array, "outputs inputs"],
    ranges: Float[Array, " tiles"] | None,
    key: Array,
) -> OnTiles:
    """Programs one layer.

    Args:
      profile: its memory, weight noise and clipping.
      grid: the layer's tiles.
      targets: its weight matrix.
      ranges: each tile's ADC range, in units of outputs of a largest weight of 1.
      key: of the chip and the layer.
    """
    memory = profile.memory
    time = 0 if memory is None else zlib.crc32(repr(float(memory.t_inference)).encode())
    return _program_layer(*levels_of(profile), grid, targets, ranges, key, np.uint32(time))


@partial(jax.jit, static_argnums=(0, 2))  # equal layers share a program
def _program_layer(
    profile: Profile,
    levels: Levels,
    grid: Grid,
    targets: Float[Array, "outputs inputs"],
    ranges: Float[Array, " tiles"] | None,
    key: Array,
    time: Array,
) -> OnTiles:
    """`program_layer`; `time` is a number that tells the time of inference from others."""
    profile = with_levels(profile, levels)
    keys = jax.vmap(lambda tile: jax.random.fold_in(key, tile))(jnp.arange(grid.count))
    limits = jnp.full(grid.count, jnp.inf) if ranges is None else ranges
    limits = limits.astype(jnp.float32)

    def one(tile: Tile, limit: Array, tile_key: Array) -> tuple[Tile, Array]:
        scale, target = scaled(profile.clipping, tile)
        weights, factors = _aged(profile, target, limit, tile_key, time)
        if profile.wnoise is not None and profile.wnoise.drawn == "per_chip":
            noisy = _noisy(profile.wnoise, weights, jax.random.fold_in(tile_key, 2))
            # A fraction of the largest target, which may be 0.
            weights = jnp.where(jnp.any(target != 0), noisy, weights)
        factors = jnp.broadcast_to(factors, (len(tile),)) * scale
        units = jnp.where(jnp.any(target != 0), factors, 0.0)
        return (weights * factors[:, None]).astype(jnp.float32), units.astype(jnp.float32)

    tiles = grid.tiles(targets)
    found: dict[int, tuple[Tile, Array]] = {}
    for shape in dict.fromkeys(grid.shapes):  # at most four: one program each
        here = [number for number, other in enumerate(grid.shapes) if other == shape]
        stacked = jnp.stack([tiles[number] for number in here])
        weights, units = jax.vmap(one)(stacked, limits[np.array(here)], keys[np.array(here)])
        found |= {number: (weights[i], units[i]) for i, number in enumerate(here)}
    ordered = [found[number] for number in range(grid.count)]
    by_output = grid.by_output([units for _, units in ordered])
    return OnTiles(grid.joined([weights for weights, _ in ordered]), by_output)


def scaled(clipping: Clipping, tile: Tile) -> tuple[Array, Tile]:
    """The largest weight, 1 for a tile of zeros, and the weights in its unit, clipped before."""
    if clipping.type == "fixed_value":
        bound = clipping.fixed_value * _largest(tile)
        tile = jnp.clip(tile, -bound, bound)
    if clipping.type == "layer_gaussian":
        bound = clipping.sigma * tile.std(ddof=1)
        bound = jnp.where(tile.size > 1, bound, jnp.inf)
        tile = jnp.clip(tile, -bound, bound)
    unit = _largest(tile)
    scale = jnp.where(unit > 0, unit, 1.0)
    return scale, tile / scale


def _largest(tile: Tile) -> Array:
    return largest(jnp.abs(tile).reshape(-1), 0)[0]


def _aged(
    profile: Profile, target: Tile, limit: Array, key: Array, time: Array
) -> tuple[Tile, Array]:
    """The weights at the time of inference, and the factor on the outputs, for the tile or each."""
    memory = profile.memory
    if memory is None:
        return target, jnp.ones(())
    programming, reading = jax.random.split(jax.random.fold_in(key, 1))
    # The same devices at each time, and a reading of its own.
    reading = jax.random.fold_in(reading, time)
    programmed, state = devices.program(memory, programming, target)
    weights = devices.read(memory, reading, programmed, state)
    if memory.compensation is None:
        return weights, jnp.ones(())
    exact = memory.compensation == "global_exact"
    axis = 1 if memory.compensation == "per_column" else None

    def readout(values: Tile, number: int, exact: bool) -> Array:
        """Mean magnitude of the outputs for unit vectors; not below AIHWKit's 1e-4."""
        if not exact:
            noise = jax.random.fold_in(reading, number)
            values = _read(profile, values, limit, noise)
        return jnp.maximum(jnp.abs(values).mean(axis), 1e-4)

    before = readout(target if exact else programmed, 1, exact)
    return weights, before / readout(weights, 2, False)


def _read(profile: Profile, weights: Tile, limit: Array, key: Array) -> Tile:
    """A tile's outputs for unit vectors, through what its operations have.

    They are read at the unit of inputs, which a DAC gives exactly.
    """
    if profile.noise_of_operations is not None:
        weights = _noisy(profile.noise_of_operations, weights, key)
    if profile.out_noise is not None:
        noise = normal(jax.random.fold_in(key, 0), weights.shape)
        weights = weights + profile.out_noise.sigma * noise
    return weights if profile.adc is None else converted(weights, limit, profile.adc.bits)


def _noisy(noise: WeightNoise, weights: Tile, key: Array) -> Tile:
    spread = jnp.full_like(weights, noise.sigma)
    if noise.kind == "pcm_read":
        magnitudes = jnp.abs(weights)
        # sqrt has no derivative at 0, where the noise is 0.
        spread = noise.sigma * jnp.sqrt(jnp.where(magnitudes > 0, magnitudes, 1.0))
        spread = jnp.where(magnitudes > 0, spread, 0.0)
    return weights + spread * normal(key, weights.shape)
