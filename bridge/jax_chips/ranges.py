"""Ranges of the converters, calibrated on images."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.chips.range_rules import INPUTS, OUTPUTS, Given, Words, chosen_ranges, not_below
from bridge.jax_chips.execution import Network, Units, observed, observed_inputs
from bridge.jax_chips.layers import Plan

_CHUNK = 32  # images at once


def calibrated(
    network: Network,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
    percentile: float,
) -> tuple[np.ndarray, ...]:
    """Each tile's range, for each layer float32 `[tiles]`: a percentile of its outputs' magnitudes.

    By nearest rank, over all outputs of all images, in units of a largest weight of 1 and the unit
    of inputs: the largest magnitude of each input vector, or the DAC's fixed range, where inputs
    saturate. They are not rounded. `chosen_ranges` says what becomes of tiles whose outputs are 0.

    Args:
      network: the function, with no converter and the DAC's ranges, where these are fixed.

    Raises:
      ValueError: images that are all 0, or make outputs that are not finite.
    """
    plan = network.plan
    look = partial(observed, network, reduce=_reduce(percentile))
    seen = _outputs(look, plan, leaves, units, images)
    tiles = [f"{n} of {one.name}" for one in plan.layers for n in range(one.grid.count)]
    bounds = np.array(_percentiles(seen, tiles, images, percentile, OUTPUTS), np.float32)
    return tuple(np.split(bounds, np.cumsum([one.grid.count for one in plan.layers])[:-1]))


def calibrated_inputs(
    network: Network,
    leaves: Sequence[Any],
    images: np.ndarray,
    percentile: float,
) -> tuple[float, ...]:
    """Each layer's input range: a percentile of the magnitudes of its activations.

    By nearest rank, over all images, positions and calls; a convolution's padding does not count.
    `chosen_ranges` says what becomes of layers whose inputs are 0.

    Raises:
      ValueError: images that are all 0, or make activations that are not finite.
    """
    look = jax.jit(partial(observed_inputs, network, reduce=_reduce(percentile)))

    def seen() -> Iterator[tuple[int, int, np.ndarray]]:
        for chunk in _chunks(images):
            for layer, calls in enumerate(look(leaves, jnp.asarray(chunk))):
                yield len(chunk), layer, np.concatenate([np.asarray(one).ravel() for one in calls])

    names = [one.name for one in network.plan.layers]
    return tuple(_percentiles(seen(), names, images, percentile, INPUTS))


def beyond(
    network: Network,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
    bounds: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The share of each tile's outputs beyond its range, for each layer `[tiles]`.

    Args:
      network: the function, with its converters.
      bounds: the ADC's ranges, for each layer `[tiles]`.
    """
    plan = network.plan
    over = np.zeros(sum(one.grid.count for one in plan.layers), np.int64)
    counts = np.zeros_like(over)
    limits = np.concatenate(bounds)
    whole = partial(observed, network, reduce=lambda values: values)
    for _, tile, new in _outputs(whole, plan, leaves, units, images):
        over[tile] += (new > limits[tile]).sum()
        counts[tile] += len(new)
    return np.split(over / counts, np.cumsum([one.grid.count for one in plan.layers])[:-1])


def by_output(plan: Plan, bounds: Sequence[np.ndarray]) -> Units:
    """The ADC's ranges, for each layer `[tiles]`, as the outputs of each column have them."""
    layers = zip(plan.layers, bounds, strict=True)
    return [one.grid.by_output(list(jnp.asarray(of_layer))) for one, of_layer in layers]


def _reduce(percentile: float) -> Callable[[Any], Any]:
    """What is kept of magnitudes `[..., positions]`."""
    return (lambda values: values.max(-1)) if percentile == 100 else (lambda values: values)


def _percentiles(
    seen: Iterator[tuple[int, int, np.ndarray]],
    names: Sequence[str],
    images: np.ndarray,
    percentile: float,
    words: Words,
) -> list[float]:
    """Ranges of converters from what they are given.

    Args:
      seen: for each chunk of images and converter the chunk's size, which converter, and the
        magnitudes, reduced by `_reduce`.
      names: the converters'.
      words: for messages.
    """
    kept = [np.zeros(0, np.float32) for _ in names]
    counts = [0 for _ in names]
    for size, number, new in seen:
        counts[number] += len(new)
        most = len(new) * math.ceil(len(images) / size)
        largest = np.concatenate([kept[number], new])
        kept[number] = _largest(largest, not_below(most, percentile))
    given = {
        name: Given(float(largest[-not_below(count, percentile)]), float(largest[-1]))
        for name, largest, count in zip(names, kept, counts, strict=True)
    }
    black = jnp.issubdtype(images.dtype, jnp.floating) and not images.any()
    scales = dict.fromkeys(names, 1.0)
    found = chosen_ranges(given, scales, percentile, words, black=black, stacklevel=6)
    return list(found.values())


def _outputs(
    observe: Callable[..., Any],
    plan: Plan,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
) -> Iterator[tuple[int, int, np.ndarray]]:
    """For each chunk of images its size, and for each tile its outputs' magnitudes."""
    look = jax.jit(observe)
    for chunk in _chunks(images):
        found = look(leaves, units, jnp.asarray(chunk))
        tile = 0
        for layer, one in enumerate(plan.layers):
            for column in found[layer]:
                for first, last in one.grid.rows:
                    new = [np.asarray(call)[:, first:last].ravel() for call in column]
                    yield len(chunk), tile, np.concatenate(new)
                    tile += 1


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _CHUNK):
        yield images[start : start + _CHUNK]


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest, rising; NaN are the last."""
    count = min(count, len(values))
    return np.sort(np.partition(values, len(values) - count)[len(values) - count :])
