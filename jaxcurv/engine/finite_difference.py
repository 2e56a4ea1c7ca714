"""Eq. 1 for one probe: the norm of the gradient's change over a step along it.

The gradients at both ends also tell a sample on a jump of the model: no step of a continuous one
moves the loss much further than they say.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxcurv.engine.model import Problem
from jaxcurv.engine.norms import dot, norm
from jaxcurv.engine.probes import probe
from jaxcurv.estimators import (
    Distribution,
)


@partial(jax.jit, static_argnames=("problem", "distribution"))
def gradient_difference(
    problem: Problem,
    params: Any,
    x: Array,
    y: Array,
    losses: Array,
    gradient: Array,
    jumped: Array,
    indices: Array,
    key: Array,
    number: Array,
    step: Array,
    offset: Array,
    distribution: Distribution,
) -> tuple[Array, Array, Array]:
    """|| g || and v . g / h of a batch for one probe, g = grad L(x + h v) - grad L(x).

    Third, whether a sample is on a jump, for this probe or an earlier one (`jumped`): whether
    |L(x + h v) - L(x)| > 2 sum |h v| (|grad L(x)| + |grad L(x + h v)|), and by more than rounding.
    Kinks, of ReLU or max-pooling, at a pixel of 0 too, stay below; so does rounding by less than
    many gradients together explain.

    Args:
      losses, gradient: L and grad L at `x`.
    """
    v = probe(distribution, key, indices, number, x.shape[1:], x.dtype) + offset

    def total(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = problem.model(params, x)
        moved = problem.loss(logits, y)
        return jnp.sum(moved), (moved, logits)

    there, (moved, logits) = jax.grad(total, has_aux=True)(x + step * v)
    difference = there - gradient
    slopes = jnp.abs(step * v) * (jnp.abs(gradient) + jnp.abs(there))
    told = 2 * jnp.sum(slopes, axis=tuple(range(1, x.ndim)))
    sizes = jnp.concatenate([logits, losses[:, None], moved[:, None]], axis=1)
    rounding = 64 * jnp.finfo(logits.dtype).eps * jnp.max(jnp.abs(sizes), axis=1)
    jumped |= jnp.abs(moved - losses) > jnp.maximum(told, rounding)
    return norm(difference), dot(v, difference) / step, jumped
