"""Per-sample losses, and the square root of their Hessian in the logits.

A loss takes `logits [batch, classes]` and `labels [batch]` to `[batch]`, each entry a function of
its own row.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Loss = Callable[[Array, Array], Array]


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Softmax cross-entropy in nats, accurate for confident samples.

    L = softplus(logsumexp over j != y of (l_j - l_y)). The usual log-softmax form rounds the loss,
    and its gradient in the label's logit, to exactly 0 at a float32 logit gap of about 17.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_own = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jax.nn.softplus(jax.nn.logsumexp(logits - own, axis=-1, where=~is_own))


def root_columns(loss: Loss, classes: int) -> int:
    """How many columns `hessian_root` has: the rank of the loss's Hessian in the logits."""
    return classes - 1 if loss is cross_entropy else classes


def hessian_root(
    loss: Loss,
    logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
) -> Float[Array, "batch classes columns"]:
    """A with A A^T = d2L/dz2, `[batch, classes, columns]`.

    For cross-entropy in closed form, whatever the label: with r the most probable class, p its
    probabilities, a = sqrt(p) without r's entry, the rows j != r are
    sqrt(p_j) (e_j - a_j a / (1 + sqrt(p_r))) and row r is minus their sum. Nothing cancels, so that
    it is accurate for saturated softmax. For another loss from the eigenvectors of its Hessian; NaN
    where that has an eigenvalue below zero, for which no real root exists.
    """
    if loss is cross_entropy:
        return jax.vmap(_cross_entropy_root)(logits)
    hessian = jax.vmap(jax.hessian(lambda z, y: loss(z[None], y[None])[0]))(logits, labels)
    eigenvalues, vectors = jnp.linalg.eigh(hessian)
    largest = jnp.max(jnp.abs(eigenvalues), axis=-1, keepdims=True)
    convex = eigenvalues >= -1e-4 * largest
    scale = jnp.where(convex, jnp.sqrt(jnp.maximum(eigenvalues, 0)), jnp.nan)
    return vectors * scale[:, None, :]


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
