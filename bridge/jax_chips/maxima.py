"""The largest number along an axis, with a derivative that no recomputation breaks."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest(x: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The largest number along an axis, which stays with size 1.

    Its derivative is that of one such element, the first. JAX's own divides by the count of
    elements that equal the largest. A compiler may compute these anew for the comparison and round
    them otherwise: then none is equal, and the derivative is NaN.
    """
    return x.max(axis, keepdims=True)


@largest.defjvp
def _(axis: int, given: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = given, tangents
    first = jnp.argmax(x, axis, keepdims=True)
    return largest(x, axis), jnp.take_along_axis(tangent, first, axis)
