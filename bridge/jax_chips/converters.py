"""An ADC: rounding to its codes within its range."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def converted(outputs: Array, limit: Array, bits: int) -> Array:
    """Outputs as an ADC of `2**bits - 1` symmetric codes gives them.

    `clip(step round(y / step), -limit, limit)` with `step = limit / (2**(bits - 1) - 1)`, ties to
    even. The derivative of the rounding is 1 (straight through), that of saturation 0.

    Args:
      outputs: y.
      limit: the range, > 0; broadcasts to y.
      bits: resolution.
    """
    codes = 2 ** (bits - 1) - 1
    step = limit / codes
    exact = outputs / step
    # What calibration saw is within, whatever the last digit.
    within = jnp.abs(exact) <= codes * (1 + 1e-6)
    return jnp.where(within, _rounded(exact), codes * jnp.sign(exact)) * step


@jax.custom_jvp
def _rounded(x: Array) -> Array:
    return jnp.round(x)


@_rounded.defjvp
def _straight_through(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _rounded(primals[0]), tangents[0]
