"""Input loss curvature of one batch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Key

from jaxcurv.data.layouts import as_images, plain_array
from jaxcurv.data.reading import Batch
from jaxcurv.engine import gauss_newton, own_estimators
from jaxcurv.engine.batch import (
    PRECISION,
    Draws,
    Raw,
    collect,
    dispatch,
    probed,
    probings,
)
from jaxcurv.engine.checks import check_batch, check_key, check_labels, check_steps
from jaxcurv.engine.derivatives import (
    check_continuous,
    warn_of_jumps,
    warn_of_samples,
    warn_of_ties,
    warn_of_zeros,
)
from jaxcurv.engine.inspection import check_float32, check_model, check_same_in_batch
from jaxcurv.engine.loss_inspection import check_loss, warn_of_probabilities
from jaxcurv.engine.losses import Loss, cross_entropy
from jaxcurv.engine.model import LogitsFn, Problem, functional, own_rules
from jaxcurv.engine.probes import default_key
from jaxcurv.estimators import (
    Adaptive,
    Estimator,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    OwnEstimator,
    Probed,
    Published,
    Spectral,
    check_estimator,
)
from jaxcurv.rows import require_labels_of


@dataclass(frozen=True)
class Curvature:
    """Scores of one batch, as NumPy arrays `[batch]`; a higher score means more fragile.

    Attributes:
      score: what `measures` says; see the estimator for its formula and unit.
      standard_error: standard error of `score` over the probes; NaN for a single probe, 0 for an
        exact estimator. An estimator of your own may return it; else NaN.
      probes: random vectors that the sample took; 0 for an estimator of your own.
      loss: loss of the sample, L(x, y); in nats for cross-entropy.
      prediction: class of the largest logit; None where the labels are no classes.
      gradient_norm: norm of the loss's input gradient, || grad_x L(x, y) ||_2.
      measures: what the score is.
      estimator: what produced it.
      hessian_trace: Hutchinson's estimate of tr H from the same probes (see `HessianTrace`); with a
        finite difference, of the trace smoothed over the step.
      hessian_trace_standard_error: standard error of `hessian_trace` over the probes.
      frobenius_norm: Frobenius norm of H (`HessianVector`) or of G (`GaussNewton`).
      eigenvalues: `[batch, k]`, descending: all non-zero ones of G, or those within the random
        subspace.
      residual_trace: trace of G outside the random subspace (`LowRankGaussNewton`).
    """

    score: np.ndarray
    standard_error: np.ndarray
    probes: np.ndarray
    loss: np.ndarray
    prediction: np.ndarray | None
    gradient_norm: np.ndarray
    measures: str
    estimator: Estimator
    hessian_trace: np.ndarray | None = None
    hessian_trace_standard_error: np.ndarray | None = None
    frobenius_norm: np.ndarray | None = None
    eigenvalues: np.ndarray | None = None
    residual_trace: np.ndarray | None = None


Values: TypeAlias = Any
"""An array of NumPy or JAX, a torch tensor, or numbers in a sequence."""


def input_curvature(
    logits_fn: LogitsFn | nnx.Module,
    images: Values,
    labels: Values,
    *,
    indices: Values | None = None,
    key: Key[Array, ""] | None = None,
    params: Any = None,
    estimator: Estimator = FiniteDifference(),
    loss: Loss = cross_entropy,
) -> Curvature:
    """Estimates the input loss curvature of each sample of one batch.

    By default Eq. 1 of Sharma et al. (see CITATION.cff), with n random vectors v_i of signs,

        curv(x) = (1/n) sum_i || grad_x (L(x + h v_i, y) - L(x, y)) ||_2;

    `estimator` says what else.

    >>> images = np.zeros((1, 2), np.float32)  # the two logits themselves: p = 1/2 each
    >>> found = input_curvature(lambda images: images, images, [0], estimator=GaussNewton())
    >>> found.score, found.eigenvalues  # the Hessian is [[1, -1], [-1, 1]] / 4
    (array([0.5], dtype=float32), array([[0.5]], dtype=float32))

    Each call checks the model first, at the cost of some passes of eight images; `score_dataset`
    checks once for all batches. A model that rounds a part of its input, so that a step makes its
    logits jump, is warned of; else one warning counts the samples at which it jumps within a
    step of a finite difference. Scores without a step that are all 0, where gradients are not, are
    warned of, and so are samples that are tied at 0, if at least two and a tenth of all are.

    Args:
      logits_fn: an NNX module in evaluation mode, or a function `images -> logits`, or, with
        `params`, `(params, images) -> logits`. Arrays that a function closes over are those of the
        moment, but each change compiles anew: weights that change belong in `params`. Arrays that
        a `jax.jit`, `jax.checkpoint` or loop of its own has fixed, and which have changed since,
        are refused.
      images: floating `[batch, height, width, channel]`, or of any other shape `[batch, ...]`,
        normalised as the model expects; the step refers to them. A torch tensor `[batch, channel,
        height, width]` is transposed first.
      labels: integer classes `[batch]`; for a loss of your own any numbers `[batch, ...]`, such as
        floats to predict, or several classes at once.
      indices: stable sample indices `[batch]`, which key the probes; by default the positions in
        the batch. Give them where a data set has several batches, else all share their probes.
      key: typed JAX key of the run; by default `jax.random.key(0)`.
      params: any pytree, handed to `logits_fn`; a second checkpoint then compiles nothing.
      estimator: what is computed, and how; one of your own is an `OwnEstimator`.
      loss: per-sample loss `(logits [batch, outputs], labels [batch, ...]) -> [batch]`; programs
        are compiled once for a function object. Whole numbers `[batch]` are classes where there are
        two outputs or more; a loss of your own takes other labels, and a single output, as they
        are. The Gauss-Newton estimators need it to be convex in the logits.

    Returns:
      A `Curvature`: score and standard error of each sample, its loss, prediction and gradient
      norm, and what else the estimator gives.

    Raises:
      ValueError: wrong shapes, types, labels or indices, a DataFrame in another order than its
        labels, a shuffled Series of labels beside an array, non-finite images or logits, a step too
        small for the images' type, a model that mixes the samples of a batch, is random or changes
        its own state, an estimator of your own that mixes them or returns something else than it
        should, or, for Gauss-Newton, a loss that is not convex in the logits or a model with a
        `jax.custom_vjp`.
    """
    require_labels_of(images, labels)
    pixels = as_images(images)
    if indices is None:
        indices = np.arange(len(pixels) if pixels.ndim else 0)
    batch = Batch(pixels, plain_array(labels, "labels"), plain_array(indices, "indices"))
    key = default_key() if key is None else key
    model, params = functional(logits_fn, params)
    params = jax.device_put(params)
    problem, estimators = Problem(model, loss), {"score": estimator}
    check_estimator(estimator)
    check_key(key)
    check_batch(*batch, loss)
    inspection = inspect(problem, params, batch, estimators)
    problem = inspection.problem
    raw = collect(dispatch(problem, params, batch, key, inspection.estimators), batch.indices)
    with jax.default_matmul_precision(PRECISION):
        check_same_in_batch(problem, params, batch, raw.loss)
    size = len(batch.labels)
    adapted = refine(raw, problem, params, batch, key, estimators, batch_size=size)
    if not inspection.warned:
        warn_of_samples([(batch.indices, on_jumps(raw, adapted))])
    found = reduce(raw, estimators, adapted, inspection.matrix)["score"]
    both = {"score": (found.score, found.standard_error)}
    if not warn_of_zeros(estimators, both, found.gradient_norm) and not inspection.warned:
        warn_of_ties(estimators, both, batch.indices)
    return found


class Inspection(NamedTuple):
    """What the first samples showed of a problem."""

    problem: Problem
    """The problem as its code and arrays are now, for which programs are compiled."""
    logits: np.ndarray
    """Logits of two images, `[2, outputs]`."""
    losses: np.ndarray
    """Losses of these images, `[2, 2]`; see `CheckedLoss`."""
    loss_gradient: np.ndarray
    """Gradient of the first one's loss in its logits, `[outputs]`."""
    estimators: dict[str, Estimator]
    """The estimators, those of the user's own as their code and arrays are now."""
    matrix: str
    """What `GaussNewton` may call its matrix; empty where no estimator asks."""
    warned: bool
    """Whether a warning has said that logits change otherwise than their gradient says."""


