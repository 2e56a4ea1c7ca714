"""Draws are standard normal, and independent between places and keys."""

import jax
import numpy as np
import pytest
from scipy import stats

from bridge.jax_chips.normals import normal, threefry_key


@pytest.mark.parametrize("shape", [(250_000,), (501, 499)])  # an even count and an odd one
def test_draws_are_standard_normal(shape: tuple[int, ...]) -> None:
    found = np.asarray(normal(threefry_key(jax.random.key(0)), shape))
    assert found.shape == shape
    assert found.dtype == np.float32
    values = found.ravel().astype(np.float64)
    assert stats.kstest(values, "norm").pvalue > 0.01
    assert stats.kurtosis(values) == pytest.approx(0.0, abs=0.05)
    half = len(values) // 2  # the generator's two words
    assert abs(np.corrcoef(values[:half], values[half : 2 * half])[0, 1]) < 0.01


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_any_kind_give_draws_of_their_own(impl: str) -> None:
    one, two = (
        np.asarray(normal(threefry_key(jax.random.key(seed, impl=impl)), (1000,)))
        for seed in (0, 1)
    )
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15
    again = normal(threefry_key(jax.random.key(0, impl=impl)), (1000,))
    np.testing.assert_array_equal(one, again)
    with pytest.raises(ValueError, match="map over several"):
        threefry_key(jax.random.split(jax.random.key(0)))
    raw = normal(threefry_key(jax.random.PRNGKey(0)), (1000,))
    np.testing.assert_array_equal(raw, normal(threefry_key(jax.random.key(0)), (1000,)))
