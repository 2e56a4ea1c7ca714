"""What converters and noise of each operation add to a margin's variance, as in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.chips import ADC, DAC, PCM, OutputNoise, Profile, WeightNoise
from bridge.jax_chips import analog, output_noise

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(7, 9, 9, 3)).astype(np.float32)
IMAGES[:, :4, :4] = 0.0  # patches that no converter errs in
LABELS = RNG.integers(0, 4, 7)
CONSTANT = WeightNoise(0.05, drawn="per_mvm")
READ = WeightNoise(0.05, kind="pcm_read", drawn="per_mvm")


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """Its last layer has several columns of tiles, its first one patches that overlap."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, stride=2), nn.Tanh(),
        nn.Flatten(), nn.Linear(384, 600), nn.ReLU(), nn.Linear(600, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def in_jax(network: nn.Module) -> tuple[Any, Any]:
    return bridge.to_jax(network, IMAGES)


@pytest.mark.parametrize(
    "profile",
    [
        Profile(ADC(5)),
        Profile(ADC(6, range=3.0), memory=PCM()),
        Profile(wnoise=CONSTANT),
        Profile(wnoise=READ),
        Profile(ADC(5), CONSTANT),
        Profile(ADC(5), READ, PCM()),
        Profile(dac=DAC(5)),
        Profile(dac=DAC(5, range="calibrated", percentile=99.0), adc=ADC(6)),
        Profile(dac=DAC(6, range=2.0), wnoise=CONSTANT, out_noise=OutputNoise(0.05)),
        Profile(out_noise=OutputNoise(0.05)),
        Profile(dac=DAC(6), adc=ADC(5), wnoise=READ, out_noise=OutputNoise(0.02)),
    ],
    ids=lambda profile: profile.name,
)
def test_it_is_that_of_pytorch(
    network: nn.Module, in_jax: tuple[Any, Any], profile: Profile
) -> None:
    logits_fn, params = in_jax
    found = output_noise(analog(logits_fn, params, profile, IMAGES), (IMAGES, LABELS), batch_size=3)
    expected = bridge.output_noise(network, profile, (IMAGES, LABELS), calibration=IMAGES)
    assert found.dtypes.to_dict() == expected.dtypes.to_dict()
    assert found["index"].tolist() == expected["index"].tolist()
    np.testing.assert_allclose(found["margin"], expected["margin"], rtol=1e-4)
    assert (expected["variance"] > 0).all()
    np.testing.assert_allclose(found["variance"], expected["variance"], rtol=1e-3)


def test_frozen_noise_and_memories_are_not_in_it(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(wnoise=WeightNoise(0.1), memory=PCM()), IMAGES)
    assert output_noise(chip, (IMAGES, LABELS))["variance"].tolist() == [0.0] * 7


def test_a_linear_function_has_its_chips_variance() -> None:
    """m = (w_a - w_b) x: of noise sigma |W|max ||x|| at each output twice the square."""
    weight = RNG.normal(size=(5, 3)).astype(np.float32)
    images = RNG.normal(size=(6, 5)).astype(np.float32)

    def logits_fn(params: Any, x: jax.Array) -> jax.Array:
        return x @ params["w"]

    chip = analog(logits_fn, {"w": jnp.asarray(weight)}, Profile(wnoise=CONSTANT), images)
    found = output_noise(chip, (images, np.zeros(6, int)))["variance"]
    exact = 2 * (0.05 * np.abs(weight).max()) ** 2 * (images**2).sum(1)
    np.testing.assert_allclose(found, exact, rtol=1e-5)

    top = np.argsort(images @ weight)[:, ::-1][:, :2]
    keys = jax.random.split(jax.random.key(0), 4000)
    programmed = jax.vmap(chip.program, (None, 0))(chip.params, keys)
    logits = np.asarray(jax.vmap(chip.apply, (0, None))(programmed, jnp.asarray(images)))
    margins = np.take_along_axis(logits, top[None], 2)
    drawn = (margins[..., 0] - margins[..., 1]).var(0)
    np.testing.assert_allclose(found, drawn, rtol=5 * np.sqrt(2 / 4000))


def test_bad_samples_are_refused(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(ADC()), IMAGES)
    with pytest.raises(ValueError, match="no samples"):
        output_noise(chip, (IMAGES[:0], LABELS[:0]))
    with pytest.raises(ValueError, match="normalise both"):
        output_noise(chip, (100 * IMAGES, LABELS))
    with pytest.raises(ValueError, match="batch_size"):
        output_noise(chip, (IMAGES, LABELS), batch_size=0)
    broken = jax.tree.map(lambda leaf: leaf + 3e38 if leaf.ndim == 1 else leaf, params)
    with pytest.raises(ValueError, match="not finite, first for image 0"):
        output_noise(analog(logits_fn, broken, Profile(wnoise=CONSTANT), IMAGES), (IMAGES, LABELS))
