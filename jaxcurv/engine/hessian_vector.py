"""The input Hessian times a probe."""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array

from jaxcurv.engine.norms import dot, norm
from jaxcurv.engine.probes import probe
from jaxcurv.estimators import (
    Distribution,
)


@partial(jax.jit, static_argnames="distribution")
def hessian_vector_product(
    product: Any, x: Array, indices: Array, key: Array, number: Array, distribution: Distribution
) -> tuple[Array, Array]:
    """|| H v || and v . H v of a batch for one probe."""
    v = probe(distribution, key, indices, number, x.shape[1:], x.dtype)
    hv = product(v)
    return norm(hv), dot(v, hv)
