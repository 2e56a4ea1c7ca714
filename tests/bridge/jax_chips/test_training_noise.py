"""Training on the weights of a chip that is programmed anew at each step."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import bridge
from bridge.chips import ADC, DAC, PCM, Clipping, OutputNoise, Profile, WeightNoise
from bridge.jax_chips import training_noise
from jaxcurv.data import Arrays, Normalisation, load, read
from jaxcurv.training import Recipe, fit, restore_best

RECIPE = Recipe(
    epochs=2, batch_size=64, learning_rate=0.1, warmup_epochs=0.0, crop_padding=0, flip=False
)


class Perceptron(nnx.Module):
    """One hidden layer, normalised, on images of 8x8 pixels."""

    def __init__(self, dtype: Any, hidden: int = 24):
        rngs = nnx.Rngs(0)
        self.first = nnx.Linear(64, hidden, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, momentum=0.9, dtype=dtype, rngs=rngs)
        self.fc = nnx.Linear(hidden, 10, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.fc(jax.nn.relu(self.norm(self.first(images.reshape(len(images), -1)))))


class Normalised(nnx.Module):
    """BatchNorm alone."""

    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(64, rngs=nnx.Rngs(0))

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.norm(images.reshape(len(images), -1))


Digits = tuple[Arrays, Arrays, Normalisation]


@pytest.fixture(scope="module")
def digits() -> Digits:
    pytest.importorskip("sklearn")
    every = load("digits").train
    train, validation = read(every, range(800)), read(every, range(800, 1100))
    return train, validation, Normalisation.of(train.images)


@pytest.fixture(scope="module")
def few(digits: Digits) -> np.ndarray:
    train, _, normalisation = digits
    return normalisation.apply(train.images[:4])


def params_of(model: nnx.Module) -> nnx.State:
    return nnx.state(model, nnx.Param)


def leaves(state: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


def test_the_weights_are_those_of_the_chip_of_the_key(few: np.ndarray) -> None:
    """Whatever the profile does to activations, and though the network is in training mode."""
    pcm, wnoise = PCM(t_inference=3600.0), WeightNoise(0.05)
    model, key = Perceptron(jnp.float32), jax.random.key(7)
    model.train()
    other = jax.tree.map(lambda w: w + 0.01, params_of(model))
    profile = Profile(
        ADC(bits=4), wnoise, pcm, Clipping("layer_gaussian", 2.0), DAC(), OutputNoise()
    )
    perturb = jax.jit(training_noise(model, profile, few))
    found = leaves(perturb(other, key))
    evaluated = nnx.clone(model)
    evaluated.eval()
    graphdef, params, rest = nnx.split(evaluated, nnx.Param, ...)
    chip = bridge.analog(
        lambda params, images: nnx.merge(graphdef, params, rest)(images),
        params,
        Profile(wnoise=wnoise, memory=pcm, clipping=profile.clipping),
        few,
    )
    assert chip.layers == ("first.kernel", "fc.kernel")
    expected, exact = leaves(chip.program(other, key).params), leaves(other)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
        changed = np.asarray(value != exact[name])
        assert changed.all() if name in chip.layers else not changed.any(), name
    again, another = leaves(perturb(other, key)), leaves(perturb(other, jax.random.key(8)))
    for name in chip.layers:
        np.testing.assert_array_equal(again[name], found[name])
        assert (another[name] != found[name]).all()
    assert not model.norm.use_running_average  # still in training mode


@pytest.mark.parametrize(
    "profile",
    [
        Profile(wnoise=WeightNoise(0.0)),
        Profile(memory=PCM(programming_noise=0.0, drift=0.0, read_noise=0.0)),
    ],
    ids=["wnoise", "pcm"],
)
def test_noise_of_no_size_trains_as_without(
    digits: Digits, few: np.ndarray, tmp_path: Path, profile: Profile
) -> None:
    perturb = training_noise(Perceptron(jnp.float32), profile, few)
    train = partial(fit, Perceptron, *digits, RECIPE, seed=1)
    plain = train(directory=tmp_path / "plain")
    noisy = train(directory=tmp_path / "noisy", perturb=perturb)
    np.testing.assert_allclose(noisy, plain, rtol=1e-3)
    expected = leaves(nnx.state(restore_best(Perceptron, tmp_path / "plain")))
    for name, found in leaves(nnx.state(restore_best(Perceptron, tmp_path / "noisy"))).items():
        np.testing.assert_allclose(found, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_training_with_noise_loses_less_on_chips(
    digits: Digits, few: np.ndarray, tmp_path: Path
) -> None:
    """Both with clipped weights, on 40 chips that neither was trained on."""
    profile = Profile(wnoise=WeightNoise(0.4))
    _, validation, normalisation = digits
    recipe = replace(RECIPE, epochs=12, batch_size=32, warmup_epochs=1.0, clip_sigma=2.0)
    build = partial(Perceptron, hidden=64)
    perturb = training_noise(build(jnp.float32), profile, few)
    images, keys = normalisation.apply(validation.images), jax.random.split(jax.random.key(99), 40)
    digital, on_chips = {}, {}
    for name, noise in (("plain", None), ("noisy", perturb)):
        fit(build, *digits, recipe, seed=0, directory=tmp_path / name, perturb=noise)
        model = restore_best(build, tmp_path / name)
        chip = bridge.analog(model, None, profile, few)

        def accuracy(key: jax.Array, chip: bridge.jax_chips.Chip = chip) -> jax.Array:
            logits = chip.apply(chip.program(chip.params, key), images)
            return jnp.mean(logits.argmax(1) == validation.labels)

        digital[name] = np.mean(np.asarray(model(images)).argmax(1) == validation.labels)
        on_chips[name] = np.asarray(jax.jit(jax.vmap(accuracy))(keys))
    assert digital["noisy"] > digital["plain"] - 0.03
    lost = {name: digital[name] - on_chips[name].mean() for name in digital}
    assert lost["plain"] > 0.1
    assert lost["noisy"] < 0.75 * lost["plain"]
    # The same chips, so that the differences have their own, smaller, error.
    gained = on_chips["noisy"] - on_chips["plain"]
    assert gained.mean() > 5 * gained.std(ddof=1) / np.sqrt(len(keys))


@pytest.mark.parametrize(
    "profile",
    [
        Profile(),
        Profile(ADC(), clipping=Clipping("layer_gaussian")),
        Profile(wnoise=WeightNoise(drawn="per_mvm")),
    ],
    ids=lambda profile: profile.name,
)
def test_a_profile_without_noise_of_weights_is_refused(few: np.ndarray, profile: Profile) -> None:
    with pytest.raises(ValueError, match=rf"^profile {profile.name} has no noise of programmed"):
        training_noise(Perceptron(jnp.float32), profile, few)


def test_a_network_without_products_is_refused(few: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no matrix product or convolution of images with a param"):
        training_noise(Normalised(), bridge.PROFILES["pcm"], few)
