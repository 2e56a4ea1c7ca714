"""The error bar of adaptive probing over its whole range, on known draws and on a trained network.

The network's draws are those of Eq. 1; each image is scored many times under other probes, and the
truth is the mean over all probes of further runs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcurv import Adaptive, FiniteDifference, input_curvature
from jaxcurv.data import load, read
from tests.jaxcurv.test_adaptive import (
    Draws,
    adapted,
    assert_covered,
    coverage,
    gamma_draws,
    normal_draws,
)
from tests.oracles import KEY, convnet

pytestmark = pytest.mark.long

TOLERANCES = (0.05, 0.1, 0.2, 0.3)
VARIATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
RUNS = 10_000
TRAIN, IMAGES, RUNS_AN_IMAGE = 1000, 25, 400


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("variation", VARIATIONS)
@pytest.mark.parametrize("make", [gamma_draws, normal_draws])
@pytest.mark.parametrize("round_probes", [5, 10])
def test_the_bar_covers_the_true_score(
    make: Callable[[float], Draws], variation: float, tolerance: float, round_probes: int
) -> None:
    draws = make(variation)
    found = adapted(draws, tolerance, round_probes, RUNS)
    assert_covered(coverage(found, np.trace(draws.hessian)), RUNS)


def _trained() -> tuple[dict[str, jax.Array], np.ndarray, np.ndarray]:
    """The small network trained on the digits, and further images with their labels."""
    every = load("digits").train
    data = read(every, range(len(every)))
    images = np.repeat(data.images[..., :1] / 8.0 - 1.0, 2, axis=-1).astype(np.float32)
    random = np.random.default_rng(0)
    shapes = {"a": (3, 3, 2, 6), "b": (3, 3, 6, 8), "c": (8, 10)}
    params = {
        name: jnp.asarray(random.normal(size=s) * np.sqrt(2 / np.prod(s[:-1])), jnp.float32)
        for name, s in shapes.items()
    }
    optimiser = optax.adam(0.02)
    state = optimiser.init(params)
    x, y = images[:TRAIN], data.labels[:TRAIN]

    def loss(params: dict[str, jax.Array]) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(convnet(params, x), y)
        return losses.mean()

    @jax.jit
    def step(params, state):
        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for _ in range(400):
        params, state = step(params, state)
    predicted = convnet(params, images[TRAIN:]).argmax(1)
    assert np.mean(predicted == data.labels[TRAIN:]) > 0.8  # chance is 0.1
    return params, images[TRAIN:], data.labels[TRAIN:]


def test_the_bar_covers_the_score_of_a_trained_network() -> None:
    params, images, labels = _trained()
    rows = np.repeat(np.arange(IMAGES), RUNS_AN_IMAGE)

    def scored(estimator, seed: int):
        return input_curvature(
            convnet, images[rows], labels[rows], params=params, estimator=estimator,
            key=jax.random.fold_in(KEY, seed),
        )  # fmt: skip

    further = scored(FiniteDifference(probes=50), 1).score.reshape(IMAGES, -1)
    truth = np.repeat(further.mean(1, dtype=np.float64), RUNS_AN_IMAGE)
    for tolerance in TOLERANCES:
        found = scored(Adaptive(FiniteDifference(), tolerance), 2)
        assert_covered(coverage(found, truth), len(rows))
