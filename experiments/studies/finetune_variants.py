"""What fine-tuning is aware of in each variant, and which training images have more weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from bridge.analysis.failures import deciles

Variant = Literal["plain", "noise_aware", "curvature", "flip_probability", "margin", "random"]

PLAIN, NOISE_AWARE, RANDOM = "plain", "noise_aware", "random"

REFERENCES = (PLAIN, NOISE_AWARE, RANDOM)
"""What the others are compared with, where it is there."""

ORIGINAL = "original"
"""The network that fine-tuning starts from."""

WORDS: Mapping[str, str] = {
    ORIGINAL: "not fine-tuned",
    PLAIN: "plain",
    NOISE_AWARE: "noise-aware, all alike",
    "curvature": "weight: curvature",
    "flip_probability": "weight: flip probability",
    "margin": "weight: low margin",
    RANDOM: "weight: random decile",
}
"""What tables and figures call them."""

_RANDOM_DECILE = 10
"""Tells the draw of the random decile from others of its training seed."""


def emphasised(
    variant: Variant,
    vulnerability: Mapping[str, npt.NDArray[np.float64]],
    indices: npt.NDArray[np.int64],
    *,
    emphasis: float,
    seed: int,
) -> npt.NDArray[np.float64]:
    """The weight of each training image in the loss.

    The n of N images in the highest decile have the weight e, the others (N - e n) / (N - n): the
    mean is 1, so that e is also how often an image of the decile would be expected in an epoch if
    images were drawn. Plain and noise-aware training have weights of 1. The random decile, of the
    same size, is another one for each training seed.

    Args:
      variant: which training.
      vulnerability: scores [images] by variant, the highest of the most vulnerable.
      indices: of the images, as `deciles` takes them.
      emphasis: e.
      seed: the training seed.

    Raises:
      ValueError: the others' weight would be negative, or there are fewer than ten images.
    """
    count = len(indices)
    if variant in (PLAIN, NOISE_AWARE):
        return np.ones(count)
    if variant == RANDOM:
        score = np.random.default_rng([seed, _RANDOM_DECILE]).random(count)
    else:
        score = vulnerability[variant]
    chosen = deciles(score, indices) == 10
    others = (count - emphasis * chosen.sum()) / (~chosen).sum()
    if others < 0:
        raise ValueError(
            f"an emphasis of {emphasis} on {chosen.sum()} of {count} images leaves the others a "
            f"negative weight: give at most --finetune.emphasis {count / chosen.sum():.2f}"
        )
    return np.where(chosen, emphasis, others)


def require_variants(variants: Sequence[Variant]) -> None:
    """Raises ValueError unless plain and noise-aware are among them, and each is there once."""
    if not {PLAIN, NOISE_AWARE} <= set(variants) or len(set(variants)) < len(variants):
        raise ValueError(
            f"variants must include {PLAIN} and {NOISE_AWARE}, which the others are compared with, "
            f"and each once; got {', '.join(variants) or 'none'}"
        )
