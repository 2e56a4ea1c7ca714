"""Input loss curvature of single samples, estimated with random probes.

For a sample (x, y), loss L and n Rademacher vectors v_i the score is (Garg, Ravikumar and Roy,
ICML 2024; Eq. 1 of Sharma et al.)

    curv(x) = (1/n) sum_i || g_i ||_2,    g_i = grad_x L(x + h v_i, y) - grad_x L(x, y).

At the usual step h the displacement h sqrt(d) crosses kinks of a ReLU network: the score measures
how the gradient changes over a neighbourhood and is not h times a Hessian-vector product. The same
differences give Hutchinson's estimate of the trace of the Hessian, (1/n) sum_i v_i . g_i / h,
smoothed over that neighbourhood.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int, Key

from jaxcurv.estimators import FiniteDifference
from jaxcurv.probes import rademacher

LogitsFn = Callable[..., Array]
"""`logits_fn(images)` or, with `params` given, `logits_fn(params, images)`: `[batch, classes]`."""

PRECISION = "highest"
"""JAX's default lets GPUs use TF32 and TPUs bfloat16, whose spacing near 1 is about the step h."""


@dataclass(frozen=True)
class Curvature:
    """Scores of one batch, as NumPy arrays `[batch]`; a higher score means more fragile."""

    score: np.ndarray
    """Eq. 1, in nats per unit of the input."""
    standard_error: np.ndarray
    """Standard error of `score` over the probes; NaN for a single probe."""
    hessian_trace: np.ndarray
    """Hutchinson's estimate of the trace of the input Hessian from the same differences."""
    hessian_trace_standard_error: np.ndarray
    """Standard error of `hessian_trace` over the probes; NaN for a single probe."""
    gradient_norm: np.ndarray
    """|| grad_x L(x, y) ||_2."""
    loss: np.ndarray
    """Cross-entropy L(x, y) in nats."""
    prediction: np.ndarray
    """Class of the largest logit."""
    estimator: FiniteDifference
    """What produced the scores."""


def cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
) -> Float[Array, " batch"]:
    """Softmax cross-entropy in nats, accurate for confident samples.

    L = softplus(logsumexp over j != y of (l_j - l_y)). The usual log-softmax form rounds the loss,
    and its gradient in the label's logit, to exactly 0 at a float32 logit gap of about 17.
    """
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_own = jnp.arange(logits.shape[-1]) == labels[:, None]
    return jax.nn.softplus(jax.nn.logsumexp(logits - own, axis=-1, where=~is_own))


def input_curvature(
    logits_fn: LogitsFn | nnx.Module,
    images: ArrayLike,
    labels: ArrayLike,
    *,
    indices: ArrayLike,
    key: Key[Array, ""],
    params: Any = None,
    estimator: FiniteDifference = FiniteDifference(),
) -> Curvature:
    """Scores one batch.

    Args:
      logits_fn: an NNX module in evaluation mode, or a function `images -> logits`, or, with
        `params`, `(params, images) -> logits`. As with `jax.jit`, arrays that a plain function
        closes over are fixed at the first call; weights that change belong into `params`.
      images: floating `[batch, ...]`, normalised as the model expects; the step refers to them.
      labels: integer classes `[batch]`.
      indices: stable sample indices `[batch]`, which key the probes.
      key: typed JAX key of the run.
      params: any pytree, handed to `logits_fn`; a second checkpoint then compiles nothing.
      estimator: step and number of probes.

    Raises:
      ValueError: wrong shapes, types, labels or indices, non-finite images or logits, or a model
        that mixes the samples of a batch or changes its own state.
    """
    images, labels, indices = np.asarray(images), np.asarray(labels), np.asarray(indices)
    model, params = functional(logits_fn, params)
    check_batch(images, labels, indices)
    check_labels(labels, check_per_sample(model, params, images))
    pending = dispatch(model, params, images, labels, indices, key, estimator)
    return collect(pending, indices, estimator)


