"""Eq. 1 for one probe: the norm of the gradient's change over a step along it."""

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
    gradient: Array,
    indices: Array,
    key: Array,
    number: Array,
    step: Array,
    offset: Array,
    distribution: Distribution,
) -> tuple[Array, Array]:
    """|| g || and v . g / h of a batch for one probe, g = grad L(x + h v) - grad L(x)."""
    v = probe(distribution, key, indices, number, x.shape[1:], x.dtype) + offset

    def total(x: Array) -> Array:
        return jnp.sum(problem.loss(problem.model(params, x), y))

    difference = jax.grad(total)(x + step * v) - gradient
    return norm(difference), dot(v, difference) / step
