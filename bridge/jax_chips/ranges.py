"""Ranges of the converters, calibrated on images."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from bridge.jax_chips.execution import Units, observed
from bridge.jax_chips.layers import Plan

_CHUNK = 32  # images at once


def calibrated(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
    percentile: float,
) -> tuple[np.ndarray, ...]:
    """Each tile's range, for each layer float32 `[tiles]`: a percentile of its outputs' magnitudes.

    By nearest rank, over all outputs of all images, in units of a largest weight of 1 and inputs of
    largest magnitude 1. A tile whose outputs are all 0 gets the median of the other tiles' ranges,
    1 if there is none; where only the percentile is 0, the largest output; a UserWarning names
    both.

    Raises:
      ValueError: images that are all 0, or make outputs that are not finite.
    """
    whole = percentile == 100
    reduce: Callable[[Any], Any] = (lambda values: values.max(-1)) if whole else (lambda v: v)
    kept = [[np.zeros(0, np.float32) for _ in range(one.grid.count)] for one in plan.layers]
    counts = [[0 for _ in of_layer] for of_layer in kept]
    look = partial(observed, program, plan, reduce=reduce)
    for size, layer, number, new in _outputs(look, plan, leaves, units, images):
        counts[layer][number] += len(new)
        most = len(new) * math.ceil(len(images) / size)
        largest = np.concatenate([kept[layer][number], new])
        kept[layer][number] = _largest(largest, 1 if whole else _above(most, percentile))
    found: list[list[float]] = []
    dead: list[str] = []
    sparse: list[str] = []
    for one, of_kept, of_counts in zip(plan.layers, kept, counts, strict=True):
        found.append([])
        for number, (largest, count) in enumerate(zip(of_kept, of_counts, strict=True)):
            name = f"{one.name}, tile {number}"
            bound = float(largest[0 if whole else len(largest) - _above(count, percentile)])
            if not np.isfinite(largest).all() or (bound == 0 and not images.any()):
                raise ValueError(
                    f"calibration gives {name} the ADC range {bound}; use images on which every "
                    "layer is finite and active"
                )
            if bound == 0:
                bound = float(largest[-1])
                (sparse if bound else dead).append(name)
            found[-1].append(bound)
    live = [bound for of_layer in found for bound in of_layer if bound]
    share = median(live) if live else 1.0
    _tell(dead, sparse, share, percentile)
    return tuple(np.array([one or share for one in of_layer], np.float32) for of_layer in found)


def beyond(
    program: ClosedJaxpr,
    plan: Plan,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
    bits: int,
    bounds: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """The share of each tile's outputs beyond its range, for each layer `[tiles]`.

    Args:
      bits: the converters' resolution.
      bounds: their ranges, for each layer `[tiles]`.
    """
    layers = zip(plan.layers, bounds, strict=True)
    adc = (bits, [one.grid.by_output(list(jnp.asarray(of_layer))) for one, of_layer in layers])
    over = [np.zeros(one.grid.count, np.int64) for one in plan.layers]
    counts = [np.zeros(one.grid.count, np.int64) for one in plan.layers]
    whole = partial(observed, program, plan, reduce=lambda values: values, adc=adc)
    for _, layer, number, new in _outputs(whole, plan, leaves, units, images):
        over[layer][number] += (new > bounds[layer][number]).sum()
        counts[layer][number] += len(new)
    return [one / of for one, of in zip(over, counts, strict=True)]


def _outputs(
    observe: Callable[..., Any],
    plan: Plan,
    leaves: Sequence[Any],
    units: Units,
    images: np.ndarray,
) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """For each chunk of images its size, and for each layer and tile its outputs' magnitudes."""
    look = jax.jit(observe)
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK]
        found = look(leaves, units, jnp.asarray(chunk))
        for layer, one in enumerate(plan.layers):
            tiles = ((column, rows) for column in found[layer] for rows in one.grid.rows)
            for number, (column, (first, last)) in enumerate(tiles):
                new = [np.asarray(call)[:, first:last].ravel() for call in column]
                yield len(chunk), layer, number, np.concatenate(new)


def _above(count: int, percentile: float) -> int:
    """How many of `count` numbers are not below their percentile, by nearest rank."""
    # Rounding must not lift 99.9 % of 3,000 above 2,997.
    return count - (math.ceil(count * percentile / 100 * (1 - 1e-12)) - 1)


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest, rising; NaN are the last."""
    count = min(count, len(values))
    return np.sort(np.partition(values, len(values) - count)[len(values) - count :])


def _tell(dead: list[str], sparse: list[str], share: float, percentile: float) -> None:
    if dead:
        warnings.warn(
            f"no output other than 0 on the calibration images: {'; '.join(dead)}; each gets the "
            f"ADC range {share:g} (for a largest weight of 1)",
            stacklevel=4,
        )
    if sparse:
        warnings.warn(
            f"percentile {percentile:g} of the outputs on the calibration images is 0: "
            f"{'; '.join(sparse)}; each gets its largest output as its ADC range",
            stacklevel=4,
        )
