"""What the engine refuses: images, labels, keys, and models whose samples are not independent."""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from jaxcurv.data.reading import NORMALISE
from jaxcurv.engine.losses import Loss, are_classes, as_targets, cross_entropy
from jaxcurv.engine.model import AsTraced, Problem, arguments_of, modules_passed
from jaxcurv.engine.tracing import (
    differentiable,
    dtypes,
    fingerprint,
    has_own_rules,
    held,
    remembered_otherwise,
    trace,
    trace_anew,
    with_derivative,
)


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
            f"{images.dtype}{_cure_of_type(images.dtype)}"
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


def _cure_of_type(dtype: np.dtype) -> str:
    """What to do about images of a type that has no derivative, or is too coarse for one."""
    if dtype == np.uint8:
        return f" ({NORMALISE})"
    if dtype.kind in "iu":
        return f" ({_EMBED})"
    return ""


_EMBED = (
    "for token ids or categories give their embeddings as images, and the model from there on, as "
    "there is no derivative with respect to a whole number"
)


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


def check_float32(program: ClosedJaxpr) -> None:
    """Refuses a model that computes in 16 bits, for a finite difference.

    Not seen: a `precision` that a layer sets for itself.

    Raises:
      ValueError: it does.
    """
    if dtypes(program) & {np.dtype(np.float16), np.dtype(jnp.bfloat16)}:
        raise ValueError(
            "the model computes in 16 bits, too coarse for a finite difference: build it with "
            "dtype=float32, or take an estimator without a step (HessianVector, GaussNewton)"
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


_ROUNDING = 1e-4
"""Difference of logits that are equal, of the largest one."""

_SAID = 300
"""Characters of another library's message that are shown."""

_ROWS = np.array([0, 1, 1, 0, 1, 0, 0, 1])
"""Which of two images each row of the checked batch holds: the other one is beside the first row,
opposite to it, and a half or a quarter of the batch away; each has rows enough that random masks of
a few units are not equal in all of them."""


class CheckedModel(NamedTuple):
    """A model that treats each sample by itself and always alike."""

    model: AsTraced
    """What the programs are compiled for."""
    program: ClosedJaxpr
    """That of two images."""
    logits: np.ndarray
    """Logits of two images, `[2, classes]`."""
    still: np.ndarray
    """Where the first image's gradient is exactly 0, bool `[...]`."""


def check_model(
    problem: Problem, params: Any, images: np.ndarray, *, of_input: bool = True
) -> CheckedModel:
    """Refuses a model that does not treat each sample by itself and always alike, or that has no
    derivative.

    Detected by behaviour, on two images in eight rows: the gradient of one row's logits with
    respect to the other rows must be exactly zero; one image in several rows must give one result,
    and a second call the first one's. One small program is compiled for it. Not seen: coupling that
    vanishes at these very images; randomness that every sample and every call share, or that the
    model's own `jax.jit` has frozen, which makes it an ordinary fixed model; and coupling that
    needs more than eight samples.

    The model is traced anew, at a few hundredths of a second for a ResNet-18: what it closes over
    may have changed since the last call. Arrays that JAX remembers from an
    earlier call, in a `jax.jit` or `jax.checkpoint` of the model's own or in the body of a loop or
    branch, and which are others now, are refused; not seen where the change moves the logits by
    less than 1e-4 of the largest. Of derivative rules of the model's own the derivative is traced
    too.

    Where the gradient of the first image is 0, the model's structure says whether there can be one
    elsewhere, and its behaviour whether there is one where the logits change: between the images,
    and around the first one. Not seen: logits that these few inputs do not change, and a part of
    the model without a derivative beside another that has one.

    Args:
      of_input: whether derivatives are taken with respect to the input.

    Raises:
      ValueError: wrong logits, coupled samples, or a model that is random, keeps state, whose own
        jit holds arrays that have changed, or whose logits do not depend on the input through
        operations that have derivatives.
    """
    pair = np.resize(images, (2, *images.shape[1:]))
    pair = pair.astype(jax.dtypes.canonicalize_dtype(pair.dtype))
    try:
        program, result = _traced(problem, params, pair)
        _check_logits_shape(result, 2 if problem.loss is cross_entropy else 1)
        model = _as_traced("model", problem.model, (params, pair), program, int(of_input))
        logits, again, gradient = jax.device_get(_examine(model, params, pair[_ROWS]))
    except flax.errors.TraceContextError as error:
        if "flax.nnx.transforms" in modules_passed(error):
            raise ValueError(
                "the model hands a module that it closes over to nnx.jit, or another transform of "
                "Flax, which Flax refuses within JAX's own, and may have emptied the module: make "
                "it anew, and give the module itself or leave that nnx.jit out"
            ) from error
        raise ValueError(
            "the model changes its own state when called (BatchNorm in training mode or active "
            "dropout?): switch it to evaluation mode, model.eval()"
        ) from error
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite; check its weights for NaN or infinity")
    if np.isnan(gradient[1:]).any() or (of_input and not np.isfinite(gradient[0]).all()):
        raise ValueError(
            "the gradient of the model's logits is not finite at the first images, as that of a "
            "norm or a square root is at 0: keep it away from there, as with jnp.sqrt(x + 1e-12)"
        )
    if np.any(gradient[1:] != 0):
        raise ValueError(
            "the model mixes the samples of a batch (BatchNorm in training mode?): curvature is "
            "defined per sample; switch it to evaluation mode, model.eval()"
        )
    calls = np.stack([logits, again])
    # Equal but for the rounding of a device that sums in no fixed order.
    off = max(np.max(np.ptp(calls[:, rows], axis=(0, 1))) for rows in (_ROWS == 0, _ROWS == 1))
    if off > _ROUNDING * np.max(np.abs(calls)):
        raise ValueError(
            "the model gives one image different logits in two rows or two calls (active dropout "
            "or other randomness?): switch it to evaluation mode, model.eval()"
        )
    if not _alike_in_two(model, program, params, pair, logits[:2]):
        raise ValueError(
            "the model mixes the samples of a batch: it gives an image other logits among two than "
            "among eight, so that they depend on how many there are (len(images)?)"
        )
    if of_input:
        _check_derivative(model, params, pair, logits[:2], gradient[0])
    return CheckedModel(model, program, logits[:2], gradient[0] == 0)


def _check_derivative(
    model: AsTraced, params: Any, pair: np.ndarray, logits: np.ndarray, gradient: np.ndarray
) -> None:
    """Refuses a model whose logits change without a gradient, or that cannot have one.

    Args:
      pair: two images.
      logits: theirs.
      gradient: that of the first one's logits, along `_direction`.

    Raises:
      ValueError: it is such a model.
    """
    one, other = logits @ _direction(logits.shape[1])
    change = max(_NOTHING * abs(other - one), _FAINT * np.max(np.abs(logits)))
    if gradient.any() and _slopes(gradient[None], max(1, np.max(np.abs(pair)))) >= change:
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
      values: function from images `[8, ...]` to the logits of each along `_direction`, `[8]`, and
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


def _slopes(gradients: np.ndarray, way: np.ndarray | float) -> np.ndarray:
    """How far gradients `[rows, ...]` could move something on a way, of each entry or of all."""
    return np.sum(np.abs(gradients * way), axis=tuple(range(1, gradients.ndim)))


def _direction(outputs: int) -> np.ndarray:
    """A random direction of logits: a constant one would miss coupling that keeps their sum."""
    return np.random.default_rng(0).normal(size=outputs)


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
        rounding = _ROUNDING * np.max(np.abs(checked.logits))
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


def _alike_in_two(
    model: AsTraced, program: ClosedJaxpr, params: Any, pair: np.ndarray, logits: np.ndarray
) -> bool:
    """Whether two images alone have the logits that they have among eight.

    Computed only where the program of eight holds other numbers than that of two, unless new ones
    are drawn whenever it is traced.
    """
    eight, _ = trace(model.function, params, pair[_ROWS])
    if held(eight) == held(program):
        return True
    one, other = (trace_anew(model.function, params, pair[_ROWS]) for _ in range(2))
    if held(one) != held(other):
        return True
    (found,) = jax.jit(jaxpr_as_fun(program))(*jax.tree.leaves((params, pair)))
    return bool(np.max(np.abs(found - logits)) <= _ROUNDING * np.max(np.abs(logits)))


def _traced(problem: Problem, params: Any, pair: np.ndarray) -> tuple[ClosedJaxpr, Any]:
    """The model's program of these images, and what it returns, without its values."""
    try:
        return trace(problem.model, params, pair)
    except flax.errors.TraceContextError:
        raise  # which says something else
    except Exception as error:  # the model is anybody's code
        said = f"{error}".strip().partition("\n")[0][:_SAID]
        raise ValueError(
            f"the model fails on {pair.dtype} images {pair.shape}: {type(error).__name__}: {said}; "
            f"{_cure(error, problem, params)}"
        ) from error


_WANTS_INTEGERS = re.compile(r"must be an integer|must have integer or boolean type|integer dtype")
"""What Flax and JAX say of floating numbers that index an array."""


def _cure(error: Exception, problem: Problem, params: Any) -> str:
    """What to do about a model that fails."""
    if "torch" in modules_passed(error):
        return (
            "it calls torch, and JAX computes here: build the network in Flax and take its weights "
            "over with bridge.from_torch"
        )
    if isinstance(error, flax.errors.ScopeCollectionNotFound | flax.errors.ScopeParamNotFoundError):
        return (
            'a Linen model\'s apply takes all its variables: params={"params": ..., "batch_stats": '
            "...}"
        )
    if _WANTS_INTEGERS.search(str(error)):
        return _EMBED
    if isinstance(error, TypeError) and "positional argument" in str(error):
        return f"it is called with {arguments_of(problem.model)}"
    numbers = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree.leaves_with_path(params)
        if jnp.shape(leaf) == ()
        and (jnp.issubdtype(jax.typeof(leaf).dtype, jnp.bool_) or jax.typeof(leaf).weak_type)
    ]
    if numbers and isinstance(error, TypeError):
        return (
            f"params{numbers[0]} is a Python number, which becomes an array: one that decides a "
            "shape or a branch the function closes over"
        )
    return "it must be JAX code that takes [batch, ...] of the images' shape"


