"""A chip is of the function, the arrays and the samples that it was made with."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bridge
from bridge.chips import ADC, PCM, Profile
from bridge.jax_chips import (
    analog,
    layer_failures,
    layer_report,
    load_programmed,
    output_noise,
    predict,
    save_programmed,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 6)).astype(np.float32)
LABELS = np.zeros(24, int)
KEY = jax.random.key(0)


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "w": rng.normal(size=(6, 4)).astype(np.float32),
        "b": rng.normal(size=4).astype(np.float32),
    }


@pytest.mark.parametrize("profile", [Profile(), Profile(memory=PCM()), Profile(ADC())])
def test_what_a_function_closes_over_stays_as_it_was(profile: Profile) -> None:
    factor = [jnp.float32(1)]
    table = np.ones(4, np.float32)
    given = params()
    made = analog(lambda p, x: (x @ p["w"] + p["b"]) * factor[0] * table, given, profile, X)
    weights = made.program(given, KEY)
    before = np.asarray(made.apply(weights, X))
    factor[0] = jnp.float32(3)
    table[:] = 5
    np.testing.assert_array_equal(made.apply(weights, X), before)
    # Also where the batch is of another size, which compiles anew.
    np.testing.assert_allclose(made.apply(weights, X[:7]), before[:7], rtol=1e-5, atol=1e-6)
    calls: list[Any] = [
        lambda: made.program(given, KEY),
        lambda: predict(made, weights, (X, LABELS), batch_size=5),
        lambda: layer_report(made, weights, X),
        lambda: made.clipped_share(weights, X),
        lambda: layer_failures(made, (X, LABELS)),
        lambda: output_noise(made, (X, LABELS)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="computes otherwise than when the chip was made"):
            call()
    factor[0], table[:] = jnp.float32(1), 1
    found = predict(made, weights, (X, LABELS), batch_size=5)
    np.testing.assert_allclose(np.stack([*found["logits"]]), before, rtol=1e-5, atol=1e-6)


def test_arrays_that_are_written_to_later_are_copied() -> None:
    given = params()
    made = analog(lambda p, x: x @ p["w"] + p["b"], given, Profile(memory=PCM()), X)
    weights = made.program(given, KEY)
    before = np.asarray(made.apply(weights, X))
    given["b"] += 100
    given["w"] *= 2
    np.testing.assert_array_equal(made.apply(weights, X), before)
    again = made.program(made.params, KEY)
    np.testing.assert_array_equal(made.apply(again, X), before)


def logits_of(activation: Any) -> Any:
    return lambda p, x: activation(x) @ p["w"] + p["b"]


@pytest.mark.parametrize(
    ("one", "other", "scale"),
    [
        (lambda x: x, lambda x: jnp.clip(x, -1, 1), 1),
        (jax.nn.relu, jax.nn.relu6, 60),
        (lambda x: x, lambda x: jnp.where(jnp.abs(x).max(1, keepdims=True) > 2, x / 9, x), 1),
        (lambda x: x, lambda x: jnp.clip(x, -5, 5), 1),  # beyond these images, within four times
    ],
)
def test_other_code_is_told_on_the_samples(
    tmp_path: Path, one: Any, other: Any, scale: float
) -> None:
    given, images = params(), scale * X
    made = analog(logits_of(one), given, Profile(), images)
    save_programmed(tmp_path / "chip", made, made.program(given, KEY))
    load_programmed(tmp_path / "chip", made)
    with pytest.raises(ValueError, match="a chip of other code"):
        load_programmed(tmp_path / "chip", analog(logits_of(other), given, Profile(), images))


def test_other_code_is_told_on_ids(tmp_path: Path) -> None:
    ids = RNG.integers(1, 9, (5, 7))
    ids[:, 5:] = 0
    given = {"e": jnp.asarray(RNG.normal(size=(9, 8)), jnp.float32), "w": jnp.ones((8, 3))}

    def mean(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(p["e"][x]).mean(1) @ p["w"]

    def masked(p: Any, x: jax.Array) -> jax.Array:
        there = (x > 0)[..., None]
        return ((jnp.tanh(p["e"][x]) * there).sum(1) / there.sum(1)) @ p["w"]

    def last(p: Any, x: jax.Array) -> jax.Array:
        return jnp.tanh(p["e"][x])[:, 0] @ p["w"]

    made = analog(mean, given, Profile(), ids)
    save_programmed(tmp_path / "chip", made, made.program(given, KEY))
    load_programmed(tmp_path / "chip", made)
    for other in (masked, last):
        with pytest.raises(ValueError, match="a chip of other code"):
            load_programmed(tmp_path / "chip", analog(other, given, Profile(), ids))


def test_weights_of_another_time_are_not_kept_as_the_chip_s(tmp_path: Path) -> None:
    given = params()
    made = analog(logits_of(jnp.tanh), given, Profile(memory=PCM()), X)
    later = made.at(3600.0)
    keys = jax.random.split(KEY, 2)
    aged = jax.vmap(later.program, (None, 0))(given, keys)
    with pytest.raises(ValueError, match=r"of 3600 s after programming, the chip of 20 s"):
        save_programmed(tmp_path / "chip", made, aged)
    save_programmed(tmp_path / "chip", later, aged)
    found = load_programmed(tmp_path / "chip", later)
    assert np.asarray(found.time).tolist() == [3600.0, 3600.0]


@pytest.mark.parametrize(
    "mixes",
    [
        lambda h: jnp.where(h >= jax.lax.top_k(h.reshape(-1), 2 * len(h))[0][-1], h, 0),
        lambda h: h * jnp.where(h.max() > 12, 0.5, 1),
        lambda h: h * jnp.where(h.max(1).min() > 12, 0.5, 1),
        lambda h: jnp.round(h / jnp.abs(h).max() * 127) * jnp.abs(h).max() / 127,
        lambda h: h - jax.lax.stop_gradient(h.mean(0)),
        lambda h: h[::-1],
    ],
    ids=["top_k", "threshold", "threshold of the weakest", "scale", "mean", "order"],
)
def test_samples_that_depend_on_those_beside_them_are_refused(mixes: Any) -> None:
    given = params()

    def logits_fn(p: Any, x: jax.Array) -> jax.Array:
        return mixes(jax.nn.relu(x @ p["w"])) + p["b"]

    with pytest.raises(ValueError, match="depend on the other images of its batch"):
        analog(logits_fn, given, bridge.PROFILES["ideal"], X)
