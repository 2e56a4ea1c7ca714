"""The error bar of probing that stops by itself: it covers the true score as often as it says.

Draws of a known mean: v . H v of a quadratic loss, whose mean is tr H. With H the identity and
Gaussian v it is chi-squared, a gamma distribution; with a large random H and signs nearly normal.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxcurv import Adaptive, Curvature, FiniteDifference, HessianTrace, input_curvature
from tests.oracles import CONV_IMAGES, CONV_INDICES, CONV_LABELS, CONV_PARAMS, KEY, convnet

NOMINAL, AT_LEAST = 0.95, 0.93
NORMAL_SIZE = 64


class Draws(NamedTuple):
    """A quadratic loss x . H x / 2, and the estimator of its trace."""

    hessian: np.ndarray
    estimator: Callable[[int], HessianTrace]


def quadratic_outputs(hessian: jax.Array, images: jax.Array) -> jax.Array:
    return jnp.concatenate([images, images @ hessian], axis=1)


def quadratic_loss(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    x, product = jnp.split(outputs, 2, axis=1)
    return jnp.sum(x * product, axis=1) / 2


def gamma_draws(variation: float) -> Draws:
    """Chi-squared draws of about this coefficient of variation, sqrt(2 / d)."""
    size = round(2 / variation**2)
    return Draws(np.eye(size, dtype=np.float32), lambda n: HessianTrace(n, distribution="gaussian"))


def normal_draws(variation: float) -> Draws:
    """Nearly normal draws: of variance 2 sum_(i != j) H_ij^2 around tr H."""
    random = np.random.default_rng(0).normal(size=(NORMAL_SIZE, NORMAL_SIZE))
    off = (random + random.T) * (1 - np.eye(NORMAL_SIZE))
    spread = np.sqrt(2 * np.sum(off**2))
    diagonal = np.eye(NORMAL_SIZE) / (NORMAL_SIZE * variation)
    return Draws((off / spread + diagonal).astype(np.float32), HessianTrace)


def adapted(draws: Draws, tolerance: float, round_probes: int, runs: int) -> Curvature:
    """Independent runs, one a row: the same sample under other probes."""
    size = len(draws.hessian)
    return input_curvature(
        quadratic_outputs,
        np.ones((runs, size), np.float32),
        np.zeros(runs, np.float32),
        params=draws.hessian,
        key=KEY,
        estimator=Adaptive(draws.estimator(round_probes), tolerance),
        loss=quadratic_loss,
    )


def coverage(found: Curvature, truth: Any) -> float:
    """Share of the bars score +- t standard_error that cover the truth."""
    t = stats.t.ppf((1 + NOMINAL) / 2, found.probes - 1)
    return float(np.mean(np.abs(found.score - truth) <= t * found.standard_error))


def assert_covered(share: float, runs: int) -> None:
    """At least `AT_LEAST`, but for three standard errors of the share over the runs."""
    assert share >= AT_LEAST - 3 * np.sqrt(AT_LEAST * (1 - AT_LEAST) / runs), share


@pytest.mark.parametrize(
    ("draws", "tolerance"),
    [
        (gamma_draws(0.6), 0.1),
        (gamma_draws(0.6), 0.2),
        (gamma_draws(0.4), 0.05),
        (normal_draws(0.4), 0.1),
        (normal_draws(0.2), 0.05),
    ],
    ids=["gamma 0.6, 10 %", "gamma 0.6, 20 %", "gamma 0.4, 5 %", "normal 0.4", "normal 0.2"],
)
def test_the_bar_covers_the_true_score(draws: Draws, tolerance: float) -> None:
    runs = 4000
    found = adapted(draws, tolerance, 5, runs)
    assert found.probes.min() >= 20
    assert_covered(coverage(found, np.trace(draws.hessian)), runs)
    # What a sample stopped at, or where it ran out of probes.
    stopped = found.probes < 100
    assert np.all(found.standard_error[stopped] <= tolerance * found.score[stopped])


def test_score_and_error_are_those_of_a_plain_run_of_as_many_probes() -> None:
    """Whatever the rounds, of which the last is cut short."""
    found = input_curvature(
        convnet,
        CONV_IMAGES,
        CONV_LABELS,
        indices=CONV_INDICES,
        params=CONV_PARAMS,
        key=KEY,
        estimator=Adaptive(FiniteDifference(probes=7), tolerance=1e-6, max_probes=30),
    )
    plain = input_curvature(
        convnet,
        CONV_IMAGES,
        CONV_LABELS,
        indices=CONV_INDICES,
        params=CONV_PARAMS,
        key=KEY,
        estimator=FiniteDifference(probes=30),
    )
    assert np.all(found.probes == 30)
    np.testing.assert_array_equal(found.score, plain.score)
    np.testing.assert_array_equal(found.standard_error, plain.standard_error)
