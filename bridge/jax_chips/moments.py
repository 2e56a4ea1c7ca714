"""How far the weights of a chip in JAX are off, as mean and variance."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.chips.memories.protocol import GivesMoments
from bridge.chips.profiles import Profile
from bridge.chips.tile_moments import TileMoments, as_moments, tile_moments
from bridge.jax_chips.chips import Chip
from bridge.jax_chips.devices import require_moments
from bridge.jax_chips.layers import Layer
from bridge.jax_chips.programming import scaled
from jaxcurv.margins import Moments


def weight_moments(chip: Chip) -> Moments:
    """Mean and variance of each weight's deviation on a chip, in closed form or by quadrature.

        moments = bridge.jax_chips.weight_moments(chip)
        table = jaxcurv.flip_probability(logits_fn, source, params=params, moments=moments)

    Clipping, programming, drift, read noise, compensation and weight noise drawn once per chip are
    in it; converters and noise drawn at each operation are not. No chip is programmed. Each weight
    is taken by itself: what the weights of a tile share is not seen as shared. A compensation's
    factor is the ratio of expectations, mean magnitude before over mean magnitude read, by readings
    without converters: coarse ones, of 6 bits or so, or very few weights make the true factor
    another.

    Args:
      chip: made by `bridge.analog`; its `params` are the digital weights.

    Returns:
      Two trees like `chip.params`, float32: the mean deviation in the units of the parameters, and
      the variance in their square, 0 where a parameter is exact; beside them `chip.params`, so that
      `flip_probability` refuses weights that have changed since.

    Raises:
      ValueError: a memory of your own without the method `moments`, or one that gives other shapes.
    """
    memory = None if chip.profile.memory is None else require_moments(chip.profile.memory)
    leaves, treedef = jax.tree.flatten(chip.params)
    found = {
        which: [np.zeros(jnp.shape(leaf), np.float32) for leaf in leaves]
        for which in TileMoments._fields
    }
    for layer in chip._plan.layers:
        leaf = layer.weight.leaf
        places = layer.places(jnp.shape(leaves[leaf]))
        moments = _layer_moments(chip.profile, memory, layer, leaves[leaf])
        for which, matrix in zip(found, moments, strict=True):
            found[which][leaf].reshape(-1)[places] = matrix
    mean, variance = (jax.tree.unflatten(treedef, one) for one in found.values())
    return Moments(mean, variance, chip.params)


def _layer_moments(
    profile: Profile, memory: GivesMoments | None, layer: Layer, parameter: Any
) -> list[np.ndarray]:
    """Mean deviation and variance of a layer's weights, `[outputs, inputs]` each, in the unit of
    the weights and its square."""
    means, variances = [], []
    for tile in layer.grid.tiles(layer.matrix(parameter)):
        scale, targets = (np.asarray(one, np.float64) for one in scaled(profile.clipping, tile))
        devices = None if memory is None else as_moments(memory, targets)
        moments = tile_moments(profile, targets, devices)
        mean = scale * moments.mean
        if profile.clipping.type != "none":
            mean = mean + scale * targets - np.asarray(tile, np.float64)
        means.append(mean)
        variances.append(scale**2 * moments.variance)
    return [
        np.asarray(layer.grid.joined([jnp.asarray(tile) for tile in one]))
        for one in (means, variances)
    ]
