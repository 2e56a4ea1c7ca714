"""Mean and spread of the margin against chips that are drawn, on a network with a hidden layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcurv.flips import flip_probability
from jaxcurv.margins import Moments
from tests.jaxcurv.test_margins import CONVNET, IMAGES, convnet, noise, source

pytestmark = pytest.mark.long

CHIPS = 20_000


@pytest.mark.parametrize("scale", [0.005, 0.01])
def test_mean_and_spread_of_the_margin_are_those_of_drawn_chips(scale: float) -> None:
    """To the drawn chips' own standard errors, for noise whose second order is below them.

    The margin is that over one class, the runner-up under the mean weights, as it is predicted. Its
    sample mean has the standard error sd / sqrt(chips), its sample standard deviation sd
    / sqrt(2 chips).
    """
    full = noise(CONVNET, 3)
    moments = Moments(
        {name: scale * one for name, one in full.mean.items()},
        {name: scale**2 * one for name, one in full.variance.items()},
    )
    table = flip_probability(convnet, source(), params=CONVNET, moments=moments)
    rows, own = np.arange(len(table)), table["prediction"].to_numpy()
    at_mean = np.array(
        convnet({name: CONVNET[name] + moments.mean[name] for name in CONVNET}, IMAGES)
    )
    at_mean[rows, own] = -np.inf
    other = at_mean.argmax(1)

    @jax.jit
    def margins(key: jax.Array) -> jax.Array:
        keys = dict(zip(CONVNET, jax.random.split(key, len(CONVNET)), strict=True))
        drawn = {
            name: weight
            + moments.mean[name]
            + jnp.sqrt(moments.variance[name]) * jax.random.normal(keys[name], weight.shape)
            for name, weight in CONVNET.items()
        }
        logits = convnet(drawn, IMAGES)
        return logits[rows, own] - logits[rows, other]

    keys = jax.random.split(jax.random.key(0), CHIPS)
    found = np.asarray(jax.lax.map(margins, keys, batch_size=500), np.float64)
    spread = np.sqrt(table["variance"].to_numpy())
    off = found.mean(0) - (table["margin"] + table["shift"]).to_numpy()
    np.testing.assert_allclose(off / spread, 0, atol=5 / np.sqrt(CHIPS))
    np.testing.assert_allclose(found.std(0, ddof=1) / spread, 1, atol=5 / np.sqrt(2 * CHIPS))
