"""Upsampling to the nearest pixel, or linearly between pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bridge.graphs.operators.elementwise import absolute, hardtanh

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


def smoothed(
    x: Array,
    output_size: Sequence[int],
    align_corners: bool,
    rows_factor: float | None = None,
    columns_factor: float | None = None,
    *,
    cubic: bool,
) -> Array:
    """Resizing with `antialias`: each pixel the weighted mean of all that it covers."""
    for axis, size, factor in (
        (2, output_size[0], rows_factor),
        (3, output_size[1], columns_factor),
    ):
        length = x.shape[axis]
        if align_corners:
            step = (length - 1) / (size - 1) if size > 1 else 0.0
        else:
            step = _step(length, size, factor)
        width = max(step, 1.0)
        reach = (2 if cubic else 1) * width
        centres = step * (np.arange(size) + 0.5)
        first = np.maximum(np.trunc(centres - reach + 0.5), 0)
        last = np.minimum(np.trunc(centres + reach + 0.5), length)
        places = np.arange(length)[:, None]
        away = np.abs((places - centres + 0.5) / width)
        weights = _cubic_filter(away) if cubic else np.maximum(1 - away, 0)
        weights = np.where((places >= first) & (places < last), weights, 0.0)
        weights = (weights / weights.sum(0)).astype(np.float32)
        x = jnp.moveaxis(jnp.matmul(jnp.moveaxis(x, axis, -1), weights), -1, axis)
    return x


def _cubic_filter(away: np.ndarray) -> np.ndarray:
    """Keys' filter with the constant -0.5, which PyTorch takes for antialiasing alone."""
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return np.where(away < 1, near, np.where(away < 2, far, 0.0))


def grid_sample(
    x: Array, grid: Array, interpolation: int, padding: int, align_corners: bool
) -> Array:
    """Images `[batch, channel, height, width]` at places in [-1, 1], the last axis of the grid.

    Args:
      interpolation: 0 between the four nearest pixels, 1 the nearest one, 2 cubic.
      padding: beyond the border 0 zeros, 1 the border's pixel, 2 the reflected one.
    """
    lengths = (x.shape[3], x.shape[2])
    columns, rows = (
        (grid[..., i] + 1) / 2 * (n - 1) if align_corners else ((grid[..., i] + 1) * n - 1) / 2
        for i, n in enumerate(lengths)
    )
    if interpolation == 2:
        (rows, down), (columns, across) = _cubic_taps(rows), _cubic_taps(columns)
    rows = _inside(rows, lengths[1], padding, align_corners)
    columns = _inside(columns, lengths[0], padding, align_corners)
    if interpolation == 1:
        return _pixels(x, jnp.round(rows), jnp.round(columns))
    if interpolation == 0:
        (rows, down), (columns, across) = _linear_taps(rows), _linear_taps(columns)
    found = _pixels(x, rows[:, :, None], columns[:, None])
    return jnp.sum(found * down[:, None, :, None] * across[:, None, None], axis=(2, 3))


def _inside(place: Array, length: int, padding: int, align_corners: bool) -> Array:
    """Places beyond the border brought back, but for padding with zeros."""
    if padding == 2:
        least, span = (0.0, length - 1.0) if align_corners else (-0.5, float(length))
        if span == 0:
            return jnp.zeros_like(place)
        away = absolute(place - least)
        turns = jnp.floor(away / span)
        rest = away - turns * span
        place = jnp.where(turns % 2 == 0, rest, span - rest) + least
    return hardtanh(place, 0.0, length - 1.0) if padding else place


def _pixels(x: Array, rows: Array, columns: Array) -> Array:
    """Pixels at whole numbers `[batch, ...]`, 0 beyond the border."""
    height, width = x.shape[2:]
    seen = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = jnp.where(seen, rows * width + columns, 0).astype(jnp.int32)
    flat = x.reshape(*x.shape[:2], -1)
    found = jnp.take_along_axis(flat, place.reshape(len(place), 1, -1), axis=2)
    return jnp.where(seen[:, None], found.reshape(*x.shape[:2], *place.shape[1:]), 0.0)


def _linear_taps(places: Array) -> tuple[Array, Array]:
    """The two pixels around each place `[batch, ...]`, and their weights, in a second axis."""
    first = jnp.floor(places)
    share = places - first
    return jnp.stack([first, first + 1], axis=1), jnp.stack([1 - share, share], axis=1)


def _cubic_taps(places: Array) -> tuple[Array, Array]:
    """The four pixels around each place, and their weights with PyTorch's constant of -0.75."""
    a = -0.75

    def near(t: Array) -> Array:
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def far(t: Array) -> Array:
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    first = jnp.floor(places)
    share = places - first
    weights = [far(share + 1), near(share), near(1 - share), far(2 - share)]
    return jnp.stack([first + i for i in range(-1, 3)], axis=1), jnp.stack(weights, axis=1)


TABLE: dict[str, Callable[..., Any]] = {
    "aten.upsample_nearest2d.vec": nearest,
    "aten.upsample_bilinear2d.vec": linear,
    "aten._upsample_bilinear2d_aa.default": partial(smoothed, cubic=False),
    "aten._upsample_bicubic2d_aa.default": partial(smoothed, cubic=True),
    "aten.grid_sampler_2d.default": grid_sample,
}
