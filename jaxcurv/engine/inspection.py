"""What the engine refuses of models, by their behaviour."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array

from jaxcurv.data.reading import Batch
from jaxcurv.engine.changes import as_traced
from jaxcurv.engine.checks import EMBED
from jaxcurv.engine.derivatives import check_derivative, examine
from jaxcurv.engine.losses import Loss, as_targets, cross_entropy
from jaxcurv.engine.model import (
    ROUNDING,
    UNCOMPILED,
    AsTraced,
    CheckedModel,
    NnxCall,
    Problem,
    arguments_of,
    modules_passed,
    own_rules,
)
from jaxcurv.engine.tracing import dtypes, held, least_mantissa, trace, trace_anew

_SAID = 300
"""Characters of another library's message that are shown."""


_ROWS = np.array([0, 1, 1, 0, 1, 0, 0, 1])
"""Which of two images each row of the checked batch holds: the other one is beside the first row,
opposite to it, and a half or a quarter of the batch away; each has rows enough that random masks of
a few units are not equal in all of them."""


def check_model(
    problem: Problem, params: Any, images: np.ndarray, *, of_input: bool = True
) -> CheckedModel:
    """Refuses a model that does not treat each sample by itself and always alike, or that has no
    derivative.

    Detected by behaviour, on two images in eight rows: the gradient of one row's logits with
    respect to the other rows must be exactly zero; one image in several rows must give one result,
    and a second call the first one's. An image, and an eighth of it, must have the same logits
    beside other neighbours: itself alone, darker ones, and brighter ones, which move a batch's
    maximum, ranks and thresholds. One small program is compiled for it and runs four times. Not
    seen: coupling that vanishes at these very images; randomness that every sample and every call
    share, or that the model's own `jax.jit` has frozen, which makes it an ordinary fixed model; and
    coupling that needs more than eight samples, for which there is `check_same_in_batch`.

    The model is traced anew, at a few hundredths of a second for a ResNet-18: what it closes over
    may have changed since the last call. Arrays and code that JAX remembers from an
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
        jit holds arrays or code that have changed, or whose logits do not depend on the input
        through operations that have derivatives.
    """
    pair = np.resize(images, (2, *images.shape[1:]))
    pair = pair.astype(jax.dtypes.canonicalize_dtype(pair.dtype))
    try:
        program, result = _traced(problem, params, pair)
        _check_logits_shape(result, 2 if problem.loss is cross_entropy else 1)
        model = as_traced("model", problem.model, (params, pair), program, int(of_input))
        with own_rules(model):
            logits, again, gradient = jax.device_get(examine(model, params, pair[_ROWS]))
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(_KEPT) from error
    except flax.errors.TraceContextError as error:
        if "flax.nnx.transforms" in modules_passed(error):
            raise ValueError(
                "the model hands a module that it closes over to nnx.jit, or another transform of "
                "Flax, which Flax refuses within JAX's own, and may have emptied the module: make "
                "it anew, and give the module itself or leave that nnx.jit out"
            ) from error
        raise ValueError(f"{_CHANGES}; {_COUNTS}") from error
    if not np.isfinite(logits).all():
        raise ValueError(
            "the model's logits are not finite; check its weights for NaN or infinity, and what it "
            "makes of these images: 0 / 0, as x / norm(x) is at a black pixel, or log(0)"
        )
    if np.isnan(gradient[1:]).any() or (of_input and not np.isfinite(gradient[0]).all()):
        raise ValueError(
            "the gradient of the model's logits is not finite at the first images, as that of a "
            "norm or a square root is at 0: keep it away from there, as with jnp.sqrt(x + 1e-12)"
        )
    if np.any(gradient[1:] != 0):
        raise ValueError(
            "the model mixes the samples of a batch (BatchNorm in training mode?), and each sample "
            "is looked at by itself: switch it to evaluation mode, model.eval()"
        )
    if _changes_itself(model.function, params, pair):
        raise ValueError(_CHANGES)
    calls = np.stack([logits, again])
    # Equal but for the rounding of a device that sums in no fixed order.
    off = max(np.max(np.ptp(calls[:, rows], axis=(0, 1))) for rows in (_ROWS == 0, _ROWS == 1))
    if off > ROUNDING * np.max(np.abs(calls)):
        raise ValueError(
            "the model gives one image different logits in two rows or two calls (active dropout "
            "or other randomness?): switch it to evaluation mode, model.eval()"
        )
    if _mixes(model, params, pair, logits[:2]):
        raise ValueError(
            "the model mixes the samples of a batch: it gives an image other logits beside other "
            "images, as where a maximum, a rank, top_k or a threshold is of the whole batch, or "
            "its statistics are behind stop_gradient: let it treat each sample by itself"
        )
    if not _alike_in_two(model, program, params, pair, logits[:2]):
        raise ValueError(
            "the model mixes the samples of a batch: it gives an image other logits among two than "
            "among eight, so that they depend on how many there are (len(images)?)"
        )
    if of_input:
        with own_rules(model):
            check_derivative(model, params, pair, logits[:2], gradient[0])
    return CheckedModel(model, program, logits[:2], gradient[0] == 0)


