"""Whether a model's logits have a derivative with respect to its input."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcurv.engine.model import ROUNDING, AsTraced, CheckedModel
from jaxcurv.engine.tracing import differentiable, may_jump, stops_gradients
from jaxcurv.estimators import Adaptive, Estimator, Probed, Spectral


def check_derivative(
    model: AsTraced, params: Any, pair: np.ndarray, logits: np.ndarray, gradient: np.ndarray
) -> None:
    """Refuses a model whose logits change without a gradient, or that cannot have one.

    Args:
      pair: two images.
      logits: theirs.
      gradient: that of the first one's logits, along `direction`.

    Raises:
      ValueError: it is such a model.
    """
    one, other = logits @ direction(logits.shape[1])
    change = max(_NOTHING * abs(other - one), _FAINT * np.max(np.abs(logits)))
    if gradient.any() and _slopes(gradient[None], max(1.0, float(np.abs(pair).max()))) >= change:
        return
    if not gradient.any() and not differentiable(partial(model, params), pair):
        how = (
            "the logits depend on it through whole numbers, rounding, comparisons or stop_gradient "
            "alone, or not at all"
        )
    elif _changes_without_gradient(partial(_values, model, params), pair):
        how = (
            "the logits change with it where their gradient is 0, as with x - x % step, whole "
            "numbers, comparisons or stop_gradient"
        )
    else:
        return
    raise ValueError(
        "the model has no derivative with respect to its input, so that every score would be 0: "
        f"{how}. For token ids give the embeddings as images, and the model from there on; else "
        "leave the rounding to whoever makes the images"
    )


_NOTHING = 1e-3
"""Part of a change below which a gradient does not explain it."""


_FAINT = 1e-5
"""Part of the logits below which what a gradient explains may be rounding."""


_ROUNDS, _TOLD_BY = 10, 4
"""How often a way is divided by seven, which leaves neighbouring float32 numbers; and how often
before small changes along it have no steep slope between them."""


def _changes_without_gradient(values: Callable, pair: np.ndarray) -> bool:
    """Whether logits change on a way from the first image, with no gradient anywhere along it.

    The way is narrowed down, by seven each time, to where they change most. There a continuous
    function shows its slope, however steep; a jump stays, and a change that no gradient knows of
    becomes smaller without one.

    Args:
      values: function from images `[8, ...]` to the logits of each along `direction`, `[8]`, and
        their gradients, `[8, ...]`.
      pair: two images.
    """
    image, other = pair
    far = np.random.default_rng(0).normal(size=image.shape) * 2 * max(1, np.max(np.abs(image)))
    back = image.ravel()[::-1].reshape(image.shape)
    ends = [image, other, back, image + 0.5, image - 0.5, image + far, image - far, 0 * image]
    points = np.stack(ends).astype(pair.dtype)
    value, gradient = jax.device_get(values(points))
    known = np.isfinite(value)  # elsewhere the model is not defined
    changes = np.where(known, np.abs(value - value[0]), 0)
    tiny = 64 * np.finfo(value.dtype).eps * np.max(np.abs(value[known]))
    slopes = _slopes(gradient, points - image)[known]
    if np.max(changes) <= tiny or not np.all(slopes <= _NOTHING * np.max(changes)):
        return False
    parts = np.linspace(0, 1, 8, dtype=pair.dtype).reshape(-1, *[1] * image.ndim)
    start, stop = image, points[np.argmax(changes)]
    for number in range(_ROUNDS):
        points = np.where(parts < 1, start + (stop - start) * parts, stop)
        value, gradient = jax.device_get(values(points))
        changes = np.abs(np.diff(value))
        if not np.all(_slopes(gradient, stop - start) <= _NOTHING * np.max(changes)):
            return False  # NaN too
        if np.max(changes) <= tiny:
            return number >= _TOLD_BY
        at = np.argmax(changes)
        start, stop = points[at], points[at + 1]
    return True


def check_continuous(checked: CheckedModel, params: Any, images: np.ndarray, step: float) -> None:
    """Refuses a finite difference of a model to which some entries of an image are whole numbers.

    Where the gradient is exactly 0, a step there moves the logits in proportion at most, unless it
    makes another whole number of that entry: then an eighth of it moves them as far. Looked for in
    the first image; in the same with these entries one larger where they lie within (-1, 1), all
    of which is one whole number to `astype(int)`; and in up to three others. Costs nothing where
    all entries of the first image have a gradient. Not seen: an entry that the logits depend on
    otherwise too, or one that jumps at none of these images; see `warn_of_samples`.

    Args:
      images: the first ones, `[batch, ...]`.
      step: of the finite difference.

    Raises:
      ValueError: the logits jump; the first such entry is named.
    """
    if not checked.still.any():
        return
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    steps = step * np.array([0, 1, -1, 0.125, -0.125], images.dtype)
    steps = np.resize(steps, 8).reshape(-1, *[1] * images[0].ndim)

    def jumps(image: np.ndarray, where: np.ndarray) -> tuple[bool, np.ndarray]:
        """Whether steps on these entries make the logits jump, and the gradient of the image."""
        rows = image + steps * where
        logits, _, gradient = jax.device_get(examine(checked.model, params, rows))
        whole, part = np.max(np.abs(logits[1:5] - logits[0]), axis=1).reshape(2, 2)
        rounding = ROUNDING * np.max(np.abs(checked.logits))
        return bool(np.any((part > rounding) & (part > whole / 2))), gradient[0]

    near = checked.still & (np.abs(images[0]) < 1)
    looked_at = [(images[0], checked.still), (images[0] + near, near)]
    looked_at += [(image, checked.still) for image in _others(images)]
    for image, where in looked_at:
        if not where.any():
            continue
        found, gradient = jumps(image, where)
        if found and gradient[where].any():  # which are no whole numbers here
            where = where & (gradient == 0)
            found = where.any() and jumps(image, where)[0]
        if found:
            break
    else:
        return
    entries = np.flatnonzero(where)
    while len(entries) > 1:  # the first half where that jumps by itself, else the second
        half = entries[: len(entries) // 2]
        first = np.isin(np.arange(image.size), half).reshape(image.shape)
        entries = half if jumps(image, first)[0] else entries[len(half) :]
    place = ", ".join(map(str, np.unravel_index(entries[0], image.shape)))
    raise ValueError(
        f"entry [{place}] of an image is a whole number to the model: it has no gradient, and a "
        f"step of {step:g} makes the logits jump, which a finite difference would take for "
        "curvature. For token ids or categories give the embeddings as images, and the model from "
        "there on; or take an estimator without a step (HessianVector, GaussNewton)"
    )


def _others(images: np.ndarray) -> np.ndarray:
    """Up to three of the images after the first, spread over all of them."""
    places = np.linspace(1, len(images) - 1, min(3, len(images) - 1))
    return images[places.astype(int)]


def warn_of_jumps(
    checked: CheckedModel, params: Any, images: np.ndarray, step: float | None
) -> bool:
    """Warns of logits that change otherwise than their gradient says, which knows of another part
    alone: of jumps, for a finite difference, and of what goes through `stop_gradient`.

    Seven steps in random directions must move the first image's logits as its gradients say; and so
    must three steps from each of up to three others, and from the first one with its entries of
    (-1, 1) one larger, where `astype(int)` is not the same on both sides. Computed only where the
    model rounds, compares or stops gradients at all. Not seen: a jump that none of these steps
    meets, which `warn_of_samples` is for, or a part behind `stop_gradient` that moves the logits by
    less than a tenth of all.

    Args:
      images: the first ones, `[batch, ...]`.
      step: of the finite difference; None where there is none. Jumps are not looked for then: an
        estimator without a step leaves them out.

    Returns:
      Whether it has warned.
    """
    jumps, stops = may_jump(checked.program), stops_gradients(checked.program)
    if not (stops and not jumps if step is None else stops or jumps):
        return False
    step = _STEP if step is None else step
    images = images.astype(jax.dtypes.canonicalize_dtype(images.dtype))
    rng = np.random.default_rng(0)
    values = partial(_values, checked.model, params)

    def otherwise(signs: np.ndarray, starts: np.ndarray) -> bool:
        """Whether a step from each of the starts, in turn, moves the logits otherwise; those of the
        first signs are 0."""
        signs[: len(starts)] = 0
        of = np.arange(len(signs)) % len(starts)
        way = np.asarray(step, images.dtype) * signs.astype(images.dtype)
        parts = [jax.device_get(values(rows)) for rows in np.split(starts[of] + way, len(way) // 8)]
        value, gradient = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        moved, mean = value - value[of], (gradient + gradient[of]) / 2
        points = starts[of] + way
        told = np.sum(mean * (points - starts[of]), axis=tuple(range(1, points.ndim)))
        rounding = 64 * np.finfo(value.dtype).eps * np.max(np.abs(value))
        part = 0.5 if jumps else 0.1
        return bool(np.linalg.norm(moved - told) > max(part * np.linalg.norm(moved), rounding))

    first = images[:1]
    others = np.concatenate([first + (np.abs(first) < 1), _others(images)])
    starts = others[np.arange(4) % len(others)]
    if not otherwise(rng.choice([-1, 1], (8, *first.shape[1:])), first) and not otherwise(
        rng.choice([-1, 1], (16, *first.shape[1:])), starts
    ):
        return False
    what = f"a step of {step:g} moves the logits otherwise than their gradient says, as where "
    if jumps:
        what += (
            "the model rounds, compares or makes whole numbers of a part of its input: such jumps "
            "are taken for curvature. An estimator without a step (HessianVector, GaussNewton) "
            "leaves that part out; better leave the rounding to whoever makes the images"
        )
        what += ". It has stop_gradient too, whose part no derivative knows of" * stops
    else:
        what += (
            "a part of the model is behind stop_gradient: a score leaves out what goes through "
            "there. Score the model without that stop_gradient, which is for training"
        )
    warnings.warn(what, stacklevel=4)
    return True


def warn_of_samples(looked_at: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Warns of samples that lie on a jump of the model, as a finite difference has found them.

    Not seen: a jump that no probe crosses, or that moves the loss less than its gradients may; see
    `jaxcurv.engine.finite_difference`.

    Args:
      looked_at: of each part of the samples the indices, and whether they do, bool `[samples]`.
    """
    on = [index for indices, jumped in looked_at for index in indices[jumped]]
    if not on:
        return
    count = sum(len(indices) for indices, _ in looked_at)
    warnings.warn(
        f"the model jumps at {len(on)} of {count} samples, the first at index {on[0]}: a "
        "step moves their loss further than its gradients at both ends say, as where the model has "
        "x != 0 for a mask, x == -1 for a missing value, or a number on the edge of its bin. Their "
        "scores measure that jump and not curvature: compute masks, bins and ranks outside the "
        "model, or take an estimator without a step (HessianVector, GaussNewton)",
        stacklevel=3,
    )


