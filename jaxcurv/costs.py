"""What a score costs: its time over that of one forward pass, as it was measured once.

Importable without JAX. The unit, F, is the time of one compiled forward pass of the same batch on
the same device. A count of passes (`jaxcurv.estimators.nominal_passes`) says less: a backward pass
takes longer than a forward pass, and a gradient to the weights of each sample far longer.

Every constant here is a median of paired ratios from `python -m experiments benchmark costs`, whose
report is experiments/results/benchmark/cpu_costs.json: network, device, versions, date and spread
are in it. Checks of the model, compilation and reading are not in them: they are paid once a call.
Other networks, batches and devices have other ratios; these are printed everywhere, so that tables
can be compared and do not change from run to run.
"""

from dataclasses import dataclass, replace

from jaxcurv.estimators import (
    Adaptive,
    Estimator,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    OwnEstimator,
    Precision,
)


@dataclass(frozen=True)
class Line:
    """Cost in F of what is done once a sample, and of each probe or column."""

    base: float
    each: float


FORWARD = 1.0
"""One forward pass, of which the loss, the margin and all scores of the logits come: the unit."""

GRADIENT_NORM = 2.37
"""The loss and its input gradient: one forward and one backward pass."""

FINITE_DIFFERENCE = Line(2.33, 2.26)
"""Base gradient, and each probe's gradient. For `Published` and `HessianTrace` with a step too."""

HESSIAN_VECTOR = Line(2.63, 2.15)
"""Linearised gradient, and each product. For `HessianTrace` without a step too."""

GAUSS_NEWTON = Line(4.1, 0.92)
"""What is done once, and each of the C - 1 columns of V."""

LOW_RANK_BASE, LOW_RANK_DIMENSION, LOW_RANK_PROBE = 2.81, 2.13, 1.12
"""`LowRankGaussNewton`: linearised model, each dimension of the subspace, each probe outside."""

MARGIN = 1.24
"""`jaxcurv.margin_table` without any noise: the margin of the prediction or of a given class."""

MARGIN_MOMENTS = 6.18
"""`jaxcurv.margin_table` with one noise: margin, shift and variance, from a gradient to the weights
of each sample."""

MARGIN_AT_MEAN = 2 * MARGIN
"""The digital prediction, and its margin in the network of the mean weights."""

FLIP_PROBABILITY = MARGIN + MARGIN_MOMENTS
"""`jaxcurv.flip_probability`: the digital prediction, and the margin's moments at the mean weights.
The moments of the weights, once for all samples, and the variance that converters add, some three
passes of PyTorch's, are not in it."""

FLIP_PROBABILITY_UNSHIFTED = MARGIN_MOMENTS
"""The same around the digital weights, the mean left out: one pass."""


def forward_passes(estimator: Estimator, classes: int, probes: float | None = None) -> float:
    """Cost of an estimator's score in F, a sample; an estimator of your own says its own.

        FiniteDifference, HessianVector, HessianTrace, Published:  base + n each
        GaussNewton:                                               base + (C - 1) each
        LowRankGaussNewton:                                        base + r dimension + n probe
        Adaptive:  as that of its first probes, and base + n each for each later round

    with n probes, C classes and r = min(rank, C - 1). A lower precision, which a CPU does not have,
    takes one more base gradient.

    >>> cost = forward_passes(jaxcurv.FiniteDifference(probes=10), classes=10)
    >>> round(cost, 2)  # 2.33 + 10 times 2.26
    24.93

    Args:
      estimator: what is computed.
      classes: number C of classes.
      probes: mean number of probes that an adaptive estimator took; those before its first look if
        None. A last round that `max_probes` cuts short counts in part.
    """
    match estimator:
        case Adaptive():
            each_round = estimator.estimator.probes
            first = replace(estimator.estimator, probes=estimator.first_probes)
            rounds = 0.0 if probes is None else (probes - first.probes) / each_round
            return forward_passes(first, classes) + rounds * forward_passes(
                estimator.estimator, classes
            )
        case GaussNewton():
            cost = GAUSS_NEWTON.base + (classes - 1) * GAUSS_NEWTON.each
            return cost + _second_base(estimator.precision)
        case LowRankGaussNewton():
            rank = min(estimator.rank, classes - 1)
            cost = LOW_RANK_BASE + rank * LOW_RANK_DIMENSION + estimator.probes * LOW_RANK_PROBE
            return cost + _second_base(estimator.precision)
        case HessianVector() | HessianTrace(step=None):
            cost = HESSIAN_VECTOR.base + estimator.probes * HESSIAN_VECTOR.each
            return cost + _second_base(estimator.probing.precision)
        case OwnEstimator():
            return float(estimator.forward_passes(classes))
        case _:
            return FINITE_DIFFERENCE.base + estimator.probes * FINITE_DIFFERENCE.each


def _second_base(precision: Precision) -> float:
    """The base gradient in a lower precision, beside the one that every table has."""
    return 0.0 if precision == "highest" else GRADIENT_NORM