_KEPT = (
    "the model keeps an array that it has computed while JAX traced it, as functools.lru_cache or "
    "an attribute that is set in a call does, and which is no value later: compute it anew in each "
    "call, or before the model is given"
)
_CHANGES = (
    "the model changes its own state when called (BatchNorm in training mode or active dropout?): "
    "switch it to evaluation mode, model.eval()"
)
_COUNTS = (
    "if it is, and counts alone, as an RNN's of its random stream, give the NNX module itself, or "
    "merge it with copy=True, lambda params, images: nnx.merge(graphdef, params, copy=True)(images)"
)


def _changes_itself(function: Callable, params: Any, pair: np.ndarray) -> bool:
    """Whether a call of an NNX module changes the logits of the next one.

    Computed only where it sets variables at all. Those that no logits depend on may be set: counts,
    what is sown, the random stream of an RNN whose first state is zeros.
    """
    if not isinstance(function, NnxCall):
        return False
    program, _ = trace(function.twice, params, pair)
    if len(program.out_avals) == 1:
        return False
    first, second = jax.jit(jaxpr_as_fun(program))(*jax.tree.leaves((params, pair)))
    return bool(np.max(np.abs(first - second)) > ROUNDING * np.max(np.abs(first)))


def _mixes(model: AsTraced, params: Any, pair: np.ndarray, logits: np.ndarray) -> bool:
    """Whether rows have other logits beside other neighbours, gradients or not.

    Neighbours are an eighth and 32 times as bright: powers of two, which round nothing, and 256
    apart, so that a maximum, a rank or a step of the batch moves far beyond rounding. `one + 4` is
    no multiple of an image, for models that divide each by its own brightness; four is as many
    deviations of normalised pixels. A bright image beside dark ones shows a threshold that no
    ordinary image passes.

    Args:
      pair: two images.
      logits: theirs, among the rows of `_ROWS`.
    """
    one, other = pair
    small, dark = one / 8, other / 8
    batches = np.stack(
        [
            [one] * 8,
            [small, 0 * one, -small, small, dark, 0 * one, -dark, dark],
            [small, one, other, 32 * one, 32 * other, -32 * one, 0 * one, one + 4],
            [32 * one] * 8,
        ]
    ).astype(pair.dtype)
    with own_rules(model):
        alone, darker, brighter, bright = (
            jax.device_get(examine(model, params, b)[0]) for b in batches
        )
    found = np.stack([alone[0], brighter[1], brighter[2], brighter[0]])
    wanted = np.stack([logits[0], logits[0], logits[1], darker[0]])
    return _apart(found, wanted) or _apart(brighter[3], bright[0])


