"""Per-sample scores that the logits alone give: what curvature has to beat.

Written against the Python array API, so that one definition serves JAX and NumPy; needs NumPy only.
"""

from typing import Any

import numpy as np

from jaxcurv.rows import require_same_rows


def logit_scores(logits: Any, labels: Any = None) -> dict[str, Any]:
    """Scores of one forward pass, `[batch]` by name; nothing cancels where a model is confident.

    With p the softmax of the logits z:

    - margin: the largest logit minus the second largest. Falls with fragility.
    - entropy: - sum_j p_j log p_j, in nats. Grows with fragility.
    - least_confidence: 1 - max_j p_j. Grows with fragility.

    With labels also, y the label and e_y its unit vector:

    - el2n: || p - e_y ||_2 (Paul, Ganguli and Dziugaite, NeurIPS 2021). Grows with fragility.
    - label_margin: z_y - max over j != y of z_j; negative where the prediction is wrong, else the
      margin. Falls with fragility.

    A JAX array stays on its device and in its dtype, and may be traced (`jax.jit`). Anything else
    is taken as a NumPy array: computed in float64 and returned as float32.

    >>> scores = logit_scores([[2.0, 0.0], [0.0, 0.0]], labels=[1, 0])
    >>> scores["margin"], scores["label_margin"]
    (array([2., 0.], dtype=float32), array([-2.,  0.], dtype=float32))

    Args:
      logits: real `[batch, class]`, at least two classes; or rows `[class]` as the elements of a
        Series or of an array, such as the column `logits` of a table.
      labels: integers `[batch]` from 0 on; if None, the scores that need no label.

    Raises:
      ValueError: other shapes, or labels that are no integers; for NumPy also other dtypes, logits
        that are not finite and labels that are no class.
    """
    of_samples = logits.T if hasattr(logits, "iloc") else logits  # a DataFrame's are its rows
    require_same_rows(logits=of_samples, labels=labels)
    on_host = isinstance(logits, np.ndarray) or not hasattr(logits, "__array_namespace__")
    xp: Any = np if on_host else logits.__array_namespace__()
    z, y = xp.asarray(logits), None if labels is None else xp.asarray(labels)
    if on_host and z.dtype == object and z.ndim == 1:
        z = _stacked(z)
    if z.ndim != 2 or z.shape[1] < 2 or (on_host and z.dtype.kind not in "fiu"):
        raise ValueError(
            f"logits must be real [batch, class] of at least two classes; got {z.dtype} {z.shape}"
        )
    if y is not None and (y.shape != z.shape[:1] or y.dtype.kind not in "iu"):
        raise ValueError(f"labels must be integers, one a sample; got {y.dtype} {y.shape}")
    if not on_host:
        return _scores(xp, z, y)
    if not np.isfinite(z).all():
        raise ValueError("logits are not finite; check the network and the images")
    if y is not None and np.any((y < 0) | (y >= z.shape[1])):
        raise ValueError(f"labels must lie in [0, {z.shape[1]}), the classes; got {y}")
    scores = _scores(np, z.astype(np.float64), y)
    return {name: score.astype(np.float32) for name, score in scores.items()}


def _stacked(rows: np.ndarray) -> np.ndarray:
    arrays = [np.asarray(row) for row in rows]
    if len(lengths := {array.size for array in arrays}) > 1:
        raise ValueError(
            "logits must be real [batch, class] of at least two classes; got rows of "
            + " and ".join(map(str, sorted(lengths)))
        )
    return np.asarray(arrays)


def _scores(xp: Any, logits: Any, labels: Any) -> dict[str, Any]:
    def largest(among: Any) -> Any:
        return xp.max(xp.where(among, logits, -xp.inf), axis=-1)

    classes = xp.arange(logits.shape[-1])
    # Not a sort or top_k, which gathers a batch that several devices share.
    is_top = classes == xp.argmax(logits, axis=-1, keepdims=True)
    gap = logits - xp.max(logits, axis=-1, keepdims=True)
    odds = xp.exp(gap)
    others = xp.sum(xp.where(is_top, 0, odds), axis=-1)
    p = odds / xp.sum(odds, axis=-1, keepdims=True)
    scores = {
        "margin": xp.max(logits, axis=-1) - largest(~is_top),
        # log sum exp(gap) - sum p gap; log1p keeps what 1 + others would round away.
        "entropy": xp.log1p(others) - xp.sum(p * gap, axis=-1),
        "least_confidence": xp.sum(xp.where(is_top, 0, p), axis=-1),
    }
    if labels is None:
        return scores
    is_own = classes == labels[:, None]
    own = xp.sum(xp.where(is_own, logits, 0), axis=-1)
    # 1 - p_y without cancellation; no entry of p - e_y is larger, and it is the norm's scale, for
    # in float32 the squares of 1e-23 vanish.
    miss = xp.sum(xp.where(is_own, 0, p), axis=-1, keepdims=True)
    scale = xp.where(miss > 0, miss, 1)
    ratios = xp.where(is_own, miss, p) / scale
    return scores | {
        "el2n": scale[:, 0] * xp.sqrt(xp.sum(xp.square(ratios), axis=-1)),
        "label_margin": own - largest(~is_own),
    }