@dataclass(frozen=True)
class _NnxCall:
    """An NNX module without its state, hashable, so that jit compiles once for all weights."""

    graphdef: Any

    def __call__(self, state: Any, images: Array) -> Array:
        return nnx.merge(self.graphdef, state)(images)


@dataclass(frozen=True)
class _PlainCall:
    """A function of the images alone, given the signature `(params, images)`."""

    logits_fn: LogitsFn

    def __call__(self, params: None, images: Array) -> Array:
        return self.logits_fn(images)


def functional(
    logits_fn: LogitsFn | nnx.Module, params: Any
) -> tuple[Callable[[Any, Array], Array], Any]:
    """Brings every kind of model to `model(params, images)`."""
    if isinstance(logits_fn, nnx.Module):
        if params is not None:
            raise ValueError("an NNX module carries its own weights: leave params out")
        graphdef, state = nnx.split(logits_fn)
        return _NnxCall(graphdef), state
    if params is None:
        return _PlainCall(logits_fn), None
    return logits_fn, params


def check_batch(images: np.ndarray, labels: np.ndarray, indices: np.ndarray) -> None:
    """Refuses a batch that cannot be scored, naming the first offender.

    Raises:
      ValueError: see `input_curvature`.
    """
    shapes = {labels.shape, indices.shape, images.shape[:1]}
    if images.ndim < 2 or len(images) == 0 or len(shapes) > 1:
        raise ValueError(
            "images must be [batch, ...], batch >= 1, with one label and one index each; got "
            f"{images.shape}, {labels.shape}, {indices.shape}"
        )
    if images.dtype not in (np.float32, np.float64):
        raise ValueError(
            "images must be float32 or float64, normalised as the model expects; got "
            f"{images.dtype}"
        )
    for name, values in (("labels", labels), ("indices", indices)):
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(f"{name} must be integers; got {values.dtype}")
    if np.any((indices < 0) | (indices >= 2**32)):
        raise ValueError(f"indices must lie in [0, 2**32); got {indices.min()}..{indices.max()}")
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{np.sum(~finite)} of {len(images)} images hold NaN or infinity, "
            f"the first at index {indices[~finite][0]}; check the data and its normalisation"
        )


def check_per_sample(model: Callable[[Any, Array], Array], params: Any, images: np.ndarray) -> int:
    """Refuses a model whose logits are not one row a sample, each a function of its own image.

    Detected by behaviour: the gradient of one sample's logits with respect to another sample must
    be exactly zero. Coupling that vanishes at these very images is not seen.

    Returns:
      The number of classes.

    Raises:
      ValueError: wrong logits, coupled samples, or a model with state.
    """
    pair = jnp.asarray(np.resize(images, (2, *images.shape[1:])))
    try:
        logits, leak = _leak(model, params, pair)
    except flax.errors.TraceContextError as error:
        raise ValueError(
            "the model changes its own state when called (BatchNorm in training mode or active "
            "dropout?): switch it to evaluation mode, model.eval()"
        ) from error
    if logits.ndim != 2 or logits.shape[0] != 2 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be [batch, classes] with at least two classes; got {logits.shape} for a "
            "batch of 2"
        )
    if logits.dtype not in (np.float32, np.float64):
        raise ValueError(
            f"logits are {logits.dtype}, too coarse for a finite difference; compute the model in "
            "float32"
        )
    if not np.isfinite(logits).all():
        raise ValueError("the model's logits are not finite; check its weights for NaN or infinity")
    if np.any(np.asarray(leak) != 0):
        raise ValueError(
            "the model mixes the samples of a batch (BatchNorm in training mode?): curvature is "
            "defined per sample; switch it to evaluation mode, model.eval()"
        )
    return logits.shape[1]


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Refuses labels that the model has no logit for.

    Raises:
      ValueError: a label outside [0, classes).
    """
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"labels must lie in [0, {classes}), the model's classes; got "
            f"{labels.min()}..{labels.max()}"
        )


@partial(jax.jit, static_argnames="model")
def _leak(model: Callable, params: Any, images: Array) -> tuple[Array, Array]:
    """The logits, and the gradient of the first sample's with respect to the other samples."""
    logits, pullback = jax.vjp(partial(model, params), images)
    # A random cotangent: a constant one would miss coupling that keeps the logits' sum.
    cotangent = jax.random.normal(jax.random.key(0), logits.shape[1:], logits.dtype)
    (gradient,) = pullback(jnp.zeros_like(logits).at[0].set(cotangent))
    return logits, gradient[1:]


