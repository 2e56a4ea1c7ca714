"""Input converters and output noise of chips in JAX: those of `bridge.program` and AIHWKit."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from aihwkit.nn import AnalogConv2d, AnalogLinear
from torch import nn

import bridge
from bridge.chips import ADC, DAC, PCM, OutputNoise, Profile, WeightNoise, clipped_share
from bridge.chips.configuration import rpu_config
from bridge.chips.tiles import named_tiles
from bridge.jax_chips import analog, carried, load_programmed, save_programmed
from bridge.jax_chips.tiles import is_linear
from tests.bridge.jax_chips.test_chips import IMAGES, torch_logits, torch_network
from tests.chips import single


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return torch_network()


@pytest.fixture(scope="module")
def in_jax(network: nn.Module) -> tuple[Any, Any]:
    return bridge.to_jax(network, IMAGES)


@pytest.mark.parametrize("adc", [None, ADC(percentile=99.9, headroom=1.3)], ids=["", "adc"])
@pytest.mark.parametrize(
    "dac",
    [DAC(5), DAC(6, "calibrated"), DAC(6, "calibrated", 99.0), DAC(5, 2.0)],
    ids=["max", "largest", "percentile", "fixed"],
)
def test_converters_are_those_of_torch(
    network: nn.Module, in_jax: tuple[Any, Any], dac: DAC, adc: ADC | None
) -> None:
    """Layers of several tiles, whose border lies within a channel, strides, dilation."""
    profile = Profile(adc, dac=dac)
    chip = bridge.program(network, profile, seed=0, calibration=IMAGES)
    made = analog(*in_jax, profile, IMAGES)
    weights = made.program(in_jax[1], jax.random.key(0))
    ranges = {f"{name}.weight": value for name, value in chip.input_ranges.items()}
    assert made.dac_ranges.keys() == ranges.keys()
    np.testing.assert_allclose(list(made.dac_ranges.values()), list(ranges.values()), rtol=1e-5)
    bounds = [bound for bounds in made.adc_ranges.values() for bound in bounds]
    np.testing.assert_allclose(bounds, list(chip.out_bounds.values()), rtol=1e-5)
    expected, found = torch_logits(chip), np.asarray(made.apply(weights, IMAGES))
    digital = np.asarray(in_jax[0](in_jax[1], IMAGES))
    rounding = np.abs(expected - digital).std()
    # Rounding of floats moves a few values by a code, in some images.
    assert (np.abs(found - expected) > 0.05 * rounding).mean() < 0.15
    again, its = carried(chip, IMAGES)
    off = np.abs(np.asarray(again.apply(its, IMAGES)) - expected)
    assert (off > 0.05 * rounding).mean() < 0.15
    if adc is not None:
        images = torch.tensor(IMAGES).permute(0, 3, 1, 2)
        share = np.concatenate(list(made.clipped_share(weights, IMAGES).values()))
        assert share.max() > 0
        np.testing.assert_allclose(share, list(clipped_share(chip, images).values()), atol=2e-4)


@pytest.mark.parametrize("unit", ["max", 1.2])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gradients_are_those_of_aihwkits_tile(kind: str, unit: Any) -> None:
    """Straight through rounding, 0 beyond saturation; AIHWKit's tile under PyTorch's autograd."""
    profile = Profile(ADC(7, range=6.0), dac=DAC(5, unit))
    if kind == "linear":
        layer: Any = single(nn.Linear(40, 7)).layer
        tile: Any = AnalogLinear.from_digital(layer, rpu_config(profile))
        x = torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    else:
        layer = single(nn.Conv2d(5, 7, 3, stride=2, padding=1)).layer
        tile = AnalogConv2d.from_digital(layer, rpu_config(profile))
        x = torch.randn(6, 5, 7, 7, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    outputs = tile.eval()(x)
    weights = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    (outputs * weights).sum().backward()
    expected = x.grad.numpy()

    target = layer.weight.detach().numpy()
    bias = layer.bias.detach().numpy()

    def function(params: Any, x: Any) -> Any:
        if kind == "linear":
            return x @ params.T + bias
        y = jax.lax.conv_general_dilated(x, params, (2, 2), [(1, 1)] * 2)
        return (y + bias[:, None, None]).reshape(len(x), -1)

    given = x.detach().numpy()
    chip = analog(function, target, profile, given)
    programmed = chip.program(target, jax.random.key(0))
    found = chip.apply(programmed, given)
    flat = outputs.detach().numpy().reshape(found.shape)
    # An output on the edge between two codes may fall to the other side.
    assert (np.abs(found - flat) > 1e-4).mean() < 0.01

    def total(x: Any) -> Any:
        return (chip.apply(programmed, x) * weights.numpy().reshape(found.shape)).sum()

    gradient = np.asarray(jax.grad(total)(jnp.asarray(given)))
    off = np.abs(gradient - expected) > 1e-3 * np.abs(expected).max()
    # Of the vectors' largest inputs, which are the unit, AIHWKit's gradient has its own part.
    assert off.mean() < 0.01
    if unit != "max":
        beyond = np.abs(given) > 1.2
        assert beyond.mean() > 0.1
        assert not gradient[beyond].any()
        assert gradient[~beyond].all()


@pytest.mark.parametrize(
    ("layouts", "x", "kernel", "settings"),
    [
        (("NCH", "OIH", "NCH"), (2, 7, 20), (5, 7, 3), {"window_strides": (2,)}),
        (("NHWC", "HWIO", "NHWC"), (2, 6, 7, 4), (3, 2, 4, 5), {"rhs_dilation": (2, 1)}),
        (("NHWC", "OIHW", "NCHW"), (2, 6, 7, 60), (5, 60, 3, 3), {"padding": [(2, 0), (1, 3)]}),
        (("CHWN", "IOHW", "HWNC"), (3, 6, 7, 2), (3, 5, 2, 2), {}),
        (("NDHWC", "DHWIO", "NDHWC"), (2, 4, 5, 6, 70), (2, 2, 2, 70, 4), {}),
    ],
    ids=["1d", "nhwc", "mixed", "batch last", "3d"],
)  # fmt: skip
def test_patches_of_any_layout(layouts: Any, x: Any, kernel: Any, settings: Any) -> None:
    """With codes so fine that what is left is the convolution; two have two columns of tiles."""
    rng = np.random.default_rng(0)
    images, weight = (rng.normal(size=size).astype(np.float32) for size in (x, kernel))
    batch = layouts[0].index("N")
    images = np.moveaxis(images, batch, 0)

    def function(params: Any, images: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            jnp.moveaxis(images, 0, batch),
            params,
            **{"window_strides": (1,) * (len(x) - 2), "padding": "VALID"} | settings,
            dimension_numbers=layouts,
        )
        return jnp.moveaxis(y, layouts[2].index("N"), 0).reshape(len(images), -1)

    chip = analog(function, weight, Profile(dac=DAC(20)), images)
    found = np.asarray(chip.apply(chip.program(weight, jax.random.key(0)), images))
    expected = np.asarray(function(weight, images))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    coarse = analog(function, weight, Profile(dac=DAC(3)), images)
    found = np.asarray(coarse.apply(coarse.program(weight, jax.random.key(0)), images))
    assert np.abs(found - expected).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize(
    "profile",
    [
        Profile(out_noise=OutputNoise(0.1)),
        Profile(ADC(14, range=30.0), out_noise=OutputNoise(0.1)),
        Profile(dac=DAC(12), out_noise=OutputNoise(0.1)),
        Profile(dac=DAC(14, 5.0), out_noise=OutputNoise(0.1)),
        Profile(None, WeightNoise(0.005, "pcm_read", "per_mvm"), out_noise=OutputNoise(0.1)),
        Profile(
            ADC(14, range=30.0),
            WeightNoise(0.005, "constant", "per_mvm"),
            dac=DAC(14, 5.0),
            out_noise=OutputNoise(0.1),
        ),
    ],
    ids=lambda profile: profile.name,
)
def test_noise_has_the_closed_form(profile: Profile) -> None:
    """Over 2,000 samples, a layer of two columns of tiles: sigma x largest weight x unit."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(600, 5)).astype(np.float32)
    x = rng.normal(size=(1, 600)).astype(np.float32)
    chip = analog(lambda p, x: x @ p["w"], {"w": w}, profile, x)
    weights = chip.program({"w": w}, jax.random.key(0))
    logits = np.asarray(chip.apply(weights, np.repeat(x, 2000, 0)))
    variance = np.zeros(5)
    for part in (slice(0, 300), slice(300, 600)):
        largest = np.abs(w[part]).max()
        unit = 5.0 if profile.fixed_inputs else np.abs(x[0, part]).max()
        variance += (0.1 * largest * unit) ** 2
        if profile.wnoise is not None:
            share = np.abs(w[part]) / largest if profile.wnoise.kind == "pcm_read" else 1.0
            variance += (0.005 * largest) ** 2 * (x[0, part, None] ** 2 * share).sum(0)
    np.testing.assert_allclose(logits.std(0), np.sqrt(variance), rtol=0.08)
    np.testing.assert_allclose(logits.mean(0), (x @ w)[0], atol=5 * np.sqrt(variance).max() / 45)
    few = np.asarray(chip.apply(weights, np.repeat(x, 2, 0), indices=jnp.array([7, 1000])))
    np.testing.assert_allclose(few, logits[[7, 1000]], rtol=1e-3, atol=1e-2)
    other = chip.program({"w": w}, jax.random.key(1))
    assert np.abs(chip.apply(other, x) - logits[:1]).max() > 0.05


