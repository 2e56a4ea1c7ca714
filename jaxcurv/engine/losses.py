"""Per-sample losses, and the square root of their Hessian in the logits.

A loss takes `logits [batch, outputs]` and `labels [batch, ...]` to `[batch]`, each entry a function
of its own row.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

Loss = Callable[[Array, Array], Array]


def are_classes(labels: Any, outputs: int) -> bool:
    """Whether labels, an array of NumPy or JAX, number the outputs of a model.

    That is for whole numbers `[batch]` and two outputs or more. Others are what a loss of the
    user's own makes of them: numbers to predict, several classes at once, one logit's 0 or 1.
    """
    return labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer) and outputs > 1


def as_targets(labels: np.ndarray) -> np.ndarray:
    """Labels as a loss is given them: whole numbers as int32, others as they are."""
    return labels.astype(np.int32) if np.issubdtype(labels.dtype, np.integer) else labels


@jax.custom_jvp
def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Softmax cross-entropy in nats, accurate for confident samples.

    L = softplus(logsumexp over j != y of (l_j - l_y)). The usual log-softmax form rounds the loss,
    and its gradient in the label's logit, to exactly 0 at a float32 logit gap of about 17. The
    first two derivatives have rules of their own: those of softplus and logsumexp cancel where a
    model is confident and wrong.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_own = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jax.nn.softplus(jax.nn.logsumexp(logits - own, axis=-1, where=~is_own))


@cross_entropy.defjvp
def _cross_entropy_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    logits, labels = primals
    return cross_entropy(logits, labels), jnp.sum(residual(logits, labels) * tangents[0], axis=-1)


@jax.custom_jvp
def residual(logits: Array, labels: Array) -> Array:
    """p - e_y, the gradient of cross-entropy in the logits, without cancellation.

    The label's entry is minus the sum of the others.
    """
    is_own = jnp.arange(logits.shape[-1]) == labels[:, None]
    others = jnp.where(is_own, 0, jax.nn.softmax(logits))
    return jnp.where(is_own, -jnp.sum(others, axis=-1, keepdims=True), others)


@residual.defjvp
def _residual_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    """S t = p (u - p.u), u = t - t_r for the most probable class r: nothing cancels."""
    logits, labels = primals
    reference = jnp.argmax(logits, axis=-1, keepdims=True)
    u = tangents[0] - jnp.take_along_axis(tangents[0], reference, axis=-1)
    p = jax.nn.softmax(logits)
    return residual(logits, labels), p * (u - jnp.sum(p * u, axis=-1, keepdims=True))


def hessian_root(
    loss: Loss,
    logits: Float[Array, "batch classes"],
    labels: Shaped[Array, "batch ..."],
) -> Float[Array, "batch classes columns"]:
    """A with A A^T = d2L/dz2, `[batch, classes, columns]`.

    For cross-entropy in closed form, whatever the label: with r the most probable class, p its
    probabilities, a = sqrt(p) without r's entry, the rows j != r are
    sqrt(p_j) (e_j - a_j a / (1 + sqrt(p_r))) and row r is minus their sum. Nothing cancels, so that
    it is accurate for saturated softmax. For another loss by pivoted Cholesky decomposition of its
    Hessian; NaN where that has an eigenvalue below zero, for which no real root exists.
    """
    if loss is cross_entropy:
        return jax.vmap(_cross_entropy_root)(logits)
    hessian = jax.vmap(jax.hessian(lambda z, y: loss(z[None], y[None])[0]))(logits, labels)
    return jax.vmap(_pivoted_cholesky)(hessian)


def _pivoted_cholesky(matrix: Float[Array, "n n"]) -> Array:
    """A with A A^T = matrix, whatever its rank; NaN if it is not positive. Without LAPACK, see
    `jaxcurv.engine.gauss_newton`."""
    n = len(matrix)
    # Rounding of a Hessian of unit scale, however small what is left of it.
    rounding = 1e-4 * jnp.max(jnp.abs(matrix)) + 16 * jnp.finfo(matrix.dtype).eps

    def eliminate(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, root = state
        pivot = jnp.argmax(jnp.diagonal(rest))
        size = rest[pivot, pivot]
        column = jnp.where(size > 0, rest[:, pivot] / jnp.sqrt(jnp.where(size > 0, size, 1)), 0)
        # Rounding would otherwise leave a pivot that is used already as the largest.
        rest = (rest - jnp.outer(column, column)).at[pivot, :].set(0).at[:, pivot].set(0)
        return jnp.where(size > 0, rest, state[0]), root.at[:, k].set(column)

    rest, root = jax.lax.fori_loop(0, n, eliminate, (matrix, jnp.zeros_like(matrix)))
    positive = jnp.max(jnp.abs(rest)) <= rounding
    return jnp.where(positive, root, jnp.nan)


def _cross_entropy_root(logits: Float[Array, " classes"]) -> Array:
    classes = len(logits)
    reference = jnp.argmax(logits)
    others = jnp.arange(classes - 1)
    others += others >= reference
    odds = jnp.exp(logits[others] - logits[reference])
    probability = odds / (1 + jnp.sum(odds))
    a = jnp.sqrt(probability)
    p_r = 1 / (1 + jnp.sum(odds))
    rows = jnp.diag(a) - jnp.outer(probability, a) / (1 + jnp.sqrt(p_r))
    return (
        jnp.zeros((classes, classes - 1), logits.dtype)
        .at[others]
        .set(rows)
        .at[reference]
        .set(-rows.sum(0))
    )
