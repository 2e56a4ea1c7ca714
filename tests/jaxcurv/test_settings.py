"""NumPy's, JAX's and torch's numbers as settings are Python's own; what is no number is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from fractions import Fraction
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxcurv.data import Normalisation, Preprocessing
from jaxcurv.data.splits import split_validation, subset
from jaxcurv.estimators import (
    Adaptive,
    FiniteDifference,
    HessianTrace,
    HessianVector,
    LowRankGaussNewton,
    Published,
    describe,
)
from jaxcurv.settings import plain
from jaxcurv.training import Recipe
from tests.refusals import unchecked_annotations

pytestmark = pytest.mark.usefixtures("unannotated")

WHOLE = [np.int8, np.int64, np.uint64, np.array, jnp.int32, torch.tensor]
REAL = [np.float16, np.float32, np.float64, np.longdouble, np.array, jnp.float32, torch.tensor]


@pytest.fixture
def unannotated() -> Iterator[None]:
    """Annotations, which name Python's own numbers, are not looked at."""
    with unchecked_annotations():
        yield


SETTINGS: list[Callable[[Any, Any], Any]] = [
    lambda n, x: FiniteDifference(step=x, probes=n),
    lambda n, x: Published(batch_size=n, step=x, probes=n),
    lambda n, x: HessianVector(n),
    lambda n, x: HessianTrace(n, step=x),
    lambda n, x: LowRankGaussNewton(rank=n, probes=n),
    lambda n, x: Adaptive(FiniteDifference(probes=5), tolerance=x, max_probes=20 + n),
    lambda n, x: Recipe(epochs=n, batch_size=n, warmup_epochs=x, learning_rate=x, crop_padding=n),
    lambda n, x: Preprocessing(n, n),
    lambda n, x: Normalisation((x,), (x,)),
]


@pytest.mark.parametrize("whole", WHOLE, ids=lambda one: one.__name__)
@pytest.mark.parametrize("make", SETTINGS)
def test_numbers_of_others_are_plain(make: Any, whole: Any) -> None:
    for real in REAL:
        made, wanted = make(whole(7), real(0.25)), make(7, 0.25)
        assert made == wanted
        assert hash(made) == hash(wanted)
        assert json.dumps(asdict(made)) == json.dumps(asdict(wanted))
        assert repr(made) == repr(wanted)


def test_samples_are_chosen_alike() -> None:
    indices = np.arange(20)
    for number in (np.int64, np.array, jnp.int32):
        assert np.array_equal(subset(indices, number(5), number(3)), subset(indices, 5, 3))
        parts = split_validation(indices, np.float32(0.25), number(3))
        for part, wanted in zip(parts, split_validation(indices, 0.25, 3), strict=True):
            assert np.array_equal(part, wanted)
    for wrong in (True, 2.0, np.nan):
        with pytest.raises(ValueError, match="at least 1 sample"):
            subset(indices, wrong, 0)
        with pytest.raises(ValueError, match="seed must be a whole number"):
            subset(indices, 5, wrong)


def test_an_estimator_is_described_alike() -> None:
    made = FiniteDifference(step=np.float32(1e-3), probes=np.array(10))
    assert describe(made) == describe(FiniteDifference(step=float(np.float32(1e-3))))


@pytest.mark.parametrize(
    "wrong",
    [True, np.True_, np.array(True), torch.tensor(True), 7.0, np.float64(7), np.array([7]), "7",
     None, np.nan, np.timedelta64(7), np.array([7, 7])],
    ids=repr,
)  # fmt: skip
def test_what_is_no_whole_number_is_refused(wrong: Any) -> None:
    for make in (lambda n: FiniteDifference(probes=n), lambda n: LowRankGaussNewton(rank=n),
                 lambda n: Published(batch_size=n), lambda n: Recipe(epochs=n, warmup_epochs=0),
                 lambda n: Recipe(crop_padding=n), lambda n: Preprocessing(n, 300),
                 lambda n: Adaptive(FiniteDifference(), max_probes=n)):  # fmt: skip
        with pytest.raises(ValueError, match="whole number"):
            make(wrong)


@pytest.mark.parametrize(
    "wrong",
    [True, np.True_, np.nan, np.inf, np.float32("nan"), np.array(np.inf), jnp.float32(jnp.nan),
     "0.1", np.array([0.1]), np.complex64(0.1), 10**400],
    ids=lambda one: repr(one)[:20],
)  # fmt: skip
def test_what_is_no_finite_number_is_refused(wrong: Any) -> None:
    for make in (lambda x: FiniteDifference(step=x), lambda x: HessianTrace(step=x),
                 lambda x: Adaptive(FiniteDifference(), tolerance=x),
                 lambda x: Recipe(learning_rate=x), lambda x: Recipe(weight_decay=x),
                 lambda x: Recipe(momentum=x), lambda x: Recipe(warmup_epochs=x),
                 lambda x: Normalisation((x,), (1.0,)), lambda x: Normalisation((0.5,), (x,)),
                 ):  # fmt: skip
        with pytest.raises(ValueError, match="must"):
            make(wrong)


def test_the_value_stays() -> None:
    assert plain(np.uint64(2**63)) == 2**63
    assert plain(np.float32(0.02)) == float(np.float32(0.02))
    assert plain(Fraction(1, 4)) == 0.25
    assert plain([np.int64(1), (np.float64(4), [None])]) == (1, (4.0, (None,)))
    assert type(plain(np.str_("a"))) is str
    for other in ("a", np.datetime64("2020"), 1j, print):
        assert plain(other) is other