def _as_traced(
    what: str, function: Callable, arguments: Sequence[Any], program: ClosedJaxpr, number: int
) -> AsTraced:
    """The function as it is now, and its derivative with respect to the argument of this number.

    Raises:
      ValueError: JAX remembers another one.
    """
    if isinstance(function, AsTraced):  # else it compiles once more
        function = function.function
    digest = fingerprint(program)
    check_remembered(what, function, arguments, program, params=True)
    if has_own_rules(program):
        pulled = with_derivative(function, number)
        derivative, _ = trace(pulled, *arguments)
        check_remembered(what, pulled, arguments, derivative, params=True)
        digest += fingerprint(derivative)
    return AsTraced(function, digest)


def check_remembered(
    what: str,
    function: Callable,
    arguments: Sequence[Any],
    program: ClosedJaxpr,
    *,
    params: bool = False,
) -> None:
    """Refuses a function within which JAX remembers other arrays than there are now.

    Args:
      what: the function in words.
      program: that of the function.
      params: whether the function may be given arrays as params instead.

    Raises:
      ValueError: it does, and the results differ.
    """
    now = remembered_otherwise(function, arguments, program)
    if now is None:
        return
    old, new = (jax.jit(jaxpr_as_fun(p))(*jax.tree.leaves(arguments)) for p in (program, now))
    for one, other in zip(old, new, strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating) and not np.allclose(
            one, other, rtol=0, atol=_ROUNDING * np.max(np.abs(one)), equal_nan=True
        ):
            raise ValueError(
                f"the {what}'s own jax.jit (or jax.checkpoint, loop or branch) has fixed arrays "
                "that have changed since, for JAX remembers the function in it: leave that jit "
                "out, for the engine has its own, or define that function where it is used"
                + (", or hand the arrays over as params, to a function (params, images) -> logits")
                * params
            )


