"""Whether a model's logits have a derivative with respect to its input."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcurv.engine.model import ROUNDING, AsTraced, CheckedModel
from jaxcurv.engine.tracing import differentiable, may_jump, stops_gradients


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
    makes another whole number of that entry: then an eighth of it moves them as far. Costs nothing
    where all entries have a gradient. Not seen: an entry that the logits depend on otherwise too.

    Args:
      images: the first ones, `[batch, ...]`.
      step: of the finite difference.

    Raises:
      ValueError: the logits jump; the first such entry is named.
    """
    if not checked.still.any():
        return
    image = images[0].astype(jax.dtypes.canonicalize_dtype(images.dtype))
    steps = step * np.array([0, 1, -1, 0.125, -0.125], image.dtype).reshape(-1, *[1] * image.ndim)

    def moved(where: np.ndarray) -> np.ndarray:
        """How far each of `steps` on these entries moves the logits."""
        rows = image + steps * where
        logits = jax.device_get(_logits(checked.model, params, np.resize(rows, (8, *image.shape))))
        return np.max(np.abs(logits[:5] - logits[0]), axis=1)

    def jumps(where: np.ndarray) -> bool:
        whole, part = moved(where)[1:].reshape(2, 2)
        rounding = ROUNDING * np.max(np.abs(checked.logits))
        return bool(np.any((part > rounding) & (part > whole / 2)))

    found = np.flatnonzero(checked.still)
    if not jumps(checked.still):
        return
    while len(found) > 1:  # the first half where that jumps by itself, else the second
        half = found[: len(found) // 2]
        first = np.isin(np.arange(image.size), half).reshape(image.shape)
        found = half if jumps(first) else found[len(half) :]
    where = ", ".join(map(str, np.unravel_index(found[0], image.shape)))
    raise ValueError(
        f"entry [{where}] of an image is a whole number to the model: it has no gradient, and a "
        f"step of {step:g} makes the logits jump, which a finite difference would take for "
        "curvature. For token ids or categories give the embeddings as images, and the model from "
        "there on; or take an estimator without a step (HessianVector, GaussNewton)"
    )


def warn_of_jumps(
    checked: CheckedModel, params: Any, images: np.ndarray, step: float | None
) -> None:
    """Warns of logits that change otherwise than their gradient says, which knows of another part
    alone: of jumps, for a finite difference, and of what goes through `stop_gradient`.

    Seven steps in random directions must move the first image's logits as its gradients say.
    Computed only where the model rounds, compares or stops gradients at all. Not seen: a jump that
    none of these steps meets, a comparison that chooses between numbers without becoming one, or a
    part behind `stop_gradient` that moves the logits by less than a tenth of all.

    Args:
      images: the first ones, `[batch, ...]`.
      step: of the finite difference; None where there is none. Jumps are not looked for then: an
        estimator without a step leaves them out.
    """
    jumps, stops = may_jump(checked.program), stops_gradients(checked.program)
    if not (stops and not jumps if step is None else stops or jumps):
        return
    step = _STEP if step is None else step
    image = images[0].astype(jax.dtypes.canonicalize_dtype(images.dtype))
    signs = np.random.default_rng(0).choice([-1, 1], (8, *image.shape)).astype(image.dtype)
    signs[0] = 0
    points = image + np.asarray(step, image.dtype) * signs
    value, gradient = jax.device_get(_values(checked.model, params, points))
    moved = value - value[0]
    mean = (gradient + gradient[0]) / 2
    told = np.sum(mean * (points - image), axis=tuple(range(1, points.ndim)))
    rounding = 64 * np.finfo(value.dtype).eps * np.max(np.abs(value))
    part = 0.5 if jumps else 0.1
    if np.linalg.norm(moved - told) <= max(part * np.linalg.norm(moved), rounding):
        return
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
def _logits(model: Callable, params: Any, rows: Array) -> Array:
    return model(params, rows)
