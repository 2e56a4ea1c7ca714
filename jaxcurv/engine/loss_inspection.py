"""What the engine refuses of losses, by their behaviour."""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcurv.engine.changes import as_traced
from jaxcurv.engine.losses import Loss, are_classes, as_targets, cross_entropy
from jaxcurv.engine.model import ROUNDING, own_rules
from jaxcurv.engine.tracing import trace


class CheckedLoss(NamedTuple):
    """A loss that treats each sample by itself."""

    loss: Loss
    """What the programs are compiled for."""
    losses: np.ndarray
    """Losses of two images. Of cross-entropy `[2, 2]`, under the labels 0 and 1, and 1 and 0; of
    another loss of classes `[classes, 2]`, under each class, the first 1,000 at most; where labels
    are no classes `[2, 2]`, under two of the given ones, which differ where any do, and those
    exchanged."""
    gradient: np.ndarray
    """Gradient of the first image's loss in its logits, `[outputs]`."""


def warn_of_probabilities(loss: Loss, logits: np.ndarray) -> None:
    """Warns of a model that gives probabilities, of which cross-entropy would take a softmax again.

    Logarithms of probabilities have the same cross-entropy as the logits.

    Args:
      loss: the loss; one of the user's own may take probabilities.
      logits: of two images, `[2, outputs]`.
    """
    sums = logits.sum(axis=1, dtype=np.float64)
    if loss is cross_entropy and (logits >= 0).all() and (np.abs(sums - 1) < 1e-4).all():
        warnings.warn(
            "the model gives probabilities, which are not negative and add up to 1, and the loss "
            "takes the softmax of them again: leave out the softmax at the model's end, which "
            "keeps the predictions, or return its logarithm",
            stacklevel=4,
        )


def check_loss(loss: Loss, logits: np.ndarray, labels: np.ndarray) -> CheckedLoss:
    """Refuses a loss that does not treat each sample by itself.

    Args:
      loss: the loss.
      logits: of two images, `[2, outputs]`.
      labels: `[batch, ...]`, one or more.

    Raises:
      ValueError: it fails, gives something else than one finite number a sample, mixes samples, or
        has no gradient.
    """
    classes = are_classes(labels, logits.shape[1])
    # The first label, and the first that is another one.
    other = (labels != labels[:1]).reshape(len(labels), -1).any(axis=1)
    second = 1 % len(labels) if classes else int(np.argmax(other))
    # Labels of which any may have a gradient: the given ones weigh nothing where they are missing.
    some = as_targets(labels[:64])
    some = np.concatenate([some, np.zeros_like(some[:1]), np.ones_like(some[:1])])
    if classes:
        some = np.arange(min(logits.shape[1], 64), dtype=np.int32)
    labels = as_targets(labels[np.array([0, second])])
    if classes:  # a label without a logit is refused later, with its value; any serves here
        labels = np.clip(labels, 0, logits.shape[1] - 1)
    try:
        program, result = trace(loss, logits, labels)
    except Exception as error:  # the loss is anybody's code
        raise ValueError(
            f"the loss fails on logits {logits.shape} and {labels.dtype} labels {labels.shape}: "
            f"{type(error).__name__}: {error}; it must be JAX code (logits, labels) -> [batch]"
        ) from error
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise ValueError(f"the loss must return losses alone; got a {type(result).__name__}")
    if result.shape != (2,) or result.dtype != logits.dtype:
        what = "[batch], not reduced"
        if result.shape == (2, 1):
            what = "[batch]: take its [:, 0]"
        raise ValueError(
            f"the loss must give one {logits.dtype} a sample, {what}; got {result.dtype} "
            f"{result.shape} for a batch of 2"
        )
    # That of the project is known by its identity, and holds nothing.
    now = loss if loss is cross_entropy else as_traced("loss", loss, (logits, labels), program, 0)
    with own_rules(now):
        examined = jax.device_get(_examine_loss(now, logits, labels))
        losses, gradient, given, of_first, in_eight = examined
        flat = not gradient.any() and not _random_gradients(now, logits, some).any()
    if not (np.isfinite(losses).all() and np.isfinite(gradient).all()):
        masked = " (where labels are NaN, it must mask them)" if np.isnan(labels).any() else ""
        raise ValueError(
            f"the loss, or its gradient, is not finite at the first images' logits{masked}"
        )
    off = 64 * np.finfo(logits.dtype).eps * np.max(np.abs(logits))  # a loss of 0 has rounding
    equal = partial(np.allclose, rtol=ROUNDING, atol=off, equal_nan=True)
    beside = [equal(given[0, 0], of_first)]
    if loss is not cross_entropy:
        beside.append(equal(in_eight, np.tile(given[0], 4)))
    if np.any(gradient[1] != 0) or not all(beside):
        raise ValueError(
            "the loss mixes the samples of a batch, or their labels (logits [batch, 1] less labels "
            "[batch] are [batch, batch]), or depends on how many there are: curvature is defined "
            "per sample"
        )
    if flat:
        raise ValueError(
            "the loss has no gradient in the logits, so that every score would be 0: an error "
            "rate, rounding, or the softmax of one logit; of one logit take the loss of its "
            "sigmoid, such as optax.sigmoid_binary_cross_entropy(logits[:, 0], labels)"
        )
    if classes and loss is not cross_entropy:
        given = jax.device_get(_losses_of_classes(now, logits))
    return CheckedLoss(now, given, gradient[0])


@partial(jax.jit, static_argnames="loss")
def _examine_loss(loss: Loss, logits: Array, labels: Array) -> tuple[Array, ...]:
    """The losses, the gradient of the first one, those under two labels and these exchanged, the
    first of them with its own label in both rows, and those of four times these two rows."""
    losses, pullback = jax.vjp(lambda z: loss(z, labels), logits)
    (gradient,) = pullback(jnp.zeros_like(losses).at[0].set(1))
    both = jnp.arange(2, dtype=jnp.int32) if are_classes(labels, logits.shape[1]) else labels
    swapped = jnp.stack([loss(logits, y) for y in (both, both[::-1])])
    of_first = loss(logits, both[jnp.zeros(2, int)])[0]
    eight = np.tile([0, 1], 4)
    return losses, gradient, swapped, of_first, loss(logits[eight], both[eight])


@partial(jax.jit, static_argnames="loss")
def _losses_of_classes(loss: Loss, logits: Array) -> Array:
    """Losses `[classes, 2]` of two images under each class."""
    classes = min(logits.shape[1], _CLASSES)
    labels = jnp.repeat(jnp.arange(classes, dtype=jnp.int32), 2)
    return loss(jnp.tile(logits, (classes, 1)), labels).reshape(classes, 2)


_CLASSES = 1000
"""Classes whose losses are compared."""


@partial(jax.jit, static_argnames="loss")
def _random_gradients(loss: Loss, logits: Array, labels: Array) -> Array:
    """The loss's gradient at random logits, small and large ones, for these labels."""
    rng = np.random.default_rng(0)
    some = (
        rng.normal(size=(64, len(labels), logits.shape[1])) * np.logspace(-1, 1, 64)[:, None, None]
    )
    total = jax.grad(lambda z: jnp.sum(loss(z, labels)))
    return jax.vmap(total)(jnp.asarray(some, logits.dtype))