def inspect(
    problem: Problem, params: Any, batch: Batch, estimators: Mapping[str, Estimator]
) -> Inspection:
    """Checks a problem on its first samples, before any score is computed.

    The matrix is the "Hessian" where its products with a few vectors agree with those of the
    Gauss-Newton matrix to 1 %.

    Raises:
      ValueError: see `input_curvature`.
    """
    steps = [probing.step for probing in probings(estimators) if probing.step is not None]
    check_steps(batch.images, steps)
    with jax.default_matmul_precision(PRECISION):
        checked = check_model(problem, params, batch.images)
        model, program, logits, _ = checked
        loss, losses, loss_gradient = check_loss(problem.loss, logits, batch.labels)
        problem = Problem(model, loss)
        check_labels(batch.labels, logits.shape[1], problem.loss)
        few = batch.take(np.arange(min(4, len(batch.labels))))
        matrix, warned = "", False
        with own_rules(model, loss):
            if steps:
                check_float32(program)
                check_continuous(checked, params, batch.images, max(steps))
            if estimators:
                warn_of_probabilities(problem.loss, logits)
                step = max(steps, default=None)
                warned = warn_of_jumps(checked, params, batch.images, step)
            if any(isinstance(e, Spectral) for e in estimators.values()):
                mismatch = gauss_newton.hessian_mismatch(problem, params, few.images, few.labels)
                matrix = "Hessian" if mismatch < 1e-2 else "Gauss-Newton matrix"
        own = {
            name: own_estimators.as_traced(one, problem.loss, few, logits)
            for name, one in estimators.items()
            if isinstance(one, OwnEstimator)
        }
    if own:
        _check_own(problem, params, few, own)
    return Inspection(problem, logits, losses, loss_gradient, {**estimators, **own}, matrix, warned)


