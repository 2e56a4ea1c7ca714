"""What the engine refuses of its arguments: images, labels, indices, keys and steps."""

from collections.abc import Iterable

import jax
import numpy as np
from jaxtyping import Array

from jaxcurv.data.reading import LEVELS, NORMALISE
from jaxcurv.engine.losses import Loss, are_classes, cross_entropy

EMBED = (
    "for token ids or categories give their embeddings as images, and the model from there on, as "
    "there is no derivative with respect to a whole number"
)
"""What to do about images that are whole numbers."""


def check_batch(
    images: np.ndarray, labels: np.ndarray, indices: np.ndarray, loss: Loss = cross_entropy
) -> None:
    """Refuses a batch that cannot be scored, naming the first offender.

    Raises:
      ValueError: wrong shapes or types, an index out of range or used twice, images that are not
        finite, or labels that the loss cannot take: the default one needs whole numbers, another
        one finite ones, or NaN among several of a sample, for which its loss must be finite.
    """
    shapes = {labels.shape[:1], indices.shape, images.shape[:1]}
    if images.ndim < 2 or images.size == 0 or len(shapes) > 1:
        raise ValueError(
            "images must be [batch, ...], batch >= 1, no axis empty, with one label and one index "
            "each; got "
            f"{images.shape}, {labels.shape}, {indices.shape}"
        )
    if images.dtype not in (np.float32, np.float64):
        raise ValueError(
            "images must be float32 or float64, normalised as the model expects; got "
            f"{images.dtype}{_cure_of_type(images)}"
        )
    if not np.issubdtype(indices.dtype, np.integer):
        raise ValueError(f"indices must be integers; got {indices.dtype}")
    if loss is cross_entropy:
        _check_whole(labels)
    else:
        _check_numbers(labels, indices)
    if np.any((indices < 0) | (indices >= 2**32)):
        raise ValueError(f"indices must lie in [0, 2**32); got {indices.min()}..{indices.max()}")
    check_indices([indices])
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(images)} images hold NaN or infinity, "
            f"the first at index {indices[~finite][0]}; check the data and its normalisation"
        )


def _cure_of_type(images: np.ndarray) -> str:
    """What to do about images of a type that has no derivative, or is too coarse for one."""
    if images.dtype == np.uint8:
        return f" ({NORMALISE})"
    if images.dtype.kind in "iu":
        cures = [LEVELS] * (images.ndim > 2) + [EMBED] * (images.ndim < 4)
        return f" ({'; '.join(cures)})"
    return ""


def _check_whole(labels: np.ndarray) -> None:
    """Refuses labels that are not one whole number a sample."""
    own = "for targets that are no classes give a loss of your own, loss=..."
    if labels.ndim == 2 and labels.dtype.kind in "fiub" and labels.shape[1] > 1:
        one_hot = np.isin(labels, (0, 1)).all() and np.all(np.sum(labels, axis=1) == 1)
        cure = "of one-hot labels give labels.argmax(axis=1)" if one_hot else own
        raise ValueError(f"labels must be integers [{len(labels)}]; got {labels.shape}: {cure}")
    if labels.ndim > 1:
        cure = "give labels[:, 0]" if labels.shape[1:] == (1,) else own
        raise ValueError(f"labels must be integers [{len(labels)}]; got {labels.shape}: {cure}")
    if not np.issubdtype(labels.dtype, np.integer):
        cure = "give each sample the number of its class, from 0 on"
        if labels.dtype.kind in "fb":
            whole = np.all(labels == np.round(labels * 1.0))
            cure = f"labels.astype(int) where they are classes; {own}" if whole else own
        raise ValueError(f"labels must be integers; got {labels.dtype}: {cure}")


def _check_numbers(labels: np.ndarray, indices: np.ndarray) -> None:
    """Refuses labels that no loss can take."""
    if labels.dtype.kind not in "fiub":
        raise ValueError(f"labels must be numbers; got {labels.dtype}")
    # Of several targets some may be missing, which the loss masks.
    missing = np.isnan(labels) if labels.ndim > 1 else np.zeros(labels.shape, bool)
    finite = (np.isfinite(labels) | missing).reshape(len(labels), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"labels of {np.sum(~finite)} of {len(labels)} samples hold NaN or infinity, the first "
            f"at index {indices[~finite][0]}: leave such samples out"
        )
    if labels.dtype.kind in "iu" and np.any(labels != labels.astype(np.int32)):
        raise ValueError(
            f"labels must fit into int32; got {labels.min()}..{labels.max()}: give them as floats"
        )


def check_indices(parts: Iterable[np.ndarray]) -> None:
    """Refuses samples that share an index.

    Args:
      parts: the integer indices of all samples, in any number of arrays.

    Raises:
      ValueError: two are equal; the first such index is named.
    """
    indices = np.concatenate([np.empty(0, np.int64), *(np.asarray(p, np.int64) for p in parts)])
    values, counts = np.unique(indices, return_counts=True)
    if np.any(counts > 1):
        raise ValueError(
            f"two samples share index {values[counts > 1][0]}; indices must differ, for they key "
            "the probes"
        )


def check_key(key: Array) -> None:
    """Refuses a key whose random numbers would depend on the batch.

    Raises:
      ValueError: it is no typed key, or not one of JAX's default implementation.
    """
    typed = isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != () or str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            "key must be one jax.random.key(seed, impl='threefry2x32'): other implementations draw "
            "numbers that depend on a sample's place in its batch"
        )


def check_labels(labels: np.ndarray, classes: int, loss: Loss = cross_entropy) -> None:
    """Refuses labels that the model has no logit for, unless they are no classes.

    Raises:
      ValueError: a label outside [0, classes).
    """
    if not are_classes(labels, classes):
        return
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), the model's classes; got "
            f"{labels.min()}..{labels.max()}"
            + ("" if loss is cross_entropy else "; numbers that are no classes are given as floats")
        )


def check_steps(images: np.ndarray, steps: Iterable[float]) -> None:
    """Refuses a finite difference whose step the images' floating type cannot resolve.

    Raises:
      ValueError: adding a step to the largest pixel would be off by more than an eighth.
    """
    # Without jax_enable_x64 JAX computes in float32 whatever the images' own type.
    largest = np.abs(images).max().astype(jax.dtypes.canonicalize_dtype(images.dtype))
    with np.errstate(over="ignore"):  # infinite at the largest number there is
        spacing = float(np.spacing(largest))
    for step in steps:
        if step < 4 * spacing:
            raise ValueError(
                f"step {step:g} is too small: {largest.dtype} numbers near the largest pixel, "
                f"{largest:.3g}, are {spacing:.1g} apart; take at least {4 * spacing:.1g}, or "
                "float64 images with jax_enable_x64"
            )
