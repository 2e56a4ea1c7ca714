"""Random probe vectors that belong to a sample, not to the batch it happens to be in.

A sample's vector is keyed by (key, its index, the probe's number) alone, so that its score does
not change with batch size, order, padding, or the number of devices. Every distribution has
E[v v^T] = I.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from jaxcurv.estimators import Distribution


def default_key() -> Key[Array, ""]:
    """Key 0, of the implementation that `check_key` asks for, whatever JAX's default is."""
    return jax.random.key(0, impl="threefry2x32")


def probe(
    distribution: Distribution,
    key: Key[Array, ""],
    indices: Integer[Array, " batch"],
    number: int | Integer[Array, ""],
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
) -> Float[Array, "batch ..."]:
    """One random vector a sample.

    Args:
      distribution: "rademacher" (independent signs), "gaussian" (standard normals) or "sphere"
        (uniform on the sphere of radius sqrt(size)).
      key: the typed key of the whole scoring run.
      indices: stable sample indices, `[batch]`, each in `[0, 2**32)`.
      number: the probe's number, from 0.
      shape: shape of one sample.
      dtype: floating type of the result.

    Returns:
      `[batch, *shape]`.
    """

    def one(index: Array) -> Array:
        sample_key = jax.random.fold_in(jax.random.fold_in(key, index), number)
        if distribution == "rademacher":
            # jax.random.rademacher draws other signs where jax_enable_x64 is set.
            heads = jax.random.bernoulli(sample_key, jnp.float32(0.5), shape)
            return jnp.where(heads, 1, -1).astype(dtype)
        normal = jax.random.normal(sample_key, shape, dtype)
        if distribution == "gaussian":
            return normal
        return normal * jnp.sqrt(normal.size / jnp.sum(jnp.square(normal)))

    return jax.vmap(one)(indices)
