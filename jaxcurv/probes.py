"""Random probe vectors that belong to a sample, not to the batch it happens to be in."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key


def rademacher(
    key: Key[Array, ""],
    indices: Integer[Array, " batch"],
    probe: int | Integer[Array, ""],
    shape: tuple[int, ...],
    dtype: Any = jnp.float32,
) -> Float[Array, "batch ..."]:
    """Vectors with independent entries of -1 or +1, one a sample.

    A sample's vector is keyed by (key, its index, the probe's number) alone, so that its score
    does not change with batch size, order, padding, or the number of devices.

    Args:
      key: the typed key of the whole scoring run.
      indices: stable sample indices, `[batch]`, each in [0, 2**32).
      probe: number of the probe, from 0.
      shape: shape of one sample.
      dtype: floating type of the result.

    Returns:
      `[batch, *shape]`.
    """

    def one(index: Array) -> Array:
        sample_key = jax.random.fold_in(jax.random.fold_in(key, index), probe)
        return jax.random.rademacher(sample_key, shape, dtype)

    return jax.vmap(one)(indices)
