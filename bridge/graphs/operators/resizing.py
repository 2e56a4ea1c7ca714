"""Upsampling to the nearest pixel, or linearly between pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Factors = Sequence[float] | None


def _sizes(x: Array, output_size: Sequence[int] | None, factors: Factors) -> list[int]:
    if output_size is not None:
        return list(output_size)
    assert factors is not None, "the exporter gives a size or factors"
    first = x.ndim - len(factors)
    return [int(x.shape[first + i] * factor) for i, factor in enumerate(factors)]


def _step(length: int, size: int, factor: float | None) -> float:
    """Input pixels for each output pixel."""
    return 1 / factor if factor is not None and factor > 0 else length / size


def nearest(x: Array, output_size: Sequence[int] | None, factors: Factors = None) -> Array:
    sizes = _sizes(x, output_size, factors)
    for i, size in enumerate(sizes):
        axis = x.ndim - len(sizes) + i
        length = x.shape[axis]
        step = np.float32(_step(length, size, factors[i] if factors else None))
        rows = np.minimum(np.floor(np.arange(size, dtype=np.float32) * step), length - 1)
        x = jnp.take(x, rows.astype(np.int32), axis=axis)
    return x


def linear(
    x: Array,
    output_size: Sequence[int] | None,
    align_corners: bool,
    factors: Factors = None,
) -> Array:
    """Linear in each axis, the pixels' centres or, with `align_corners`, the outer ones kept."""
    sizes = _sizes(x, output_size, factors)
    for i, size in enumerate(sizes):
        axis = x.ndim - len(sizes) + i
        length = x.shape[axis]
        places = np.arange(size, dtype=np.float64)
        if align_corners:
            places = places * ((length - 1) / (size - 1) if size > 1 else 0.0)
        else:
            step = _step(length, size, factors[i] if factors else None)
            places = np.maximum((places + 0.5) * step - 0.5, 0)
        low = np.minimum(places.astype(np.int32), length - 1)
        high = np.minimum(low + 1, length - 1)
        share = (places - low).astype(np.float32)
        share = share.reshape(-1, *(1 for _ in range(x.ndim - 1 - axis)))
        x = jnp.take(x, low, axis=axis) * (1 - share) + jnp.take(x, high, axis=axis) * share
    return x


TABLE: dict[str, Callable[..., Any]] = {
    "aten.upsample_nearest1d.vec": nearest,
    "aten.upsample_nearest2d.vec": nearest,
    "aten.upsample_nearest3d.vec": nearest,
    "aten.upsample_linear1d.vec": linear,
    "aten.upsample_bilinear2d.vec": linear,
    "aten.upsample_trilinear3d.vec": linear,
}