def warn_of_zeros(
    estimators: Mapping[str, Estimator],
    found: Mapping[str, tuple[Any, Any]],
    gradient_norm: Any,
) -> bool:
    """Warns of estimators without a step whose every score is 0 where gradients are not.

    Args:
      estimators: by name; a finite difference and one of the user's own are left out.
      found: by these names the scores and their standard errors, `[samples]` each.
      gradient_norm: norms of the loss's input gradient, `[samples]`.

    Returns:
      Whether it did.
    """
    if not np.any(gradient_norm):
        return False
    zero = {}
    for name, estimator in estimators.items():
        one = estimator.estimator if isinstance(estimator, Adaptive) else estimator
        exact = isinstance(one, Spectral) or (isinstance(one, Probed) and one.probing.step is None)
        score, error = found[name]
        if exact and not np.any(score) and not np.any(np.asarray(error) > 0):
            zero[type(one).__name__] = one
    if not zero:
        return False
    if any(isinstance(one, Spectral) for one in zero.values()):
        why = (
            "the loss has no second derivative in the logits, as one that is linear in them. Where "
            "that is meant, FiniteDifference sees the kinks of the model and the loss"
        )
    else:
        why = (
            "the second derivative vanishes, as behind sign() or round() with a derivative rule of "
            "its own (straight-through), or, rightly, where both model and loss are linear around "
            "each sample. Of a model that rounds score the surrogate written with stop_gradient, "
            "x + stop_gradient(sign(x) - x), or take GaussNewton, which takes first derivatives of "
            "the model only, with that rule as a custom_jvp"
        )
    warnings.warn(
        f"every score of {' and '.join(zero)} is exactly 0, though the loss has a gradient: {why}",
        stacklevel=3,
    )
    return True


