"""Operators that reduce axes: sums, means, extremes, norms, softmax."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.graphs.operators.elementwise import absolute

Axes = Sequence[int] | int | None


def _axes(dim: Axes) -> tuple[int, ...] | None:
    """PyTorch's empty list means every axis."""
    if dim is None or isinstance(dim, int):
        return None if dim is None else (dim,)
    return tuple(dim) or None


def total(x: Array, dim: Axes = None, keepdim: bool = False, **_: Any) -> Array:
    return jnp.sum(x, axis=_axes(dim), keepdims=keepdim)


def mean(x: Array, dim: Axes = None, keepdim: bool = False, **_: Any) -> Array:
    return jnp.mean(x, axis=_axes(dim), keepdims=keepdim)


def product(x: Array, dim: Axes = None, keepdim: bool = False, **_: Any) -> Array:
    return jnp.prod(x, axis=_axes(dim), keepdims=keepdim)


def largest(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    return jnp.max(x, axis=_axes(dim), keepdims=keepdim)


def smallest(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    return jnp.min(x, axis=_axes(dim), keepdims=keepdim)


def some(x: Array, dim: Axes = None, keepdim: bool = False) -> Array:
    return jnp.any(x, axis=_axes(dim), keepdims=keepdim)


def _chosen(x: Array, where: Array, dim: int, keepdim: bool) -> tuple[Array, Array]:
    """The values at one position of an axis, which alone get a gradient."""
    values = jnp.take_along_axis(x, where, axis=dim)
    if keepdim:
        return values, where
    return jnp.squeeze(values, dim), jnp.squeeze(where, dim)


def largest_and_where(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    return _chosen(x, jnp.argmax(x, dim, keepdims=True), dim, keepdim)


def smallest_and_where(x: Array, dim: int, keepdim: bool = False) -> tuple[Array, Array]:
    return _chosen(x, jnp.argmin(x, dim, keepdims=True), dim, keepdim)


def argmax(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmax(x, axis=dim, keepdims=keepdim)


def argmin(x: Array, dim: int | None = None, keepdim: bool = False) -> Array:
    return jnp.argmin(x, axis=dim, keepdims=keepdim)


def variance(
    x: Array, dim: Axes = None, *, correction: int | None = None, keepdim: bool = False
) -> Array:
    ddof = 1 if correction is None else correction
    return jnp.var(x, axis=_axes(dim), ddof=ddof, keepdims=keepdim)


def variance_and_mean(
    x: Array, dim: Axes = None, *, correction: int | None = None, keepdim: bool = False
) -> tuple[Array, Array]:
    return variance(x, dim, correction=correction, keepdim=keepdim), mean(x, dim, keepdim)


def norm(x: Array, order: float = 2, dim: Axes = None, keepdim: bool = False, **_: Any) -> Array:
    """Norm of vectors along axes; its gradient at the zero vector is 0, as in PyTorch."""
    axes = _axes(dim)
    size = absolute(x)
    if order == 0:
        return jnp.sum(x != 0, axis=axes, keepdims=keepdim)
    if order == float("inf"):
        return jnp.max(size, axis=axes, keepdims=keepdim)
    if order == float("-inf"):
        return jnp.min(size, axis=axes, keepdims=keepdim)
    if order == 1:
        return jnp.sum(size, axis=axes, keepdims=keepdim)
    powers = jnp.square(x) if order == 2 else jnp.power(jnp.where(size > 0, size, 1.0), order)
    powers = jnp.where(size > 0, powers, 0.0)
    sums = jnp.sum(powers, axis=axes, keepdims=keepdim)
    some = sums > 0
    safe = jnp.where(some, sums, 1.0)
    root = jnp.sqrt(safe) if order == 2 else jnp.power(safe, 1 / order)
    return jnp.where(some, root, 0.0)


def softmax(x: Array, dim: int, half_to_float: bool = False, **_: Any) -> Array:
    return jax.nn.softmax(x, axis=dim)


def log_softmax(x: Array, dim: int, half_to_float: bool = False, **_: Any) -> Array:
    return jax.nn.log_softmax(x, axis=dim)


def safe_softmax(x: Array, dim: int, dtype: str | None = None) -> Array:
    """Softmax, 0 where all of an axis is minus infinity."""
    none = jnp.all(jnp.isneginf(x), axis=dim, keepdims=True)
    return jnp.where(none, 0.0, jax.nn.softmax(jnp.where(none, 0.0, x), axis=dim))


def logsumexp(x: Array, dim: Axes, keepdim: bool = False) -> Array:
    return jax.nn.logsumexp(x, axis=_axes(dim), keepdims=keepdim)


def cumulative_sum(x: Array, dim: int, **_: Any) -> Array:
    return jnp.cumsum(x, axis=dim)


def cumulative_product(x: Array, dim: int, **_: Any) -> Array:
    return jnp.cumprod(x, axis=dim)


def _running(x: Array, dim: int, extreme: Callable[..., Array]) -> tuple[Array, Array]:
    """Extreme of all up to each position, and where it is, the last place of equal ones."""
    axis = dim % x.ndim
    places = jnp.arange(x.shape[axis]).reshape(-1, *(1 for _ in x.shape[axis + 1 :]))
    reached = jnp.where(x == extreme(jax.lax.stop_gradient(x), axis), places, 0)
    where = jax.lax.cummax(reached, axis)
    return jnp.take_along_axis(x, where, axis), where


def running_largest(x: Array, dim: int) -> tuple[Array, Array]:
    return _running(x, dim, jax.lax.cummax)


def running_smallest(x: Array, dim: int) -> tuple[Array, Array]:
    return _running(x, dim, jax.lax.cummin)


def order(x: Array, dim: int = -1, descending: bool = False) -> tuple[Array, Array]:
    where = jnp.argsort(x, axis=dim, descending=descending, stable=True)
    return jnp.take_along_axis(x, where, axis=dim), where


def stable_order(
    x: Array, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Array, Array]:
    return order(x, dim, descending)


def top(
    x: Array, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Array, Array]:
    values, where = order(x, dim, descending=largest)
    first = slice(0, k)
    return (
        jnp.moveaxis(jnp.moveaxis(values, dim, 0)[first], 0, dim),
        jnp.moveaxis(jnp.moveaxis(where, dim, 0)[first], 0, dim),
    )


TABLE: dict[str, Callable[..., Any]] = {
    "aten.sum.dim_IntList": total,
    "aten.mean.default": mean,
    "aten.mean.dim": mean,
    "aten.prod.default": product,
    "aten.prod.dim_int": product,
    "aten.amax.default": largest,
    "aten.amin.default": smallest,
    "aten.max.default": largest,
    "aten.min.default": smallest,
    "aten.max.dim": largest_and_where,
    "aten.min.dim": smallest_and_where,
    "aten.argmax.default": argmax,
    "aten.argmin.default": argmin,
    "aten.any.default": some,
    "aten.any.dim": some,
    "aten.any.dims": some,
    "aten.var.correction": variance,
    "aten.var_mean.correction": variance_and_mean,
    "aten.linalg_vector_norm.default": norm,
    "aten._softmax.default": softmax,
    "aten._log_softmax.default": log_softmax,
    "aten.logsumexp.default": logsumexp,
    "aten.cumsum.default": cumulative_sum,
    "aten.cumprod.default": cumulative_product,
    "aten.cummax.default": running_largest,
    "aten.cummin.default": running_smallest,
    "aten.sort.default": order,
    "aten.sort.stable": stable_order,
    "aten.topk.default": top,
}
