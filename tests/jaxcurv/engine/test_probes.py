"""Probe vectors, and probing that stops by itself."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxcurv import (
    Adaptive,
    Curvature,
    FiniteDifference,
    GaussNewton,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
)
from jaxcurv.estimators import Distribution, Estimator, Probed, Published
from tests.oracles import CONV_IMAGES, CONV_INDICES, CONV_LABELS, KEY, draw, score_convnet

DISTRIBUTIONS: tuple[Distribution, ...] = ("rademacher", "gaussian", "sphere")
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
COUNT, SHAPE = 4096, (2, 3)


def vectors(
    distribution: Distribution, indices: Any = None, number: int = 3, key: Any = KEY
) -> np.ndarray:
    """`[COUNT, 6]`."""
    indices = np.arange(COUNT) if indices is None else indices
    v = draw(distribution, key, jnp.asarray(indices, jnp.uint32), number, SHAPE, jnp.float32)
    assert v.shape == (COUNT, *SHAPE)
    assert v.dtype == np.float32
    return np.asarray(v, np.float64).reshape(COUNT, 6)


@every_distribution
def test_moments(distribution: Distribution) -> None:
    v = vectors(distribution)
    assert np.abs(v.mean(0)).max() < 5 / np.sqrt(COUNT)
    np.testing.assert_allclose(v.T @ v / COUNT, np.eye(6), atol=8 / np.sqrt(COUNT))
    fourth = {"rademacher": 1, "gaussian": 3, "sphere": 3 * 6 / 8}[distribution]
    assert np.mean(v**4) == pytest.approx(fourth, rel=0.1)
    lengths = np.sum(v**2, axis=1)
    if distribution == "gaussian":
        assert lengths.var() == pytest.approx(12, rel=0.1)
    else:
        np.testing.assert_allclose(lengths, 6, rtol=1e-6)
    # Neighbours share nothing: the products of 4,095 pairs have a mean of 0.
    products = np.sum(v[1:] * v[:-1], axis=1)
    assert abs(products.mean()) < 5 * np.sqrt(6 / COUNT)


def test_rademacher_entries_are_signs() -> None:
    assert np.unique(vectors("rademacher")).tolist() == [-1, 1]


@every_distribution
def test_probes_belong_to_the_sample(distribution: Distribution) -> None:
    indices = np.arange(COUNT)
    indices[0] = 2**32 - 1
    together = vectors(distribution, indices)
    order = np.random.default_rng(0).permutation(COUNT)
    np.testing.assert_array_equal(vectors(distribution, indices[order]), together[order])
    np.testing.assert_array_equal(
        vectors(distribution, np.full(COUNT, 2**32 - 1)), np.tile(together[0], (COUNT, 1))
    )


@every_distribution
def test_probes_differ_between_samples_probes_and_keys(distribution: Distribution) -> None:
    """Keys folded in the wrong order would give sample 1, probe 0 and sample 0, probe 1 alike."""
    keys = (KEY, jax.random.key(8))
    parts = [vectors(distribution, None, n, key)[:8] for key in keys for n in range(8)]
    draws = np.concatenate(parts)
    if distribution != "rademacher":
        assert len(np.unique(draws, axis=0)) == 128
    # Six signs repeat by chance: of 8,128 pairs, 1 in 64 agrees.
    agreeing = np.sum(np.all(np.sign(draws[:, None]) == np.sign(draws), axis=-1)) - 128
    assert abs(agreeing / 2 / 8128 - 1 / 64) < 5 * np.sqrt(1 / 64 / 8128)


def test_scores_follow_the_key_and_the_index() -> None:
    first = score_convnet(HessianVector())
    again = score_convnet(HessianVector())
    shifted = score_convnet(HessianVector(), indices=CONV_INDICES + 1)
    np.testing.assert_array_equal(first.score, again.score)
    assert np.all(first.score != shifted.score)
    np.testing.assert_array_equal(first.loss, shifted.loss)
    # An index of another type is the same index.
    for dtype in (np.uint32, np.int8):
        typed = score_convnet(HessianVector(), indices=CONV_INDICES.astype(dtype))
        np.testing.assert_array_equal(first.score, typed.score)


# --- a score belongs to its sample, bit for bit

INVARIANT: dict[str, Estimator] = {
    "FiniteDifference": FiniteDifference(probes=2),
    "HessianVector": HessianVector(2),
    "GaussNewton": GaussNewton(),
    "Adaptive": Adaptive(HessianTrace(5), tolerance=0.3, max_probes=25),
}
few_examples = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
every_invariant = pytest.mark.parametrize("estimator", INVARIANT.values(), ids=INVARIANT)


@cache
def plain_scores(estimator: Estimator) -> Curvature:
    """Scores of the network's images as they are, which many tests compare with."""
    return score_convnet(estimator)


FIELDS = ("score", "standard_error", "probes", "loss", "prediction", "gradient_norm")


def assert_rows_equal(some: Curvature, rows: Any, others: Curvature, other_rows: Any) -> None:
    for field in FIELDS:
        np.testing.assert_array_equal(
            getattr(some, field)[rows], getattr(others, field)[other_rows], err_msg=field
        )


@every_invariant
@few_examples
@given(order=st.permutations(range(16)))
def test_order_of_a_batch_is_of_no_consequence(estimator: Estimator, order: list[int]) -> None:
    permuted = score_convnet(
        estimator,
        images=CONV_IMAGES[order],
        labels=CONV_LABELS[order],
        indices=CONV_INDICES[order],
    )
    assert_rows_equal(permuted, slice(None), plain_scores(estimator), order)


