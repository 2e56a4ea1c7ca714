"""Per-sample scores of logits, such as a chip's: NumPy in and out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def logit_scores(logits: npt.ArrayLike) -> dict[str, npt.NDArray[np.float32]]:
    """What the logits alone say of how sure a prediction is; nothing cancels where it is sure.

    With p the softmax of the logits:

    - margin: the largest logit minus the second largest. Falls with fragility.
    - entropy: - sum_j p_j log p_j, in nats. Grows with fragility.
    - least_confidence: 1 - max_j p_j. Grows with fragility.

    Args:
        logits: real [batch, class], at least two classes.

    Returns:
        float32 [batch] by name, computed in float64.

    Raises:
        ValueError: for other shapes or dtypes, and logits that are not finite.
    """
    z = np.asarray(logits)
    if z.ndim != 2 or z.shape[1] < 2 or z.dtype.kind not in "fiu":
        raise ValueError(
            f"logits must be real [batch, class] of at least two classes; got {z.dtype} {z.shape}"
        )
    if not np.isfinite(z).all():
        raise ValueError("logits are not finite; check the network and the images")
    ordered = np.sort(z.astype(np.float64), axis=1)[:, ::-1]
    gap = ordered - ordered[:, :1]
    odds = np.exp(gap)
    total = odds.sum(axis=1)
    others = odds[:, 1:].sum(axis=1)
    # H = log sum exp(gap) - sum p gap; log1p of the others keeps what 1 + them would round away.
    entropy = np.log1p(others) - (odds * gap).sum(axis=1) / total
    scores = {"margin": -gap[:, 1], "entropy": entropy, "least_confidence": others / total}
    return {name: score.astype(np.float32) for name, score in scores.items()}