def warn_of_ties(
    estimators: Mapping[str, Estimator], found: Mapping[str, tuple[Any, Any]], indices: Any
) -> None:
    """Warns of samples that share a score of 0, where they are at least two and a tenth.

    Fewer are all in the lowest tenth, in whatever order.

    Args:
      estimators: by name; one of the user's own is left out, for its 0 may mean anything.
      found: by these names the scores and their standard errors, `[rows]` each.
      indices: the samples' indices, `[rows]`; a sample has a row for each checkpoint.
    """
    tied = np.zeros(len(indices), bool)
    for name, one in estimators.items():
        if isinstance(one, Probed | Adaptive | Spectral):
            tied |= np.asarray(found[name][0]) == 0
    indices = np.asarray(indices)
    samples, count = len(np.unique(indices)), len(np.unique(indices[tied]))
    if count < max(2, samples / 10):
        return
    warnings.warn(
        f"the score is exactly 0 at {count} of {samples} samples, the first at index "
        f"{indices[tied][0]}: these are tied, and their order and tenths mean nothing. "
        "Either the softmax is one-hot in float32, its logits some 90 or more apart: rank by the "
        "margin, or divide the logits by a number; or loss and model are flat or linear there, as "
        "with a hinge or an absolute loss, a weight of 0, a clipped input or dead units: are the "
        "images normalised as the model expects?",
        stacklevel=3,
    )


