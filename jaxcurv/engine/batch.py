"""The computation of one batch under several estimators at once.

Estimators that evaluate the same probes share them, and all share the base gradient. The small
compiled programs are dispatched from the host: a loop inside XLA is several times slower on CPUs,
and a linearised model crosses from one program to the next as arrays.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxcurv.data.reading import Batch
from jaxcurv.engine import gauss_newton, own_estimators
from jaxcurv.engine.finite_difference import gradient_difference
from jaxcurv.engine.hessian_vector import hessian_vector_product
from jaxcurv.engine.losses import are_classes, as_targets, hessian_root
from jaxcurv.engine.model import Problem, own_rules
from jaxcurv.engine.norms import norm
from jaxcurv.estimators import (
    Adaptive,
    Estimator,
    GaussNewton,
    LowRankGaussNewton,
    Precision,
    Probed,
    Probing,
    Spectral,
)
from jaxcurv.logit_scores import logit_scores

PRECISION: Precision = "highest"
"""JAX's default lets GPUs use TF32 and TPUs bfloat16, whose spacing near 1 is about the step h."""


class Draws(NamedTuple):
    """What the probes of a batch gave, `[batch, probes]` each."""

    norm: Any
    """|| g || or || H v ||."""
    quadratic: Any
    """v . g / h or v . H v."""


class Raw(NamedTuple):
    """A batch before the reduction over probes: arrays on a device or, once collected, NumPy's."""

    loss: Any
    """`[batch]`."""
    prediction: Any
    """`[batch]`; None where the labels are no classes."""
    gradient_norm: Any
    """`[batch]`."""
    finite: Any
    """Whether the logits are, `[batch]`."""
    logit_scores: dict[str, Any]
    """See `jaxcurv.logit_scores`; `[batch]` each, none where the labels are no classes."""
    draws: tuple[Draws, ...]
    """In the order of `probings`."""
    jumped: Any
    """Whether a finite difference met a jump of the model, `[batch]`."""
    spectra: dict[str, dict[str, Any]]
    """Results of the Gauss-Newton estimators, by name; `[batch]` or `[batch, ...]` each. On a
    device with the Gram matrix; once collected, with its eigenvalues instead."""
    own: dict[str, dict[str, Any]]
    """Score and standard error of the `OwnEstimator`s, by name; `[batch]` each."""


def probed(estimator: Estimator) -> Probed | None:
    """The estimator whose probes are drawn at once, if any are."""
    if isinstance(estimator, Adaptive):
        return replace(estimator.estimator, probes=estimator.first_probes)
    return estimator if isinstance(estimator, Probed) else None


def probings(estimators: Mapping[str, Estimator]) -> dict[Probing, int]:
    """What is probed, and how often."""
    counts: dict[Probing, int] = {}
    for estimator in map(probed, estimators.values()):
        if estimator is not None:
            count = counts.get(estimator.probing, 0)
            counts[estimator.probing] = max(count, estimator.probes)
    return counts


def dispatch(
    problem: Problem,
    params: Any,
    batch: Batch,
    key: Array,
    estimators: Mapping[str, Estimator],
    *,
    first: int = 0,
    sharding: jax.sharding.Sharding | None = None,
) -> Raw:
    """Starts the computation of one batch and returns its arrays without waiting for them.

    Args:
      estimators: one of the user's own as `own_estimators.as_traced` gives it.
      first: number of the first probe.
      sharding: how the batch lies on the devices; None for JAX's default device.

    Raises:
      ValueError: a `jax.custom_vjp` in the model calls itself in its forward rule.
    """
    with own_rules(problem.model, problem.loss):
        try:
            return _dispatch(problem, params, batch, key, estimators, first, sharding)
        except TypeError as error:
            if "custom_vjp" not in str(error):
                raise
            raise ValueError(
                "HessianVector and HessianTrace push vectors forward through the model's "
                "gradient, which a jax.custom_vjp that its own forward rule calls again does not "
                "allow: have that rule compute the value itself, write it as a jax.custom_jvp, or "
                "take FiniteDifference"
            ) from error


def _dispatch(
    problem: Problem,
    params: Any,
    batch: Batch,
    key: Array,
    estimators: Mapping[str, Estimator],
    first: int,
    sharding: jax.sharding.Sharding | None,
) -> Raw:
    x = jax.device_put(batch.images, sharding)
    y = jax.device_put(as_targets(batch.labels), sharding)
    indices = jax.device_put(batch.indices.astype(np.uint32), sharding)
    counts = probings(estimators)
    bases = {}
    for precision, keep in _kept(counts, estimators).items():
        with jax.default_matmul_precision(precision):
            bases[precision] = _base(problem, params, x, y, keep)
    base = bases[PRECISION]
    draws = []
    jumped = jax.device_put(np.zeros(len(batch.labels), bool), sharding)
    for probing, count in counts.items():
        with jax.default_matmul_precision(probing.precision):
            if probing.step is not None:
                step, offset = (jnp.asarray(one, x.dtype) for one in (probing.step, probing.offset))
            results = []
            for number in map(jnp.uint32, range(first, first + count)):
                if probing.step is None:
                    product = bases[probing.precision].product
                    result = hessian_vector_product(
                        product, x, indices, key, number, probing.distribution
                    )
                else:
                    *result, jumped = gradient_difference(
                        problem, params, x, y, base.losses, base.gradient, jumped, indices, key,
                        number, step, offset, probing.distribution,
                    )  # fmt: skip
                results.append(result)
        draws.append(Draws(*(jnp.stack(column, axis=1) for column in zip(*results, strict=True))))
    spectra = {}
    for name, estimator in estimators.items():
        if isinstance(estimator, Spectral):
            with jax.default_matmul_precision(estimator.precision):
                linearised = bases[estimator.precision].linearised
                spectra[name] = (
                    gauss_newton.spectrum(linearised)
                    if isinstance(estimator, GaussNewton)
                    else gauss_newton.low_rank_spectrum(linearised, estimator, x, indices, key)
                )
    own = {}
    for name, estimator in estimators.items():
        if isinstance(estimator, own_estimators.AsTracedEstimator):
            with jax.default_matmul_precision(PRECISION):
                own[name] = own_estimators.evaluate(
                    problem, params, x, y, base.gradient, indices, key, estimator
                )
    return Raw(
        loss=base.losses,
        prediction=base.prediction,
        gradient_norm=base.gradient_norm,
        finite=base.finite,
        logit_scores=base.logit_scores,
        draws=tuple(draws),
        jumped=jumped,
        spectra=spectra,
        own=own,
    )


