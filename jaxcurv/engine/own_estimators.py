"""Estimators of the user's own: one compiled program for each, and the arrays that it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array

from jaxcurv.data.reading import Batch
from jaxcurv.engine.changes import check_remembered
from jaxcurv.engine.losses import Loss, as_targets
from jaxcurv.engine.model import Problem
from jaxcurv.engine.probes import default_key, probe
from jaxcurv.engine.tracing import fingerprint, trace
from jaxcurv.estimators import BatchProblem, Distribution, OwnEstimator


@dataclass(frozen=True)
class AsTracedEstimator:
    """An estimator as it is now: programs are shared by equal ones that hold the same arrays."""

    estimator: OwnEstimator
    fingerprint: str
    """See `jaxcurv.engine.tracing.fingerprint`."""

    def estimate(self, problem: BatchProblem) -> Mapping[str, Array]:
        """See `OwnEstimator`, and `AsTraced` for what JAX remembers."""
        with set_xla_metadata(jaxcurv_estimator=self.fingerprint):
            return self.estimator.estimate(problem)

    def forward_passes(self, classes: int) -> float:
        """See `OwnEstimator`."""
        return self.estimator.forward_passes(classes)


def as_traced(
    estimator: OwnEstimator, loss: Loss, batch: Batch, logits: np.ndarray
) -> AsTracedEstimator:
    """The estimator as its code and arrays are now.

    It is traced on a model of one operation, for the arrays of its own are what is looked for;
    those of the model and of the loss are told apart by their own fingerprints.

    Args:
      loss: the loss.
      batch: the first samples.
      logits: of the model, `[any, outputs]`; shape and dtype are used alone.

    Raises:
      ValueError: JAX remembers other arrays in a function within it.
    """
    estimate, arguments = _on_one_operation(estimator, loss, batch, logits)
    program, _ = trace(estimate, *arguments)
    check_remembered(f"estimator {type(estimator).__qualname__}", estimate, arguments, program)
    return AsTracedEstimator(estimator, fingerprint(program))


def answers(estimator: OwnEstimator, loss: Loss, batch: Batch, logits: np.ndarray) -> list[float]:
    """Scores `[batch]` on a model of one operation, which tell estimators apart whose fields are
    equal; the arguments are those of `as_traced`."""
    estimate, arguments = _on_one_operation(estimator, loss, batch, logits)
    scores = jax.device_get(jax.jit(estimate)(*arguments)["score"])
    return np.nan_to_num(scores).tolist()


def _on_one_operation(
    estimator: OwnEstimator, loss: Loss, batch: Batch, logits: np.ndarray
) -> tuple[Callable[..., dict[str, Array]], tuple[Any, ...]]:
    """The estimator as a function of arrays, and these."""
    outputs = np.arange(1, logits.shape[1] + 1, dtype=logits.dtype)

    def model(params: None, images: Array) -> Array:
        return jnp.tanh(jnp.sum(images.reshape(len(images), -1), axis=1, keepdims=True) * outputs)

    def estimate(
        x: Array, y: Array, gradient: Array, indices: Array, key: Array
    ) -> dict[str, Array]:
        return _estimated(estimator, Problem(model, loss), None, x, y, gradient, indices, key)

    images = jax.device_put(batch.images)
    indices = batch.indices.astype(np.uint32)
    return estimate, (images, as_targets(batch.labels), images, indices, default_key())


@partial(jax.jit, static_argnames=("problem", "estimator"))
def evaluate(
    problem: Problem,
    params: Any,
    x: Array,
    y: Array,
    gradient: Array,
    indices: Array,
    key: Array,
    estimator: AsTracedEstimator,
) -> dict[str, Array]:
    """Score and standard error `[batch]` of one; NaN is the error of an estimator without one.

    Args:
      gradient: base gradient of the loss at `x`.

    Raises:
      ValueError: it returns something else, which is seen while it is compiled.
    """
    return _estimated(estimator, problem, params, x, y, gradient, indices, key)


def _estimated(
    estimator: OwnEstimator | AsTracedEstimator,
    problem: Problem,
    params: Any,
    x: Array,
    y: Array,
    gradient: Array,
    indices: Array,
    key: Array,
) -> dict[str, Array]:
    """What `evaluate` returns, not compiled."""

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
    own = estimator.estimator if isinstance(estimator, AsTracedEstimator) else estimator
    what = f"{type(own).__qualname__}.estimate() must return"
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