@partial(jax.jit, static_argnames="model")
def _base_gradient(
    model: Callable, params: Any, images: Array, labels: Array
) -> tuple[Array, Array, Array]:
    """The loss's input gradient, the losses and the logits of a batch."""

    def total(images: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = model(params, images)
        losses = cross_entropy(logits, labels)
        return jnp.sum(losses), (losses, logits)

    gradient, (losses, logits) = jax.grad(total, has_aux=True)(images)
    return gradient, losses, logits


@partial(jax.jit, static_argnames="model")
def _probe(
    model: Callable,
    params: Any,
    images: Array,
    labels: Array,
    gradient: Array,
    indices: Array,
    key: Array,
    probe: Array,
    step: Array,
) -> tuple[Array, Array]:
    """|| g_i || and v_i . g_i / h of a batch for one probe."""
    v = rademacher(key, indices, probe, images.shape[1:], images.dtype)

    def total(images: Array) -> Array:
        return jnp.sum(cross_entropy(model(params, images), labels))

    difference = jax.grad(total)(images + step * v) - gradient
    return _norm(difference), jnp.sum(v * difference, axis=_features(v)) / step


def _features(x: Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=_features(x)))


def dispatch(
    model: Callable[[Any, Array], Array],
    params: Any,
    images: np.ndarray,
    labels: np.ndarray,
    indices: np.ndarray,
    key: Array,
    estimator: FiniteDifference,
) -> dict[str, Array]:
    """Starts the computation of one batch and returns its arrays without waiting for them."""
    x, y, i = jnp.asarray(images), jnp.asarray(labels, jnp.int32), jnp.asarray(indices, jnp.uint32)
    step = jnp.asarray(estimator.step, x.dtype)
    with jax.default_matmul_precision(PRECISION):
        gradient, losses, logits = _base_gradient(model, params, x, y)
        # One compiled probe, dispatched n times: a loop inside XLA is several times slower on CPUs.
        norms, traces = zip(
            *(
                _probe(model, params, x, y, gradient, i, key, jnp.uint32(n), step)
                for n in range(estimator.probes)
            ),
            strict=True,
        )
    return {
        "norms": jnp.stack(norms),
        "traces": jnp.stack(traces),
        "gradient_norm": _norm(gradient),
        "loss": losses,
        "prediction": jnp.argmax(logits, axis=-1),
        "finite": jnp.all(jnp.isfinite(logits), axis=-1),
    }


def collect(
    pending: dict[str, Array], indices: np.ndarray, estimator: FiniteDifference
) -> Curvature:
    """Waits for a dispatched batch and reduces it over the probes, in float64.

    Raises:
      ValueError: a sample's logits are not finite.
    """
    values = jax.device_get(pending)
    finite = values["finite"]
    if not finite.all():
        raise ValueError(
            f"the model's logits are not finite for {np.sum(~finite)} of {len(finite)} samples, "
            f"the first at index {indices[~finite][0]}; check its weights for NaN or infinity"
        )
    score, standard_error = _mean_and_error(values["norms"])
    trace, trace_error = _mean_and_error(values["traces"])
    return Curvature(
        score=score,
        standard_error=standard_error,
        hessian_trace=trace,
        hessian_trace_standard_error=trace_error,
        gradient_norm=values["gradient_norm"],
        loss=values["loss"],
        prediction=values["prediction"],
        estimator=estimator,
    )


def _mean_and_error(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n = len(draws)
    wide = draws.astype(np.float64)
    error = wide.std(axis=0, ddof=1) / np.sqrt(n) if n > 1 else np.full(wide.shape[1:], np.nan)
    return wide.mean(axis=0).astype(draws.dtype), error.astype(draws.dtype)
