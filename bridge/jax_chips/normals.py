"""Standard normals from a key."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32
from jaxtyping import Array

_LOWEST = np.nextafter(np.float32(-1), np.float32(0))


def threefry_key(key: Any) -> Array:
    """A key of this module's generator from one of any kind, or from its words.

    Not by drawing from it: under `jax.vmap` some generators draw by the batch.
    """
    typed = jax.dtypes.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
    words = jnp.asarray(jax.random.key_data(key) if typed else key).astype(jnp.uint32)
    if words.ndim != 1:
        raise ValueError(
            f"key must be one random key, such as jax.random.key(0); got shape {words.shape}: map "
            "over several with jax.vmap"
        )
    made = jax.random.wrap_key_data(jnp.zeros(2, jnp.uint32), impl="threefry2x32")
    for word in words:
        made = jax.random.fold_in(made, word)
    return made


def normal(key: Array, shape: tuple[int, ...]) -> Array:
    """Independent standard normals, float32.

    Threefry counts through the draws and each of its two words is used, where `jax.random.normal`
    keeps one; 23 bits of a word make a uniform number u in (-1, 1), and the normal is
    `sqrt(2) erfinv(u)`.

    Args:
      key: see `threefry_key`.
      shape: of the result.
    """
    words = threefry_2x32(jax.random.key_data(key), jnp.arange(math.prod(shape), dtype=jnp.uint32))
    fraction = jax.lax.bitcast_convert_type((words >> 9) | np.uint32(0x3F800000), jnp.float32)
    uniform = jnp.maximum(2 * (fraction - 1.5), _LOWEST)
    return (math.sqrt(2) * jax.lax.erf_inv(uniform)).reshape(shape)