@pytest.mark.parametrize("dac", [None, DAC(12), DAC(12, 4.0)], ids=["", "max", "fixed"])
def test_noise_of_convolutions_is_in_the_unit_of_each_patch(dac: DAC | None) -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 2, 150, 3)).astype(np.float32)  # 600 inputs: two columns of tiles
    x = rng.normal(size=(1, 3, 3, 150)).astype(np.float32)
    x[:, :2, :2] = 0  # a patch without any input

    def convolution(params: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(len(x), -1)

    chip = analog(convolution, w, Profile(dac=dac, out_noise=OutputNoise(0.2)), x)
    logits = np.asarray(chip.apply(chip.program(w, jax.random.key(0)), np.repeat(x, 2000, 0)))
    variance = np.zeros((2, 2))
    for part in (slice(0, 75), slice(75, 150)):
        patches = [x[0, i : i + 2, j : j + 2, part] for i in (0, 1) for j in (0, 1)]
        largest = np.array([np.abs(one).max() for one in patches]).reshape(2, 2)
        unit = 4.0 if dac is not None and dac.range != "max" else largest
        variance += (0.2 * np.abs(w[:, :, part]).max() * unit) ** 2
    expected = np.repeat(np.sqrt(variance).ravel(), 3)
    np.testing.assert_allclose(logits.std(0), expected, rtol=0.08)
    assert bool(logits[:, :3].any()) == (dac is not None and dac.range != "max")


@pytest.mark.parametrize(
    "compensation",
    [
        "global",
        *(pytest.param(one, marks=pytest.mark.long) for one in ("global_exact", "per_column")),
    ],
)
def test_a_readout_s_noise_is_in_a_compensation(compensation: Any) -> None:
    """Mean and spread of its factor over chips, beside those of AIHWKit's tiles."""
    model = single(nn.Linear(12, 3, bias=False))
    memory = PCM(t_inference=3600.0, compensation=compensation)
    profile = Profile(memory=memory, dac=DAC(4, 0.7), out_noise=OutputNoise(0.5))
    count = 250
    factors = []
    for seed in range(count):
        chip = bridge.program(model, profile, seed=seed)
        (tile,) = named_tiles(chip.analog).values()
        factors.append(np.broadcast_to(tile.alpha.numpy(), 3))
    x = np.ones((1, 12), np.float32)
    logits_fn, params = bridge.to_jax(model, x)
    made = analog(logits_fn, params, profile, x)
    keys = jax.random.split(jax.random.key(0), count)
    (units,) = jax.jit(jax.vmap(made.program, (None, 0)))(params, keys).units
    found = np.asarray(units)[:, 0] / float(model.layer.weight.abs().max())
    expected = np.stack(factors)
    error = np.hypot(found.std(0), expected.std(0)) / count**0.5
    assert (np.abs(found.mean(0) - expected.mean(0)) < 4.5 * error).all()
    ratio = found.std(0) / expected.std(0)
    assert (np.abs(ratio - 1) < 0.35).all()
    quiet = analog(logits_fn, params, Profile(memory=memory), x)
    (without,) = jax.jit(jax.vmap(quiet.program, (None, 0)))(params, keys).units
    without = np.asarray(without)[:, 0] / float(model.layer.weight.abs().max())
    assert (np.abs(found.mean(0) - without.mean(0)) > 3 * error).any()


def test_what_is_linear() -> None:
    assert is_linear(Profile(None, WeightNoise(), PCM()))
    for part in ({"dac": DAC()}, {"out_noise": OutputNoise()}, {"adc": ADC()}):
        assert not is_linear(Profile(**part))


def test_several_chips_and_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=size).astype(np.float32) for size in ((30, 5), (8, 30)))
    profile = Profile(
        ADC(),
        None,
        PCM(compensation="global"),
        dac=DAC(6, "calibrated", 95.0),
        out_noise=OutputNoise(0.05),
    )

    def chip(images: np.ndarray = x) -> Any:
        return analog(lambda p, x: x @ p, w, profile, images)

    made = chip()
    magnitudes = np.sort(np.abs(x).ravel())
    (value,) = made.dac_ranges.values()
    assert value == pytest.approx(magnitudes[int(np.ceil(0.95 * 240)) - 1], rel=1e-6)
    keys = jax.random.split(jax.random.key(0), 3)
    several = jax.vmap(made.program, (None, 0))(w, keys)
    logits = jax.vmap(made.apply, (0, None))(several, jnp.asarray(x))
    alone = made.apply(made.program(w, keys[1]), x)
    np.testing.assert_allclose(logits[1], alone, atol=0.05 * float(jnp.abs(alone).max()))
    save_programmed(tmp_path / "chips", made, several)
    back = load_programmed(tmp_path / "chips", chip())
    again = jax.vmap(chip().apply, (0, None))(back, jnp.asarray(x))
    np.testing.assert_array_equal(again, logits)
    with pytest.raises(ValueError, match="with other"):
        load_programmed(tmp_path / "chips", chip(2 * x))


def test_dead_layers_and_black_images_are_told(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    profile = Profile(dac=DAC(range="calibrated"))
    with pytest.raises(ValueError, match=r"the DAC range 0\.0; use images on which"):
        analog(logits_fn, params, profile, np.zeros_like(IMAGES))
    dead = params | {"0.weight": jnp.zeros_like(params["0.weight"]), "0.bias": -jnp.ones(64)}
    with pytest.warns(
        UserWarning, match=r"no input other than 0 .*: layer 2.weight, 4.weight; each"
    ):
        chip = analog(logits_fn, dead, profile, IMAGES)
    logits = chip.apply(chip.program(dead, jax.random.key(0)), IMAGES[:2])
    assert np.isfinite(np.asarray(logits)).all()