@every_invariant
@few_examples
@given(kept=st.lists(st.integers(0, 15), min_size=1, unique=True), seed=st.integers(0, 99))
def test_other_samples_of_a_batch_are_of_no_consequence(
    estimator: Estimator, kept: list[int], seed: int
) -> None:
    rng, other = np.random.default_rng(seed), np.ones(16, bool)
    other[kept] = False
    images, labels, indices = CONV_IMAGES.copy(), CONV_LABELS.copy(), CONV_INDICES.copy()
    images[other] = 3 * rng.normal(size=(other.sum(), 8, 8, 2))
    labels[other] = rng.integers(0, 5, other.sum())
    indices[other] = 100 + np.arange(other.sum())
    mixed = score_convnet(estimator, images=images, labels=labels, indices=indices)
    assert_rows_equal(mixed, kept, plain_scores(estimator), kept)


# --- probing until the error is small enough

ADAPTIVE: dict[str, Probed] = {
    "FiniteDifference": FiniteDifference(probes=5),
    "HessianVector": HessianVector(5),
    "HessianTrace, step": HessianTrace(5, step=1e-3),
    "Published": Published(128, probes=5),
}


def with_probes(estimator: Probed, probes: int) -> Probed:
    return type(estimator)(**{**vars(estimator), "probes": probes})


@pytest.mark.parametrize("largest", [33, 35], ids=lambda n: f"at most {n}")
@pytest.mark.parametrize("estimator", ADAPTIVE.values(), ids=ADAPTIVE)
def test_each_sample_stops_by_its_own_error(estimator: Probed, largest: int) -> None:
    """As plain runs with 20, 25, 30 and at most 33 or 35 probes say."""
    rounds = (20, 25, 30, largest)
    plain = {n: plain_scores(with_probes(estimator, n)) for n in rounds}
    # A tolerance that samples reach at different times.
    tolerance = float(np.median(plain[25].standard_error / np.abs(plain[25].score)))
    needed = np.full(16, largest)
    for n in reversed(rounds):
        enough = plain[n].standard_error <= tolerance * np.abs(plain[n].score)
        needed[enough] = n
    assert len(set(needed)) >= 3  # some stop at once, some later, some never
    result = score_convnet(Adaptive(estimator, tolerance, largest))
    np.testing.assert_array_equal(result.probes, needed)
    for row, n in enumerate(needed):
        for field in ("score", "standard_error", "hessian_trace", "hessian_trace_standard_error"):
            assert getattr(result, field)[row] == getattr(plain[n], field)[row]
    assert result.measures == plain[20].measures
    if isinstance(estimator, HessianVector):
        assert result.frobenius_norm is not None
        rms = [plain[n].frobenius_norm[row] for row, n in enumerate(needed)]
        np.testing.assert_array_equal(result.frobenius_norm, rms)


def test_no_second_round_is_begun_where_the_first_suffices() -> None:
    loose = score_convnet(Adaptive(FiniteDifference(probes=5), tolerance=50.0, max_probes=1000))
    assert np.all(loose.probes == 20)
    only = score_convnet(Adaptive(FiniteDifference(probes=5), tolerance=1e-9, max_probes=20))
    assert np.all(only.probes == 20)
    np.testing.assert_array_equal(loose.score, only.score)


@pytest.mark.filterwarnings("ignore:the score is exactly 0")
def test_a_score_of_zero_stops() -> None:
    """A loss without curvature gives 0 and an error of 0."""
    result = score_convnet(Adaptive(HessianVector(5), 0.1, 50), images=0 * CONV_IMAGES)
    assert np.all(result.score == 0)
    assert np.all(result.probes == 20)


# --- impossible settings


@pytest.mark.parametrize("kind", [FiniteDifference, Published, HessianTrace])
@pytest.mark.parametrize(
    ("step", "shown"),
    [(0.0, "0"), (-1e-3, "-0.001"), (float("inf"), "inf"), (float("nan"), "nan")],
)
def test_impossible_steps_are_refused(kind: Any, step: float, shown: str) -> None:
    others = {"batch_size": 8} if kind is Published else {}
    with pytest.raises(ValueError, match=f"step must be a positive number; got {shown}"):
        kind(step=step, **others)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (FiniteDifference, {"probes": 0}, "probes must be at least 1; got 0"),
        (HessianVector, {"probes": -1}, "probes must be at least 1; got -1"),
        (HessianTrace, {"probes": 0}, "probes must be at least 1; got 0"),
        (Published, {"batch_size": 8, "probes": 0}, "probes must be at least 1; got 0"),
        (Published, {"batch_size": 0}, "batch_size must be at least 1; got 0"),
        (LowRankGaussNewton, {"rank": 0}, "rank must be at least 1; got 0"),
        (LowRankGaussNewton, {"probes": 0}, "probes must be at least 1; got 0"),
        (
            Adaptive,
            {"estimator": HessianVector(4)},
            r"rounds of at least 5 probes, HessianVector\(probes=5\); got 4",
        ),
        (
            Adaptive,
            {"estimator": HessianVector(5), "tolerance": 0.0},
            "tolerance must be a positive number; got 0",
        ),
        (
            Adaptive,
            {"estimator": HessianVector(5), "tolerance": float("nan")},
            "tolerance must be a positive number; got nan",
        ),
        (
            Adaptive,
            {"estimator": HessianVector(10), "max_probes": 19},
            r"at least the 20 before the first look at the error; got 19: .*probes=19\) without",
        ),
        (
            Adaptive,
            {"estimator": HessianVector(30), "max_probes": 29},
            "max_probes must be at least the 30 before the first look at the error; got 29",
        ),
    ],
)
def test_impossible_settings_are_refused(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
