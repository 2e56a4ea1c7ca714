"""Fine-tuning of softmax regression: sample weights by hand, the budget, what is refused."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxcurv.data import Arrays, Normalisation
from jaxcurv.training import Recipe, fine_tuning

COUNT, BATCH = 50, 16
RECIPE = Recipe(
    epochs=1, batch_size=BATCH, learning_rate=0.5, warmup_epochs=0.0, momentum=0.0,
    weight_decay=0.0, crop_padding=0, flip=False,
)  # fmt: skip
NORMALISATION = Normalisation((0.4,), (0.3,))
ONES = np.ones(COUNT)


class Linear(nnx.Module):
    def __init__(self, dtype: Any) -> None:
        self.fc = nnx.Linear(9, 3, dtype=dtype, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.fc(images.reshape(len(images), -1))


@pytest.fixture(scope="module")
def train() -> Arrays:
    rng = np.random.default_rng(0)
    return Arrays(
        rng.integers(0, 256, (COUNT, 3, 3, 1)).astype(np.uint8),
        rng.integers(0, 3, COUNT).astype(np.int32),
        np.arange(COUNT),
    )


def kernel_and_bias(model: nnx.Module) -> tuple[np.ndarray, np.ndarray]:
    return np.float64(model.fc.kernel[...]), np.float64(model.fc.bias[...])


START = kernel_and_bias(Linear(jnp.float32))


def stepped(train: Arrays, seed: int, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step by hand: the gradient of (w_1 l_1 + ... + w_B l_B) / B of the seed's first batch."""
    batch = np.random.default_rng([seed, 1]).permutation(COUNT)[:BATCH]
    inputs = np.float64(NORMALISATION.apply(train.images[batch])).reshape(BATCH, -1)
    kernel, bias = START
    logits = inputs @ kernel + bias
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    slope = weights[batch, None] * (softmax - np.eye(3)[train.labels[batch]]) / BATCH
    return kernel - 0.5 * inputs.T @ slope, bias - 0.5 * slope.sum(0)


def test_a_step_is_that_of_the_weighted_mean(train: Arrays) -> None:
    tune = fine_tuning(Linear, train, NORMALISATION, RECIPE, steps=1)
    some = np.random.default_rng(1).uniform(0, 3, COUNT)
    found = {}
    for name, weights in (("ones", ONES), ("some", some), ("none", 0 * ONES)):
        found[name] = kernel_and_bias(tune(4, weights))
        for one, expected in zip(found[name], stepped(train, 4, weights), strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    assert abs(found["some"][0] - found["ones"][0]).max() > 0.01
    np.testing.assert_array_equal(found["none"][0], START[0])


def test_twice_the_weights_are_twice_the_learning_rate(train: Arrays) -> None:
    """Over several epochs and one begun: the batches do not depend on the weights."""
    once = fine_tuning(Linear, train, NORMALISATION, RECIPE, steps=8, warmup=2)(3, 2 * ONES)
    recipe = replace(RECIPE, learning_rate=1.0)
    twice = fine_tuning(Linear, train, NORMALISATION, recipe, steps=8, warmup=2)(3, ONES)
    np.testing.assert_allclose(once.fc.kernel[...], twice.fc.kernel[...], rtol=1e-4, atol=1e-6)
    other = fine_tuning(Linear, train, NORMALISATION, recipe, steps=8, warmup=2)(4, ONES)
    assert abs(other.fc.kernel[...] - twice.fc.kernel[...]).max() > 0.01


def test_the_budget_is_that_of_the_steps(train: Arrays) -> None:
    """More than two epochs of three steps each."""
    calls = []

    def counted(params: nnx.State, key: jax.Array) -> nnx.State:
        jax.debug.callback(lambda: calls.append(1))
        return params

    tune = fine_tuning(Linear, train, NORMALISATION, RECIPE, steps=7, perturb=counted)
    tune(0, ONES)
    jax.effects_barrier()
    assert len(calls) == 7


def test_no_step_leaves_the_network_as_it_is(train: Arrays) -> None:
    model = fine_tuning(Linear, train, NORMALISATION, RECIPE, steps=0)(0, ONES)
    for one, expected in zip(kernel_and_bias(model), START, strict=True):
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize("weights", [ONES[1:], -ONES, np.where(ONES > 0, np.nan, 0)])
def test_other_weights_are_refused(train: Arrays, weights: np.ndarray) -> None:
    tune = fine_tuning(Linear, train, NORMALISATION, RECIPE, steps=1)
    with pytest.raises(ValueError, match="weights must be 50 finite numbers, one a training image"):
        tune(0, weights)


def test_too_few_images_are_refused(train: Arrays) -> None:
    with pytest.raises(ValueError, match="50 training images are too few for batches of 51"):
        fine_tuning(Linear, train, NORMALISATION, replace(RECIPE, batch_size=51), steps=1)


def test_a_loss_that_is_not_finite_is_told(train: Arrays) -> None:
    tune = fine_tuning(Linear, train, NORMALISATION, replace(RECIPE, learning_rate=1e38), steps=5)
    with pytest.raises(FloatingPointError, match="fine-tuning diverged within"):
        tune(0, ONES)