_STEP = 1e-3
"""The step that tells what is behind `stop_gradient` where an estimator has none."""


def _slopes(gradients: np.ndarray, way: np.ndarray | float) -> np.ndarray:
    """How far gradients `[rows, ...]` could move something on a way, of each entry or of all."""
    return np.sum(np.abs(gradients * way), axis=tuple(range(1, gradients.ndim)))


def direction(outputs: int) -> np.ndarray:
    """A random direction of logits: a constant one would miss coupling that keeps their sum."""
    return np.random.default_rng(0).normal(size=outputs)


@partial(jax.jit, static_argnames="model")
def _values(model: Callable, params: Any, rows: Array) -> tuple[Array, Array]:
    """Each row's logits along `direction`, and the gradients of these."""
    logits, pullback = jax.vjp(partial(model, params), rows)
    cotangent = direction(logits.shape[1]).astype(logits.dtype)
    (gradient,) = pullback(jnp.broadcast_to(cotangent, logits.shape))
    return logits @ cotangent, gradient


@partial(jax.jit, static_argnames="model")
def examine(model: Callable, params: Any, rows: Array) -> tuple[Array, Array, Array]:
    """Logits of the rows by two calls, and the gradient of the first row's, along `direction`, with
    respect to all."""
    logits, pullback = jax.vjp(partial(model, params), rows)
    # Equal calls are one in the compiled program; one that draws anew at every call is not.
    again = model(params, rows)
    cotangent = direction(logits.shape[1]).astype(logits.dtype)
    (gradient,) = pullback(jnp.zeros_like(logits).at[0].set(cotangent))
    return logits, again, gradient
