"""Per-sample scores that the logits alone give: what curvature has to beat."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcurv.engine.losses import residual
from jaxcurv.engine.norms import norm


def logit_scores(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> dict[str, Float[Array, " batch"]]:
    """Scores of one forward pass; nothing cancels where a model is confident.

    With p the softmax of the logits z, y the label and e_y its unit vector:

    - el2n: || p - e_y ||_2 (Paul, Ganguli and Dziugaite, NeurIPS 2021). Grows with fragility.
    - entropy: - sum_j p_j log p_j, in nats, without the label. Grows with fragility.
    - least_confidence: 1 - max_j p_j, without the label. Grows with fragility.
    - margin: the largest logit minus the second largest, without the label. Falls with fragility.
    - label_margin: z_y - max over j != y of z_j; negative where the prediction is wrong, else the
      margin. Falls with fragility.

    Args:
      logits: at least two classes.
      labels: classes.
    """
    classes = jnp.arange(logits.shape[-1])
    # Not top_k, which gathers a batch that several devices share.
    is_top = classes == jnp.argmax(logits, axis=-1, keepdims=True)
    gap = logits - jnp.max(logits, axis=-1, keepdims=True)
    others = jnp.sum(jnp.where(is_top, 0, jnp.exp(gap)), axis=-1)
    p = jax.nn.softmax(logits)
    is_own = classes == labels[:, None]
    own = jnp.sum(jnp.where(is_own, logits, 0), axis=-1)
    return {
        "el2n": norm(residual(logits, labels)),
        # log sum exp(gap) - sum p gap; log1p keeps what 1 + others would round away.
        "entropy": jnp.log1p(others) - jnp.sum(p * gap, axis=-1),
        "least_confidence": jnp.sum(jnp.where(is_top, 0, p), axis=-1),
        "margin": jnp.max(logits, axis=-1) - _largest(logits, ~is_top),
        "label_margin": own - _largest(logits, ~is_own),
    }


def _largest(logits: Array, among: Array) -> Array:
    return jnp.max(jnp.where(among, logits, -jnp.inf), axis=-1)
