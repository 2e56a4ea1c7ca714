"""Programmed chips come back to the bit."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import bridge
from bridge.chips import ADC, PCM, Profile, WeightNoise
from bridge.jax_chips import Chip, analog, carried, load_programmed, save_programmed

X = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
PROFILE = Profile(ADC(), WeightNoise(drawn="per_mvm"), PCM(compensation="global"))


class Net(nnx.Module):
    """With random state, which is no weight."""

    def __init__(self) -> None:
        self.first = nnx.Linear(8, 16, rngs=nnx.Rngs(0))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))
        self.second = nnx.Linear(16, 3, rngs=nnx.Rngs(2))

    def __call__(self, x: Any) -> Any:
        return self.second(self.dropout(nnx.relu(self.first(x))))


def chip(profile: Profile = PROFILE, images: np.ndarray = X) -> Chip:
    net = Net()
    net.eval()
    return analog(net, None, profile, images)


def test_one_chip_and_several_come_back(tmp_path: Path) -> None:
    made = chip()
    keys = jax.random.split(jax.random.key(0), 3)
    several = jax.vmap(made.program, (None, 0))(made.params, keys)
    for weights in (made.program(made.params, keys[1]), several):
        save_programmed(tmp_path / "chip.safetensors", made, weights)
        back = load_programmed(tmp_path / "chip.safetensors", chip())
        assert jax.tree.structure(back) == jax.tree.structure(weights)
        for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(weights), strict=True):
            assert one.dtype == other.dtype
            if jax.dtypes.issubdtype(one.dtype, jax.dtypes.prng_key):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(
        jax.vmap(chip().apply, (0, None))(back, X), jax.vmap(made.apply, (0, None))(several, X)
    )


@pytest.mark.parametrize("number", [2, 2.0, True, np.float32(2), np.array(2.0)])
def test_a_number_among_the_parameters_comes_back(tmp_path: Path, number: Any) -> None:
    params = {"w": jnp.ones((8, 3)), "t": number}
    made = analog(lambda p, x: x @ p["w"] / p["t"], params, PROFILE, X)
    weights = made.program(params, jax.random.key(0))
    save_programmed(tmp_path / "chip.safetensors", made, weights)
    back = load_programmed(tmp_path / "chip.safetensors", made)
    np.testing.assert_array_equal(made.apply(back, X), made.apply(weights, X))


def test_an_empty_parameter_comes_back(tmp_path: Path) -> None:
    params = {"w": jnp.ones((8, 3)), "none": jnp.zeros((0, 3))}
    made = analog(lambda p, x: x @ p["w"] + p["none"].sum(0), params, PROFILE, X)
    several = jax.vmap(made.program, (None, 0))(params, jax.random.split(jax.random.key(0), 2))
    for weights in (made.program(params, jax.random.key(0)), several):
        save_programmed(tmp_path / "chip.safetensors", made, weights)
        back = load_programmed(tmp_path / "chip.safetensors", made)
        assert back.params["none"].shape == weights.params["none"].shape
        np.testing.assert_array_equal(back.params["w"], weights.params["w"])


def test_another_chip_and_damage_are_refused(tmp_path: Path) -> None:
    made, path = chip(), tmp_path / "chip.safetensors"
    save_programmed(path, made, made.program(made.params, jax.random.key(0)))
    with pytest.raises(ValueError, match="with other profile"):
        load_programmed(path, chip(Profile(ADC(8))))
    with pytest.raises(ValueError, match="with other profile"):
        load_programmed(path, made.at(3600.0))
    with pytest.raises(ValueError, match="with other ranges"):
        load_programmed(path, chip(images=X[:1]))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged|checksum"):
        load_programmed(path, made)
    path.write_bytes(b"not a chip")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_programmed(path, made)
    with pytest.raises(FileNotFoundError, match="no programmed chip"):
        load_programmed(tmp_path / "none", made)
    with pytest.raises(FileNotFoundError, match="no folder"):
        save_programmed(
            tmp_path / "none" / "chip", made, made.program(made.params, jax.random.key(0))
        )


def test_a_chip_of_other_code_is_refused(tmp_path: Path) -> None:
    w = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    made = analog(lambda p, x: jnp.tanh(x @ p), w, Profile(), X)
    weights = jax.vmap(made.program, (None, 0))(w, jax.random.split(jax.random.key(0), 2))
    save_programmed(tmp_path / "chips", made, weights)
    other = analog(lambda p, x: jnp.sin(x @ p), w, Profile(), X)
    with pytest.raises(ValueError, match="a chip of other code"):
        load_programmed(tmp_path / "chips", other)


def test_types_that_no_file_holds_are_told(tmp_path: Path) -> None:
    w = jnp.ones((8, 3), jnp.bfloat16)
    made = analog(lambda p, x: (x @ p).astype(jnp.float32), w, Profile(), X)
    weights = made.program(w, jax.random.key(0))
    with pytest.raises(ValueError, match="bfloat16"):
        save_programmed(tmp_path / "chip", made, weights)


def test_a_chip_that_was_carried_over_comes_back(tmp_path: Path) -> None:
    network = torch.nn.Sequential(torch.nn.Linear(8, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    made = bridge.program(network.eval(), Profile(ADC(), memory=PCM()), seed=0, calibration=X)
    for chip_then in (made, made.at(3600.0)):
        chip, weights = carried(chip_then, X)
        save_programmed(tmp_path / "chip", chip, weights)
        found = load_programmed(tmp_path / "chip", chip)
        assert float(np.asarray(found.time)) == chip_then.t_inference
        np.testing.assert_array_equal(chip.apply(found, X), chip.apply(weights, X))