def _apart(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Whether logits differ by more than rounding, of the largest finite one."""
    largest = np.max(np.abs(wanted), initial=0.0, where=np.isfinite(wanted))
    return not np.allclose(found, wanted, rtol=0, atol=ROUNDING * largest, equal_nan=True)


def check_float32(program: ClosedJaxpr) -> None:
    """Refuses a model that computes with fewer bits than float32 has, for a finite difference.

    That is in a floating type of fewer than 32 bits, or through `jax.lax.reduce_precision` to fewer
    bits of the mantissa than 23. Not seen: a `precision` that a layer sets for itself.

    Raises:
      ValueError: it does.
    """
    found = dtypes(program)
    floating = [one for one in found if one is not None and jnp.issubdtype(one, jnp.floating)]
    narrow = sorted({one.name for one in floating if jnp.finfo(one).bits < 32})
    how = f"computes in {', '.join(narrow)}"
    if not narrow:
        bits = least_mantissa(program)
        if bits >= jnp.finfo(np.float32).nmant:
            return
        how = f"reduces numbers to {bits} bits of the mantissa"
    raise ValueError(
        f"the model {how}, too coarse for a finite difference: build it with dtype=float32, or "
        "take an estimator without a step (HessianVector, GaussNewton)"
    )


def _unit(program: ClosedJaxpr) -> float:
    """The unit in the last place of 1 in the coarsest floating type of a program."""
    types = [one for one in dtypes(program) if one is not None]
    bits = [jnp.finfo(one).nmant for one in types if jnp.issubdtype(one, jnp.floating)]
    return 2.0 ** -min(least_mantissa(program), *bits)


def _alike_in_two(
    model: AsTraced, program: ClosedJaxpr, params: Any, pair: np.ndarray, logits: np.ndarray
) -> bool:
    """Whether two images alone have the logits that they have among eight.

    Computed only where the program of eight holds other numbers than that of two, unless new ones
    are drawn whenever it is traced.
    """
    eight, _ = trace(model, params, pair[_ROWS])
    if held(eight) == held(program):
        return True
    one, other = (trace_anew(model.function, params, pair[_ROWS]) for _ in range(2))
    if held(one) != held(other):
        return True
    (found,) = jax.jit(jaxpr_as_fun(program))(*jax.tree.leaves((params, pair)))
    return bool(np.max(np.abs(found - logits)) <= ROUNDING * np.max(np.abs(logits)))


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
    if "lowered and compiled for a particular signature" in str(error):
        return UNCOMPILED
    if _WANTS_INTEGERS.search(str(error)):
        return EMBED
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


def answers_to_eight(
    model: Callable, params: Any, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of eight images, and gradients of two of them, by the program that has examined a
    model of that shape.

    Args:
      model: as `inspect` gives it.
      params: its weights.
      images: `[8, ...]`.

    Returns:
      Logits `[8, outputs]`, and the gradients of a random combination of the first and the fifth
      image's, `[2, ...]`.
    """
    with own_rules(model):
        logits, _, first = examine(model, params, jnp.asarray(images))
        _, _, fifth = examine(model, params, jnp.asarray(np.roll(images, 4, axis=0)))
    return jax.device_get((logits, jnp.stack([first[0], fifth[0]])))


def losses_by_eight(problem: Problem, params: Any, batch: Batch) -> tuple[np.ndarray, float]:
    """Losses of a batch's samples, `[batch]`, eight at a time, and the largest logit.

    Args:
      problem: as `inspect` gives it; the logits are of the program that has examined its model.
      params: its weights.
      batch: `[batch, ...]`; the last sample is repeated up to a multiple of eight.
    """
    count, largest, parts = len(batch.labels), 0.0, []
    padded = batch.take(np.minimum(np.arange(-(-count // 8) * 8), count - 1))
    for start in range(0, len(padded.labels), 8):
        eight = padded.take(np.arange(start, start + 8))
        with own_rules(problem.model):
            logits, _, _ = examine(problem.model, params, jnp.asarray(eight.images))
        parts.append(_losses_of(problem.loss, logits, as_targets(eight.labels)))
        largest = max(largest, float(jnp.abs(logits).max()))
    return np.concatenate(jax.device_get(parts))[:count], largest


@partial(jax.jit, static_argnames="loss")
def _losses_of(loss: Loss, logits: Array, labels: Array) -> Array:
    return loss(logits, labels)


def check_same_in_batch(problem: Problem, params: Any, batch: Batch, losses: Any) -> None:
    """Refuses a model that gives samples of a batch other losses than eight at a time.

    Looked at are 16 that lie all over the batch: experts of limited capacity leave out its last
    ones. Rounding is measured by a change of the images by some units in the last place, or by one
    of a coarser type that the model computes in.

    Args:
      problem, params: as for `losses_by_eight`.
      batch: one of eight samples or fewer is not looked at.
      losses: of the whole batch, `[batch]`.

    Raises:
      ValueError: it does.
    """
    count = len(batch.labels)
    if count <= 8:
        return
    places = np.unique(np.linspace(0, count - 1, 16).round().astype(np.int64))
    some, whole = batch.take(places), np.asarray(losses)[places]
    found, largest = losses_by_eight(problem, params, some)
    allowed = ROUNDING * max(largest, float(np.max(np.abs(whole))))
    if not np.any(np.abs(found - whole) > allowed):
        return
    program, _ = trace(problem.model, params, some.images[_ROWS])
    step = 1 + max(8 * float(np.finfo(some.images.dtype).eps), _unit(program))
    images = some.images * some.images.dtype.type(step)
    nudged, _ = losses_by_eight(problem, params, some._replace(images=images))
    off = np.abs(found - whole)
    if np.any(off > max(allowed, 10 * float(np.max(np.abs(nudged - found))))):
        raise ValueError(
            "the model mixes the samples of a batch: it gives the sample at index "
            f"{some.indices[np.argmax(off)]} another loss among {count} samples than among eight, "
            "as experts of limited capacity do: let it treat each sample by itself, as with room "
            "for the whole batch"
        )