def _check_own(
    problem: Problem, params: Any, batch: Batch, estimators: Mapping[str, OwnEstimator]
) -> None:
    """Refuses a score that depends on a sample's place in its batch or on the others there.

    Not seen: a dependence of less than a hundredth of the largest score.
    """
    # The first two samples in other rows, beside none but each other.
    rows = np.minimum(np.arange(len(batch.labels))[::-1], 1)
    first, second = (
        collect(dispatch(problem, params, some, jax.random.key(0), estimators), some.indices).own
        for some in (batch, batch.take(rows))
    )
    for name, found in first.items():
        off = np.abs(second[name]["score"] - found["score"][rows])
        if np.any(off > 0.01 * np.abs(found["score"]).max()):
            raise ValueError(
                f"estimator {name!r} gives a sample another score in another batch: it must not "
                "mix samples, and must take its random numbers from problem.probe"
            )


@dataclass(frozen=True)
class Adapted:
    """Draws of an adaptive estimator."""

    draws: Draws
    """`[batch, most probes]`; those of a sample that needed fewer end in zeros."""
    probes: np.ndarray
    """How many each sample took, `[batch]`."""
    jumped: np.ndarray
    """Whether any of them met a jump of the model, `[batch]`."""


def refine(
    raw: Raw,
    problem: Problem,
    params: Any,
    batch: Batch,
    key: Key[Array, ""],
    estimators: Mapping[str, Estimator],
    *,
    batch_size: int,
    sharding: jax.sharding.Sharding | None = None,
) -> dict[str, Adapted]:
    """Draws further probes for the samples whose error bar an adaptive estimator finds too wide.

    The samples that go on are gathered into batches of their own, of the same compiled shape.
    """
    adapted = {}
    for name, adaptive in estimators.items():
        if not isinstance(adaptive, Adaptive):
            continue
        first = adaptive.first_probes
        drawn = _draws(raw, estimators, adaptive.estimator)
        norm, quadratic = (np.asarray(values[:, :first]) for values in drawn)
        counts, jumped = np.full(len(norm), first), raw.jumped.copy()
        while first < adaptive.max_probes:
            score, error = _score(adaptive.estimator, Draws(norm, quadratic), counts)
            rows = np.flatnonzero(error > adaptive.tolerance * np.abs(score))
            if len(rows) == 0:
                break
            count = min(adaptive.estimator.probes, adaptive.max_probes - first)
            one = {name: replace(adaptive.estimator, probes=count)}
            more = np.zeros((2, len(norm), count), norm.dtype)
            for start in range(0, len(rows), batch_size):
                chosen = rows[start : start + batch_size]
                some = batch.take(np.resize(chosen, batch_size))
                pending = dispatch(problem, params, some, key, one, first=first, sharding=sharding)
                found = collect(pending, some.indices)
                more[:, chosen] = np.stack(found.draws[0])[:, : len(chosen)]
                jumped[chosen] |= found.jumped[: len(chosen)]
            norm = np.concatenate([norm, more[0]], axis=1)
            quadratic = np.concatenate([quadratic, more[1]], axis=1)
            first += count
            counts[rows] = first
        adapted[name] = Adapted(Draws(norm, quadratic), counts, jumped)
    return adapted