def collect(pending: Raw, indices: np.ndarray) -> Raw:
    """Waits for a dispatched batch and brings it to the host.

    Raises:
      ValueError: a sample's logits, loss, gradient, probes or own score are not finite, or its
        loss is not convex in the logits.
    """
    raw = jax.device_get(pending)
    cause = "its weights for NaN, and this image for what becomes 0 / 0, log(0) or overflows"
    _refuse(~raw.finite, indices, "the model's logits are not finite", cause)
    known = np.isfinite(raw.loss) & np.isfinite(raw.gradient_norm)
    _refuse(~known, indices, "the loss or its gradient is not finite", "the model and the loss")
    for draws in raw.draws:
        drawn = np.isfinite(draws.norm).all(axis=1) & np.isfinite(draws.quadratic).all(axis=1)
        _refuse(~drawn, indices, "the loss near the image has no finite gradient", "the step")
    spectra = {}
    for name, spectrum in raw.spectra.items():
        _refuse(
            np.isnan(spectrum["trace"]),
            indices,
            "Gauss-Newton is undefined",
            "that the loss is convex in the logits",
        )
        others = {key: value for key, value in spectrum.items() if key != "gram"}
        spectra[name] = {**others, "eigenvalues": gauss_newton.eigenvalues(spectrum["gram"])}
    for name, found in raw.own.items():
        wrong = ~np.isfinite(found["score"])
        _refuse(wrong, indices, f"the score of estimator {name!r} is not finite", "its estimate()")
    return raw._replace(spectra=spectra)


def _refuse(wrong: np.ndarray, indices: np.ndarray, what: str, check: str) -> None:
    if wrong.any():
        raise ValueError(
            f"{what} for {np.sum(wrong)} of {len(wrong)} samples, the first at index "
            f"{indices[wrong][0]}; check {check}"
        )


class _Base(NamedTuple):
    """A batch's forward pass, its loss's input gradient, and what later programs go on from."""

    losses: Array
    prediction: Array | None
    finite: Array
    logit_scores: dict[str, Array]
    gradient: Array
    gradient_norm: Array
    product: Any
    """v -> H v, where kept."""
    linearised: gauss_newton.Linearised | None


def _kept(
    counts: Mapping[Probing, int], estimators: Mapping[str, Estimator]
) -> dict[Precision, frozenset[str]]:
    """What the base pass keeps, for each precision that a later program wants it in."""
    keep: dict[Precision, set[str]] = {PRECISION: set()}
    for probing in counts:
        if probing.step is None:
            keep.setdefault(probing.precision, set()).add("product")
    for estimator in estimators.values():
        if isinstance(estimator, Spectral):
            wanted = keep.setdefault(estimator.precision, set())
            wanted.add("pullback")
            if isinstance(estimator, LowRankGaussNewton):
                wanted.add("pushforward")
    return {precision: frozenset(wanted) for precision, wanted in keep.items()}


@partial(jax.jit, static_argnames=("problem", "keep"))
def _base(problem: Problem, params: Any, x: Array, y: Array, keep: frozenset[str]) -> _Base:
    model = partial(problem.model, params)

    def gradient_of(x: Array) -> tuple[Array, tuple[Array, Array]]:
        logits, pullback = jax.vjp(model, x)
        losses, gradient = _loss_gradient(problem, logits, pullback, y)
        return gradient, (logits, losses)

    product = linearised = None
    if "pullback" in keep:
        logits, pullback = jax.vjp(model, x)
        losses, gradient = _loss_gradient(problem, logits, pullback, y)
        pushforward = jax.linearize(model, x)[1] if "pushforward" in keep else None
        root = hessian_root(problem.loss, logits, y)
        linearised = gauss_newton.Linearised(pullback, pushforward, root)
    if "product" in keep:
        gradient, product, (logits, losses) = jax.linearize(gradient_of, x, has_aux=True)
    if not keep:
        gradient, (logits, losses) = gradient_of(x)
    classes = are_classes(y, logits.shape[1])
    return _Base(
        losses=losses,
        prediction=jnp.argmax(logits, axis=-1) if classes else None,
        finite=jnp.all(jnp.isfinite(logits), axis=-1),
        logit_scores=logit_scores(logits, y) if classes else {},
        gradient=gradient,
        gradient_norm=norm(gradient),
        product=product,
        linearised=linearised,
    )


def _loss_gradient(problem: Problem, logits: Array, pullback: Any, y: Array) -> tuple[Array, Array]:
    losses, loss_pullback = jax.vjp(lambda z: problem.loss(z, y), logits)
    (gradient,) = pullback(*loss_pullback(jnp.ones_like(losses)))
    return losses, gradient
