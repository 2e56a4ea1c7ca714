"""Norms of each entry of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def norm(x: Float[Array, "batch ..."]) -> Float[Array, " batch"]:
    """|| x ||_2 `[batch]`, scaled by the largest entry: in float32 the squares of 1e-23 vanish."""
    axes = tuple(range(1, x.ndim))
    largest = jnp.max(jnp.abs(x), axis=axes, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1)
    return jnp.squeeze(scale, axes) * jnp.sqrt(jnp.sum(jnp.square(x / scale), axis=axes))


def dot(x: Array, y: Array) -> Array:
    """Inner product x . y of each entry of the batch, `[batch]`; x and y are `[batch, ...]`."""
    return jnp.sum(x * y, axis=tuple(range(1, x.ndim)))
