"""Estimators of the user's own: one compiled program for each."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxcurv.engine.model import Problem
from jaxcurv.engine.probes import probe
from jaxcurv.estimators import BatchProblem, Distribution, OwnEstimator


@partial(jax.jit, static_argnames=("problem", "estimator"))
def evaluate(
    problem: Problem,
    params: Any,
    x: Array,
    y: Array,
    gradient: Array,
    indices: Array,
    key: Array,
    estimator: OwnEstimator,
) -> dict[str, Array]:
    """Score and standard error `[batch]` of one; NaN is the error of an estimator without one.

    Args:
      gradient: base gradient of the loss at `x`.

    Raises:
      ValueError: it returns something else, which is seen while it is compiled.
    """

    def losses(images: Array) -> Array:
        return problem.loss(problem.model(params, images), y)

    def draw(number: int | Array, distribution: Distribution = "rademacher") -> Array:
        return probe(distribution, key, indices, number, x.shape[1:], x.dtype)

    found = estimator.estimate(
        BatchProblem(
            images=x,
            labels=y,
            indices=indices,
            key=key,
            base_gradient=gradient,
            logits=partial(problem.model, params),
            losses=losses,
            gradient=jax.grad(lambda images: jnp.sum(losses(images))),
            probe=draw,
        )
    )
    what = f"{type(estimator).__qualname__}.estimate() must return"
    if not isinstance(found, Mapping) or found.keys() - {"standard_error"} != {"score"}:
        got = list(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(f'{what} {{"score": ...}} and at most a "standard_error"; got {got}')
    for name, values in found.items():
        shape, dtype = jnp.shape(values), jnp.result_type(values)
        if shape != x.shape[:1] or not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(
                f"{what} one floating number a sample, [batch]; for a batch of {len(x)}, {name} is "
                f"{dtype} {list(shape)}"
            )
    return {"standard_error": jnp.full(x.shape[:1], jnp.nan, x.dtype), **found}
