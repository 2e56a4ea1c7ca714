"""Pooling in one, two and three dimensions, over windows or to a given size."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from bridge.graphs.operators.convolution import each_axis
from bridge.graphs.operators.reductions import largest_and_where

Sizes = Sequence[int]


def _padding(
    lengths: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil: bool
) -> list[tuple[int, int]]:
    """Padding before and after each axis; a last, partial window needs more where `ceil`."""
    pads = []
    for n, k, s, p, d in zip(lengths, kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        room = n + 2 * p - reach
        windows = (-(-room // s) if ceil else room // s) + 1
        if ceil and (windows - 1) * s >= n + p:  # it would begin in the padding
            windows -= 1
        pads.append((p, max(p, (windows - 1) * s + reach - n - p)))
    return pads


def max_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    dilation: Sizes = (1,),
    ceil_mode: bool = False,
    *,
    space: int,
) -> tuple[Array, None]:
    """Largest value of each window, and nothing in the place of its position.

    Args:
      space: number of the last axes that the windows lie in.
    """
    kernel, pads, dilated = (each_axis(v, space) for v in (kernel_size, padding, dilation))
    steps = each_axis(stride, space) if len(stride) else kernel
    ones = [1] * (x.ndim - space)
    around = _padding(x.shape[-space:], kernel, steps, pads, dilated, ceil_mode)
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    least = np.asarray(lowest, x.dtype)
    if max(dilated) > 1:
        whole = lax.pad(x, least, [(0, 0, 0)] * len(ones) + [(a, b, 0) for a, b in around])
        return _spread_max(whole, kernel, steps, dilated), None
    value = lax.reduce_window(
        x,
        least,
        lax.max,
        (*ones, *kernel),
        (*ones, *steps),
        [(0, 0)] * len(ones) + around,
    )
    return value, None


def _spread_max(x: Array, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Array:
    """Largest of windows with gaps, for which JAX's `reduce_window` has no gradient."""
    taps = []
    for tap in product(*(range(k) for k in kernel)):
        places = [slice(None)] * (x.ndim - len(kernel))
        lengths = x.shape[-len(kernel) :]
        for i, n, k, s, d in zip(tap, lengths, kernel, stride, dilation, strict=True):
            windows = (n - d * (k - 1) - 1) // s + 1
            places.append(slice(i * d, i * d + (windows - 1) * s + 1, s))
        taps.append(x[tuple(places)])
    stacked = jnp.stack(taps)
    first = jnp.argmax(stacked, 0, keepdims=True)
    return jnp.take_along_axis(stacked, first, 0)[0]


def avg_pool(
    x: Array,
    kernel_size: Sizes,
    stride: Sizes = (),
    padding: Sizes = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    *,
    space: int,
) -> Array:
    """Mean of each window of the last `space` axes."""
    kernel, pads = each_axis(kernel_size, space), each_axis(padding, space)
    steps = each_axis(stride, space) if len(stride) else kernel
    ones = [1] * (x.ndim - space)
    around = _padding(x.shape[-space:], kernel, steps, pads, [1] * space, ceil_mode)

    def sums(values: Array, pads: list[tuple[int, int]], leading: list[int]) -> Array:
        window, stride = (*leading, *kernel), (*leading, *steps)
        return lax.reduce_window(
            values, np.zeros((), x.dtype), lax.add, window, stride, [(0, 0)] * len(leading) + pads
        )

    total = sums(x, around, ones)
    if divisor_override is not None:
        return total / divisor_override
    # What ceil_mode adds behind the padding never counts; the padding does where asked for.
    counted = [(p, p) if count_include_pad else (0, 0) for p in pads]
    lengths = zip(x.shape[-space:], counted, strict=True)
    mask = np.ones([n + before + after for n, (before, after) in lengths], x.dtype)
    left = [(a - c, b - d) for (a, b), (c, d) in zip(around, counted, strict=True)]
    return total / sums(jnp.asarray(mask), left, [])


def adaptive_avg_pool(x: Array, output_size: Sizes) -> Array:
    """Mean of windows that divide each axis: floor(i n / m) to ceil((i + 1) n / m)."""
    for axis, size in _outputs(x, output_size):
        length = x.shape[axis]
        if size == 1:
            x = jnp.mean(x, axis=axis, keepdims=True)
        elif length % size == 0:
            parts = (*x.shape[:axis], size, length // size, *x.shape[axis + 1 :])
            x = jnp.mean(x.reshape(parts), axis=axis + 1)
        else:
            weights = np.zeros((length, size), np.float32)
            for i, (start, end) in enumerate(_windows(length, size)):
                weights[start:end, i] = 1 / (end - start)
            x = jnp.moveaxis(jnp.matmul(jnp.moveaxis(x, axis, -1), weights), -1, axis)
    return x


def adaptive_max_pool(x: Array, output_size: Sizes) -> tuple[Array, None]:
    """Largest of such windows; the first in the order of the rows has the slope."""
    for axis, size in reversed(_outputs(x, output_size)):
        parts = [
            largest_and_where(lax.slice_in_dim(x, start, end, axis=axis), axis, True)[0]
            for start, end in _windows(x.shape[axis], size)
        ]
        x = jnp.concatenate(parts, axis)
    return x, None


def _outputs(x: Array, output_size: Sizes) -> list[tuple[int, int]]:
    first = x.ndim - len(output_size)
    return [(first + i, size) for i, size in enumerate(output_size) if x.shape[first + i] != size]


def _windows(length: int, size: int) -> list[tuple[int, int]]:
    return [(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]


TABLE: dict[str, Callable[..., Any]] = {
    "aten.max_pool2d_with_indices.default": partial(max_pool, space=2),
    "aten.max_pool3d_with_indices.default": partial(max_pool, space=3),
    "aten.avg_pool2d.default": partial(avg_pool, space=2),
    "aten.avg_pool3d.default": partial(avg_pool, space=3),
    "aten._adaptive_avg_pool2d.default": adaptive_avg_pool,
    "aten._adaptive_avg_pool3d.default": adaptive_avg_pool,
    "aten.adaptive_max_pool2d.default": adaptive_max_pool,
    "aten.adaptive_max_pool3d.default": adaptive_max_pool,
}
