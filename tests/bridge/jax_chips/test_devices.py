"""AIHWKit's noise models are the oracle of the devices, number for number and in distribution."""

import warnings
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import aihwkit.inference.noise.hermes
import aihwkit.inference.noise.pcm
import aihwkit.inference.noise.reram
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bridge.chips import (
    PCM,
    Hermes,
    MappedPairs,
    Pairs,
    Profile,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
)
from bridge.jax_chips import analog, devices
from bridge.jax_chips.devices import drifting, reram_cmo, reram_wan2022
from bridge.jax_chips.programming import _program_layer

HOUR, YEAR = 3600.0, 365 * 86400.0
SHAPE = (64, 80)

DRIFTING: list[Any] = [
    PCM(),
    PCM(g_max=31.0, mapping=SinglePair(g_min=2.0)),
    PCM(mapping=Pairs((1.0, 4.0), g_min=0.5), programming_noise=0.5, drift=2.0, read_noise=0.7),
    PCM(mapping=MappedPairs((1.0,), ((0.0, 5.0, 25.0), (25.0, 5.0, 0.0)))),
    Hermes(),
    Hermes(devices=1, g_max=9.0),
]
MEMORIES: list[Any] = [
    *(replace(one, t_inference=t) for one in DRIFTING for t in (0.0, HOUR)),
    *(ReRamWan2022(t_inference=t) for t in (1.0, 86400.0, 172800.0)),
    ReRamWan2022(g_max=35.0, noise=0.5, mapping=Pairs((1.0, 2.0))),
    *(ReRamCMO(t_inference=t) for t in (0.0, 1.0, HOUR, YEAR)),
    ReRamCMO(acceptance=2.0, g_min=5.0, programming_noise=3.0, drift=20.0, read_noise=2.0),
]


def targets(shape: tuple[int, int] = SHAPE, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    values[0] = 0.0
    return values / np.abs(values).max()


def as_aihwkit_gives_it(memory: Any, weights: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what AIHWKit uses of PyTorch
        model = memory.noise_model()
        programmed, state = model.apply_programming_noise(torch.tensor(weights))
        found: np.ndarray = model.apply_drift_noise(programmed, state, memory.t_inference).numpy()
    return found


def as_jax_gives_it(memory: Any, weights: np.ndarray, seed: int = 0) -> np.ndarray:
    programming, reading = jax.random.split(jax.random.key(seed))
    programmed, state = devices.program(memory, programming, jnp.asarray(weights))
    return np.asarray(devices.read(memory, reading, programmed, state))


@pytest.mark.parametrize("z", [0.0, 1.0, -0.7])
@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_equal_draws_give_equal_weights(
    memory: Any, z: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every draw z in both."""
    for module in (
        aihwkit.inference.noise.pcm,
        aihwkit.inference.noise.hermes,
        aihwkit.inference.noise.reram,
    ):
        monkeypatch.setattr(module, "randn_like", lambda x: torch.full_like(x, z))
    for device in (drifting, reram_cmo, reram_wan2022):
        monkeypatch.setattr(device, "normal", lambda key, shape: jnp.full(shape, z))
    expected = as_aihwkit_gives_it(memory, targets())
    found = as_jax_gives_it(memory, targets())
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("memory", [PCM(t_inference=20.0), Hermes(), ReRamWan2022(), ReRamCMO()])
def test_draws_are_independent_and_standard(memory: Any) -> None:
    """Each weight's own, and of AIHWKit's spread; `make test-long` looks more closely."""
    weights = np.full((256, 256), 0.4, np.float32)
    weights[0] = 1.0
    torch.manual_seed(0)
    expected = (as_aihwkit_gives_it(memory, weights) - weights)[1:]
    one, two = ((as_jax_gives_it(memory, weights, seed) - weights)[1:] for seed in (0, 1))
    assert one.std() == pytest.approx(expected.std(), rel=0.03)
    assert one.mean() == pytest.approx(expected.mean(), abs=5.0 * float(one.std()) / 255)
    for other in (two, np.roll(one, 1, 0), np.roll(one, 1, 1), one[::-1], one[:, ::-1]):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("memory", [PCM(t_inference=HOUR), Hermes(), ReRamWan2022(), ReRamCMO()])
def test_weights_have_finite_derivatives_to_their_targets(memory: Any) -> None:
    def total(weights: jax.Array) -> jax.Array:
        programmed, state = devices.program(memory, jax.random.key(0), weights)
        return devices.read(memory, jax.random.key(1), programmed, state).sum()

    assert np.isfinite(np.asarray(jax.grad(total)(jnp.asarray(targets((8, 8)))))).all()


@pytest.mark.parametrize("value", [0.0, 0.5, -0.5])
@pytest.mark.parametrize("memory", [PCM(), Hermes(), ReRamWan2022(), ReRamCMO()])
def test_tiles_of_equal_weights_are_programmed(memory: Any, value: float) -> None:
    found = as_jax_gives_it(memory, np.full((32, 32), value, np.float32))
    assert np.isfinite(found).all()
    if value:
        assert found.mean() == pytest.approx(value, abs=0.2)


@dataclass(frozen=True)
class Shrinking:
    """A memory of a user's own."""

    t_inference: float = 1.0
    compensation: None = None
    name: ClassVar[str] = "shrinking"

    def noise_model(self) -> Any:
        raise NotImplementedError

    def program(self, key: jax.Array, targets: jax.Array) -> tuple[jax.Array, None]:
        return targets + 0.1 * jax.random.normal(key, targets.shape), None

    def read(self, key: jax.Array, programmed: jax.Array, state: None) -> jax.Array:
        return programmed / (1 + self.t_inference)


def test_a_memory_of_ones_own_is_its_own_device() -> None:
    devices.require_device(Shrinking())
    found = as_jax_gives_it(Shrinking(), targets())
    assert (2 * found - targets()).std() == pytest.approx(0.1, rel=0.05)

    class Silent:
        pass

    with pytest.raises(ValueError, match="Silent has no model in JAX: give it the methods"):
        devices.require_device(Silent())


@pytest.mark.parametrize("memory", [PCM(), Hermes(), ReRamCMO(), ReRamWan2022()])
def test_other_times_and_levels_compile_nothing(memory: Any) -> None:
    names = ("noise", "programming_noise", "drift", "read_noise")
    levels = [name for name in names if hasattr(memory, name)]
    times = [] if isinstance(memory, ReRamWan2022) else [2.0, 3600.0, 1e7]
    params = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    images = np.ones((2, 7), np.float32)

    def weights(memory: Any, sigma: float = 0.02) -> np.ndarray:
        profile = Profile(wnoise=WeightNoise(sigma), memory=memory)
        chip = analog(lambda p, x: x @ p, params, profile, images)
        return np.asarray(chip.program(params, jax.random.key(0)).params)

    first = weights(memory)
    compiled = _program_layer._cache_size()
    others = [replace(memory, t_inference=time) for time in times]
    others += [replace(memory, **{name: 0.5}) for name in levels]
    for other in others:
        assert not np.array_equal(weights(other), first), other
    assert not np.array_equal(weights(memory, 0.1), first)
    assert _program_layer._cache_size() == compiled
