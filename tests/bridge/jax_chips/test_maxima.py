"""The largest magnitude of each vector has the derivative of one element, whatever rounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.jax_chips.maxima import largest


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_values_and_derivatives(axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    found = largest(jnp.abs(jnp.asarray(x)), axis)
    np.testing.assert_array_equal(found, np.abs(x).max(axis, keepdims=True))
    gradient = jax.grad(lambda x: largest(jnp.abs(x), axis).sum())(jnp.asarray(x))
    where = np.abs(x) == np.abs(x).max(axis, keepdims=True)
    np.testing.assert_array_equal(gradient, np.where(where, np.sign(x), 0.0))


def test_of_equal_ones_the_first_has_the_derivative() -> None:
    gradient = jax.grad(lambda x: largest(jnp.abs(x), 0)[0])
    assert gradient(jnp.array([1.0, -2.0, 2.0])).tolist() == [0.0, -1.0, 0.0]
    assert gradient(jnp.zeros(3)).tolist()[1:] == [0.0, 0.0]