def _check_logits_shape(logits: Any, least: int) -> None:
    if not isinstance(logits, jax.ShapeDtypeStruct):
        raise ValueError(f"the model must return logits alone; got a {type(logits).__name__}")
    if len(logits.shape) != 2 or logits.shape[0] != 2 or logits.shape[1] < least:
        what = "[batch, classes] with at least two classes" if least == 2 else "[batch, outputs]"
        cure = ""
        if logits.shape == (2,):
            cure = "; one output a sample is logits[:, None]"
        elif logits.shape == (2, 1):
            cure = (
                "; of one logit z that is a binary classifier return "
                "jnp.concatenate([jnp.zeros_like(z), z], axis=1), whose cross-entropy is that of "
                "the sigmoid, and for other targets give a loss of your own"
            )
        raise ValueError(f"logits must be {what}; got {logits.shape} for a batch of 2{cure}")
    if logits.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"logits are {logits.dtype}, too coarse for a finite difference; compute the model in "
            "float32"
        )


class CheckedLoss(NamedTuple):
    """A loss that treats each sample by itself."""

    loss: Loss
    """What the programs are compiled for."""
    losses: np.ndarray
    """Losses of two images. Of cross-entropy `[2, 2]`, under the labels 0 and 1, and 1 and 0; of
    another loss of classes `[classes, 2]`, under each class, the first 1,000 at most; where labels
    are no classes `[2, 2]`, under two of the given ones, which differ where any do, and those
    exchanged."""


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
    now = loss if loss is cross_entropy else _as_traced("loss", loss, (logits, labels), program, 0)
    losses, gradient, given, of_first, in_eight = jax.device_get(_examine_loss(now, logits, labels))
    if not (np.isfinite(losses).all() and np.isfinite(gradient).all()):
        masked = " (where labels are NaN, it must mask them)" if np.isnan(labels).any() else ""
        raise ValueError(
            f"the loss, or its gradient, is not finite at the first images' logits{masked}"
        )
    off = 64 * np.finfo(logits.dtype).eps * np.max(np.abs(logits))  # a loss of 0 has rounding
    equal = partial(np.allclose, rtol=_ROUNDING, atol=off, equal_nan=True)
    beside = [equal(given[0, 0], of_first)]
    if loss is not cross_entropy:
        beside.append(equal(in_eight, np.tile(given[0], 4)))
    if np.any(gradient[1] != 0) or not all(beside):
        raise ValueError(
            "the loss mixes the samples of a batch, or their labels (logits [batch, 1] less labels "
            "[batch] are [batch, batch]), or depends on how many there are: curvature is defined "
            "per sample"
        )
    if not gradient.any() and not _random_gradients(now, logits, some).any():
        raise ValueError(
            "the loss has no gradient in the logits, so that every score would be 0: an error "
            "rate, rounding, or the softmax of one logit; of one logit take the loss of its "
            "sigmoid, such as optax.sigmoid_binary_cross_entropy(logits[:, 0], labels)"
        )
    if classes and loss is not cross_entropy:
        given = jax.device_get(_losses_of_classes(now, logits))
    return CheckedLoss(now, given)


@partial(jax.jit, static_argnames="model")
def _examine(model: Callable, params: Any, rows: Array) -> tuple[Array, Array, Array]:
    """Logits of the rows by two calls, and the gradient of the first row's with respect to all."""
    logits, pullback = jax.vjp(partial(model, params), rows)
    # Equal calls are one in the compiled program; one that draws anew at every call is not.
    again = model(params, rows)
    cotangent = _direction(logits.shape[1]).astype(logits.dtype)
    (gradient,) = pullback(jnp.zeros_like(logits).at[0].set(cotangent))
    return logits, again, gradient


@partial(jax.jit, static_argnames="model")
def _values(model: Callable, params: Any, rows: Array) -> tuple[Array, Array]:
    """Each row's logits along `_direction`, and the gradients of these."""
    logits, pullback = jax.vjp(partial(model, params), rows)
    cotangent = _direction(logits.shape[1]).astype(logits.dtype)
    (gradient,) = pullback(jnp.broadcast_to(cotangent, logits.shape))
    return logits @ cotangent, gradient


@partial(jax.jit, static_argnames="model")
def _logits(model: Callable, params: Any, rows: Array) -> Array:
    return model(params, rows)


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