def on_jumps(raw: Raw, adapted: Mapping[str, Adapted]) -> np.ndarray:
    """Whether a finite difference met a jump of the model, bool `[batch]`."""
    return np.any([raw.jumped, *(one.jumped for one in adapted.values())], axis=0)


def reduce(
    raw: Raw, estimators: Mapping[str, Estimator], adapted: Mapping[str, Adapted], matrix: str
) -> dict[str, Curvature]:
    """Scores from collected draws, reduced over the probes in float64."""
    return {
        name: Curvature(
            loss=raw.loss,
            prediction=raw.prediction,
            gradient_norm=raw.gradient_norm,
            estimator=estimator,
            **_fields(name, raw, estimators, adapted.get(name), matrix),
        )
        for name, estimator in estimators.items()
    }


def _fields(
    name: str, raw: Raw, estimators: Mapping[str, Estimator], adapted: Adapted | None, matrix: str
) -> dict[str, Any]:
    estimator = estimators[name]
    if isinstance(estimator, Spectral):
        return _from_spectrum(estimator, raw.spectra[name], matrix)
    if isinstance(estimator, OwnEstimator):
        none = np.zeros(len(raw.loss), int)
        return {**raw.own[name], "probes": none, "measures": type(estimator).__qualname__}
    return _from_draws(estimator, raw, estimators, adapted)


def _draws(raw: Raw, estimators: Mapping[str, Estimator], estimator: Probed) -> Draws:
    return raw.draws[list(probings(estimators)).index(estimator.probing)]


def _from_draws(
    estimator: Probed | Adaptive,
    raw: Raw,
    estimators: Mapping[str, Estimator],
    adapted: Adapted | None,
) -> dict[str, Any]:
    inner = probed(estimator)
    assert inner is not None
    if adapted is None:
        draws = Draws(*(values[:, : inner.probes] for values in _draws(raw, estimators, inner)))
        counts = np.full(len(raw.loss), inner.probes)
    else:
        draws, counts = adapted.draws, adapted.probes
    score, error = _score(inner, draws, counts)
    trace, trace_error = mean_and_error(draws.quadratic, counts)
    fields = {
        "score": score,
        "standard_error": error,
        "probes": counts,
        "measures": inner.measures,
        "hessian_trace": trace,
        "hessian_trace_standard_error": trace_error,
    }
    if isinstance(inner, HessianVector):
        mean_square, _ = mean_and_error(np.square(draws.norm, dtype=np.float64), counts)
        fields["frobenius_norm"] = np.sqrt(mean_square).astype(score.dtype)
    return fields


def _score(estimator: Probed, draws: Draws, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(estimator, HessianTrace):
        return mean_and_error(draws.quadratic, counts)
    score, error = mean_and_error(draws.norm, counts)
    if isinstance(estimator, Published):
        return score / estimator.batch_size, error / estimator.batch_size
    return score, error


def _from_spectrum(
    estimator: Spectral, spectrum: dict[str, np.ndarray], matrix: str
) -> dict[str, Any]:
    trace = spectrum["trace"]
    fields = {"measures": f"trace of the {matrix}", "eigenvalues": spectrum["eigenvalues"]}
    if isinstance(estimator, GaussNewton):
        zeros = np.zeros_like(trace)
        return fields | {
            "score": trace,
            "standard_error": zeros,
            "probes": zeros.astype(int),
            "frobenius_norm": spectrum["frobenius_norm"],
        }
    counts = np.full(len(trace), estimator.probes)
    outside, error = mean_and_error(spectrum["outside"], counts)
    return fields | {
        "score": trace + outside,
        "standard_error": error,
        "probes": counts + spectrum["eigenvalues"].shape[1],
        "residual_trace": outside,
    }


def mean_and_error(draws: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of each row's first `counts` draws, `[batch, probes]` -> `[batch]`.

    In float64, returned in the draws' type; the error of a single draw is NaN.
    """
    used = np.arange(draws.shape[1]) < counts[:, None]
    wide = draws.astype(np.float64)
    mean = np.sum(wide, axis=1, where=used) / counts
    squares = np.sum(np.square(wide - mean[:, None]), axis=1, where=used)
    with np.errstate(invalid="ignore"):
        error = np.sqrt(squares / (counts - 1) / counts)
    return mean.astype(draws.dtype), error.astype(draws.dtype)
