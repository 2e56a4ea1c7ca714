"""How curvature is estimated: plain settings, importable without JAX.

Notation: x an image of d values, y its label, L the loss, z = f(x) the C logits, H the Hessian of
L with respect to x, J = dz/dx, v_i a random vector with E[v v^T] = I, n the number of them. Work is
counted in nominal passes of the model, a backward pass to the input like a forward pass; how long
it takes, measured, is in `jaxcurv.costs`. Images are normalised as the model expects; "input" below
is one such unit. Every score grows with fragility.

One of your own is an `OwnEstimator`. One that ships is settings here, a program in `jaxcurv.engine`
that `engine.batch.dispatch` calls, and what `jaxcurv.curvature.reduce` makes of its result.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from jaxcurv.settings import is_number, make_plain, plain, require_whole

if TYPE_CHECKING:
    from jaxtyping import Array

Distribution = Literal["rademacher", "gaussian", "sphere"]
"""Distribution of the probe vectors: independent signs, standard normals, or uniform on the sphere
of radius sqrt(d). For the trace, signs have the least variance of all vectors with independent
entries."""

Precision = Literal["highest", "tensorfloat32", "bfloat16"]
"""Precision of convolutions and matrix products; only accelerators have the last two."""


@dataclass(frozen=True)
class Probing:
    """What one probe evaluates; estimators that agree in it share their probes in one pass."""

    step: float | None
    """h of a finite difference; None for an exact Hessian-vector product."""
    distribution: Distribution
    offset: float = 0.0
    """Added to every entry of v."""
    precision: Precision = "highest"


@dataclass(frozen=True)
class FiniteDifference:
    """Input loss curvature, (1/n) sum_i || grad L(x + h v_i) - grad L(x) ||_2.

    Eq. 1 of Sharma et al., after Garg, Ravikumar and Roy (ICML 2024), with the base gradient
    computed once. In nats per unit of the input. Assumes nothing of the model; at the usual step h
    the displacement, h sqrt(d) long, crosses kinks of a ReLU network, so that the score measures
    how the gradient changes over a neighbourhood and is not h times a Hessian-vector product.
    Samples at which the model jumps within a step, where a score says nothing, are warned of.
    Work: 2 (n + 1) nominal passes for n probes.

    One probe (`probes=1`) is the cheap setting: 4 nominal passes and no standard error.
    Its rank correlation with ten is in docs/measurements/estimators.md.

    Attributes:
      step: step h of the finite difference, in units of the normalised input.
      probes: number n of random vectors per sample.
      distribution: distribution of the random vectors: independent signs (`rademacher`), standard
        normals (`gaussian`), or uniform on the sphere of radius sqrt(d) (`sphere`).
    """

    step: float = 1e-3
    probes: int = 10
    distribution: Distribution = "rademacher"

    measures: ClassVar[str] = "mean of || grad L(x + h v) - grad L(x) ||"

    def __post_init__(self) -> None:
        make_plain(self)
        _check_step(self.step)
        require_whole("probes", self.probes, 1)
        _check_choice("distribution", self.distribution, Distribution)

    @property
    def probing(self) -> Probing:
        """What one probe evaluates."""
        return Probing(self.step, self.distribution)


@dataclass(frozen=True)
class Published:
    """Eq. 1 as the published PyTorch code computes it, to reproduce its numbers.

    That code (Garg et al. 2024; Ravikumar et al. 2024) averages the loss over the batch, so that a
    score is divided by the batch size, and uses v = +-1 + 1e-7. The divisor is a setting here, not
    the length of the batch at hand: a score still belongs to its sample. The samples of the last,
    shorter batch of a published run were divided by that batch's own length.
    Work: 2 (n + 1) nominal passes for n probes; theirs is 4 n.

    Attributes:
      batch_size: batch size of the published run; every score is divided by it.
      step: step h of the finite difference, in units of the normalised input.
      probes: number n of random vectors per sample.
    """

    batch_size: int
    step: float = 1e-3
    probes: int = 10

    measures: ClassVar[str] = f"{FiniteDifference.measures} over the published batch size"

    def __post_init__(self) -> None:
        make_plain(self)
        _check_step(self.step)
        require_whole("probes", self.probes, 1)
        require_whole("batch_size", self.batch_size, 1)

    @property
    def probing(self) -> Probing:
        """What one probe evaluates."""
        return Probing(self.step, "rademacher", offset=1e-7)


@dataclass(frozen=True)
class HessianVector:
    """(1/n) sum_i || H v_i ||_2, the limit of Eq. 1 over h for h -> 0, without a difference.

    In nats per squared unit of the input. The gradient is linearised once. H is the Hessian within
    the linear region that x lies in: on a ReLU network this is another score than Eq. 1, which sees
    the kinks around. `frobenius_norm` is sqrt((1/n) sum_i || H v_i ||^2), whose square is unbiased
    for ||H||_F^2. Products by Pearlmutter (1994). Work: 2 (n + 1) nominal passes for n probes, and
    2 more where `precision` is not the highest.

    Attributes:
      probes: number n of random vectors per sample.
      distribution: distribution of the random vectors: independent signs (`rademacher`), standard
        normals (`gaussian`), or uniform on the sphere of radius sqrt(d) (`sphere`).
      precision: precision of convolutions and matrix products. Nothing cancels here, so that a
        coarser one is possible; only accelerators have one.
    """

    probes: int = 10
    distribution: Distribution = "rademacher"
    precision: Precision = "highest"

    measures: ClassVar[str] = "mean of || H v ||"

    def __post_init__(self) -> None:
        make_plain(self)
        require_whole("probes", self.probes, 1)
        _check_choice("distribution", self.distribution, Distribution)
        _check_choice("precision", self.precision, Precision)

    @property
    def probing(self) -> Probing:
        """What one probe evaluates."""
        return Probing(None, self.distribution, precision=self.precision)


@dataclass(frozen=True)
class HessianTrace:
    """(1/n) sum_i v_i . H v_i, Hutchinson's unbiased estimate of tr H (Hutchinson, 1989).

    In nats per squared unit of the input; may be negative. With `step` h, H v_i is replaced by
    (grad L(x + h v_i) - grad L(x)) / h: beside a `FiniteDifference` of the same step and
    distribution it then costs nothing, and estimates the trace smoothed over that neighbourhood.
    With rademacher probes its variance is 2 sum_(i != j) H_ij^2 / n. Work: 2 (n + 1) nominal passes
    for n probes.

    Attributes:
      probes: number n of random vectors per sample.
      step: h of a finite difference; None for exact Hessian-vector products.
      distribution: distribution of the random vectors: independent signs (`rademacher`), standard
        normals (`gaussian`), or uniform on the sphere of radius sqrt(d) (`sphere`).
    """

    probes: int = 10
    step: float | None = None
    distribution: Distribution = "rademacher"

    def __post_init__(self) -> None:
        make_plain(self)
        if self.step is not None:
            _check_step(self.step)
        require_whole("probes", self.probes, 1)
        _check_choice("distribution", self.distribution, Distribution)

    @property
    def probing(self) -> Probing:
        """What one probe evaluates."""
        return Probing(self.step, self.distribution)

    @property
    def measures(self) -> str:
        """The score in words, as `Curvature.measures` has it."""
        return "trace of the Hessian" + (", smoothed over the step" if self.step else "")


@dataclass(frozen=True)
class GaussNewton:
    """tr G of the Gauss-Newton matrix G = J^T S J, S the Hessian of L in the logits; no probes.

    Exact: with S = A A^T and V = J^T A, the small Gram matrix V^T V has all non-zero eigenvalues of
    G; the result also holds them and ||G||_F. G is the Hessian where the model is piecewise linear
    in x (ReLU, max-pooling, BatchNorm in evaluation mode), which is checked on a few samples; else
    it is the Hessian without the term of the model's own second derivative, and is called
    Gauss-Newton (Schraudolph, 2002). Needs a loss that is convex in the logits. In nats per squared
    unit of the input. Work for cross-entropy and C classes: C + 1 nominal passes, a forward pass
    and a backward pass for the loss and each of the C - 1 columns of V, and 2 more where
    `precision` is not the highest; memory: 2 (C - 1) gradients a sample.

    Attributes:
      precision: precision of convolutions and matrix products. Nothing cancels here, so that a
        coarser one is possible; only accelerators have one.
    """

    precision: Precision = "highest"

    def __post_init__(self) -> None:
        make_plain(self)
        _check_choice("precision", self.precision, Precision)


@dataclass(frozen=True)
class LowRankGaussNewton:
    """tr G as `GaussNewton` has it, from a random subspace, for many classes.

    The range of V (see there) is sampled by `rank` random vectors and made orthonormal, Q. The
    trace within is exact, || V^T Q ||_F^2; that outside is estimated without bias by `probes`
    further vectors (Hutch++: Meyer, Musco, Musco and Woodruff, 2021), which give the standard
    error. `eigenvalues` are those of Q^T G Q: none exceeds the true one, and all of them together
    fall short by `residual_trace`, the trace outside. Work: 2 `rank` + `probes` + 3 nominal passes,
    and 2 more where `precision` is not the highest.

    Attributes:
      rank: dimensions of the subspace.
      probes: random vectors for what is outside.
      precision: precision of convolutions and matrix products. Nothing cancels here, so that a
        coarser one is possible; only accelerators have one.
    """

    rank: int = 8
    probes: int = 8
    precision: Precision = "highest"

    def __post_init__(self) -> None:
        make_plain(self)
        require_whole("rank", self.rank, 1)
        require_whole("probes", self.probes, 1)
        _check_choice("precision", self.precision, Precision)


Probed = FiniteDifference | Published | HessianVector | HessianTrace
"""Means over probes."""

Spectral = GaussNewton | LowRankGaussNewton
"""From the spectrum of G."""


_FIRST_LOOK, _SMALLEST_ROUND = 20, 5
"""Probes at the first look at an error, and those of a later round, at least."""


@dataclass(frozen=True)
class Adaptive:
    """Goes on probing until a sample's standard error is at most `tolerance` times its |score|.

    The first look is after 20 probes, or one round where that is longer; further probes come in
    rounds of `estimator.probes`. Each sample stops by its own error alone, and the result's
    `probes` says how many it took. Score and standard error are of all of them.

    Bar: score +- t standard_error, t the quantile of Student's distribution of `probes` - 1 degrees
    of freedom. Samples stop where their error is small, by chance too: such an interval covers as
    often as it says in the limit of many draws alone (Chow and Robbins, 1965; corrections for few:
    Anscombe, 1953). The late first look keeps the loss small. At 95 % and tolerances of 0.05 to
    0.3, in 10,000 simulated runs of each kind (tests/long/test_adaptive.py), the bar covered the
    true score in 92.9 to 95.6 %, for normal and gamma-shaped draws of coefficients of variation of
    0.1 to 0.6 and rounds of 5 or 10, and in 94.0 to 94.6 % for Eq. 1 on a small trained network;
    +- 1.96 standard errors covered it in 91.5 to 95.3 %.

    Work: 2 nominal passes for each probe taken, for the first look and for each later round.

    Attributes:
      estimator: what is averaged over the probes; its `probes` are those of a round, at least 5.
      tolerance: standard error over |score| to reach.
      max_probes: largest number of probes per sample, at least those of the first look; the
        standard error then says where it stands.
    """

    estimator: Probed
    tolerance: float = 0.1
    max_probes: int = 100

    def __post_init__(self) -> None:
        make_plain(self)
        if not isinstance(self.estimator, Probed):
            raise ValueError(
                "only FiniteDifference, HessianVector, HessianTrace and Published adapt; got "
                f"{type(self.estimator).__name__}"
            )
        require_whole("max_probes", self.max_probes, 1)
        if not is_number(self.tolerance) or self.tolerance <= 0:
            raise ValueError(f"tolerance must be a positive number; got {self.tolerance!r}")
        if self.estimator.probes < _SMALLEST_ROUND:
            raise ValueError(
                f"adaptive probing looks at the error after each round, and many looks after few "
                f"probes stop where it is small by chance: give rounds of at least "
                f"{_SMALLEST_ROUND} probes, {type(self.estimator).__name__}("
                f"probes={_SMALLEST_ROUND}); got {self.estimator.probes}"
            )
        if self.max_probes < self.first_probes:
            raise ValueError(
                f"max_probes must be at least the {self.first_probes} before the first look at the "
                f"error; got {self.max_probes}: raise it, or take "
                f"{type(self.estimator).__name__}(probes={self.max_probes}) without Adaptive"
            )

    @property
    def first_probes(self) -> int:
        """Probes of every sample before the first look at its error."""
        return max(_FIRST_LOOK, self.estimator.probes)


@dataclass(frozen=True)
class BatchProblem:
    """What an estimator of your own is given: a batch and the model's functions of its images.

    Each function takes images `[batch, ...]`. Entry i of its result depends on image i alone.

    Attributes:
      images: floating `[batch, ...]`.
      labels: int32 `[batch]`, or what else a loss of your own takes, `[batch, ...]`.
      indices: uint32 `[batch]`.
      key: key of the run.
      base_gradient: grad L at `images`, `[batch, ...]`; shared with the other estimators.
      logits: function from images to logits `[batch, classes]`.
      losses: function from images to L under `labels`, `[batch]`.
      gradient: function from images to grad L with respect to them, `[batch, ...]`.
      probe: function `probe(number, distribution="rademacher")`, which gives random vector `number`
        of each sample, `[batch, ...]`, keyed by `key` and `indices` (see `jaxcurv.engine.probe`).
    """

    images: "Array"
    labels: "Array"
    indices: "Array"
    key: "Array"
    base_gradient: "Array"
    logits: Callable[["Array"], "Array"]
    losses: Callable[["Array"], "Array"]
    gradient: Callable[["Array"], "Array"]
    probe: Callable[..., "Array"]


@runtime_checkable
class OwnEstimator(Protocol):
    """An estimator of your own: a frozen dataclass with these two methods.

    Its class's name and its fields, numbers, texts or tuples, say which estimator it is. Arrays
    that `estimate` takes from elsewhere are those of the moment. A half-finished table does not go
    on with an estimator that scores otherwise, as far as two random images under a model of one
    operation show it. Its `__post_init__` refuses bad settings with a ValueError.
    """

    def estimate(self, problem: BatchProblem) -> Mapping[str, "Array"]:
        """Floating `[batch]` arrays: "score" and, if there is one, its "standard_error".

        Compiled once by `jax.jit`, for a batch that may lie on several devices. A sample's score
        must not depend on its place in the batch or on other samples: take random numbers from
        `problem.probe`. On a CPU with several devices `jnp.linalg` can wait for ever.
        """

    def forward_passes(self, classes: int) -> float:
        """Cost per sample in times of a forward pass of the model (`jaxcurv.costs`)."""


Estimator = Probed | Adaptive | Spectral | OwnEstimator


def check_estimator(estimator: object) -> None:
    """Raises ValueError unless it is an estimator, with its settings."""
    if isinstance(estimator, Probed | Adaptive | Spectral):
        return
    missing = [name for name in ("estimate", "forward_passes") if not hasattr(estimator, name)]
    if missing or not is_dataclass(estimator) or isinstance(estimator, type):
        raise ValueError(
            "an estimator must be one of jaxcurv's, such as FiniteDifference(), or an instance of "
            "a frozen dataclass of your own with the methods estimate(problem) and "
            f"forward_passes(classes); got {estimator!r}"
            + (f", which lacks {' and '.join(missing)}" if missing else "")
        )
    try:
        hash(estimator)
        json.dumps(asdict(estimator), default=lambda number: number.item())
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{type(estimator).__name__} must be a frozen dataclass whose fields are numbers, "
            f"texts or tuples of them, which say which estimator it is: {error}"
        ) from error


def describe(estimator: Estimator) -> dict[str, Any]:
    """An estimator as JSON: the name of its class, with its module unless it is jaxcurv's, and its
    settings."""
    kind = type(estimator)
    name = (
        kind.__name__ if kind.__module__ == __name__ else f"{kind.__module__}.{kind.__qualname__}"
    )
    if isinstance(estimator, OwnEstimator):
        fields = asdict(estimator)  # type: ignore[call-overload]
        return {"name": name, "fields": {one: plain(value) for one, value in fields.items()}}
    described = {"name": name, **asdict(estimator)}
    if isinstance(estimator, Adaptive):
        described["estimator"] = describe(estimator.estimator)
    return described


EstimatorName = Literal[
    "finite_difference", "hessian_vector", "hessian_trace", "gauss_newton", "low_rank_gauss_newton"
]

SCORE_COLUMNS: dict[str, str] = {
    **{name: name for name in get_args(EstimatorName)},
    "finite_difference": "curvature",
}
"""Column of each estimator's scores in a table, by `EstimatorName` and in that order. Analyses rank
by the finite difference, whose column is called curvature."""


def named_estimators(probes: int = 10) -> dict[str, Estimator]:
    """The estimators by `EstimatorName`, in that order, with their defaults.

    >>> named_estimators(probes=20)["hessian_trace"]
    HessianTrace(probes=20, step=None, distribution='rademacher')

    Args:
      probes: random vectors a sample, for the estimators that average over probes.
    """
    made = (
        FiniteDifference(probes=probes),
        HessianVector(probes),
        HessianTrace(probes),
        GaussNewton(),
        LowRankGaussNewton(),
    )
    return dict(zip(get_args(EstimatorName), made, strict=True))


def _check_step(step: float) -> None:
    if not is_number(step) or step <= 0:
        raise ValueError(f"step must be a positive number; got {step!r}")


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(get_args(choices))}; got {value!r}")


def nominal_passes(estimator: Estimator, classes: int, probes: float | None = None) -> float:
    """Work per sample: forward passes of the model and backward passes to the input, counted alike.

    In time a backward pass is more than a forward pass: `jaxcurv.costs.forward_passes`.

    >>> nominal_passes(FiniteDifference(probes=10), classes=10), nominal_passes(GaussNewton(), 10)
    (22.0, 11.0)

    Args:
      estimator: what is computed.
      classes: number of classes.
      probes: mean number of probes that an adaptive estimator took; those before its first look if
        None. A last round that `max_probes` cuts short counts in part.
    """
    match estimator:
        case Adaptive():
            first = replace(estimator.estimator, probes=estimator.first_probes)
            more = 0.0 if probes is None else probes - estimator.first_probes
            rounds = more / estimator.estimator.probes
            return nominal_passes(first, classes) + rounds * nominal_passes(
                estimator.estimator, classes
            )
        case GaussNewton():
            return classes + 1 + _second_base(estimator.precision)
        case LowRankGaussNewton():
            cost = 2.0 * min(estimator.rank, classes - 1) + estimator.probes + 3
            return cost + _second_base(estimator.precision)
        case OwnEstimator():
            return float(estimator.forward_passes(classes))
        case _:
            return 2.0 * (estimator.probes + 1) + _second_base(estimator.probing.precision)


def _second_base(precision: Precision) -> float:
    """Cost of the base gradient in a lower precision, beside the one that every table has."""
    return 0.0 if precision == "highest" else 2.0
