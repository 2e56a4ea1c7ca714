"""A chip in JAX is the one that `bridge.program` makes of the same network with AIHWKit."""

from dataclasses import replace
from typing import Any

import aihwkit.inference.noise.pcm
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

import bridge
from bridge.chips import ADC, PCM, Clipping, OutputNoise, Profile, WeightNoise
from bridge.chips.tiles import named_layers
from bridge.jax_chips import Chip, analog, carried
from bridge.jax_chips.devices import drifting
from jaxcurv import input_curvature
from tests import torch_networks as networks

IMAGES = np.random.default_rng(0).normal(size=(24, 9, 9, 3)).astype(np.float32)
LONG = pytest.mark.long


def torch_network() -> nn.Module:
    """Layers of one tile, of several rows and columns of tiles, with strides and dilation; a tile's
    border lies within a channel (570 inputs, 9 taps)."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 20, (3, 3), stride=2, padding=(1, 2), bias=False), nn.ReLU()),
        *(nn.Conv2d(20, 66, 2, dilation=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(66, 530), nn.ReLU()),
        nn.Linear(530, 10),
    ).eval()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return torch_network()


@pytest.fixture(scope="module")
def in_jax(network: nn.Module) -> tuple[Any, Any]:
    return bridge.to_jax(network, IMAGES)


def torch_logits(chip: Any, images: np.ndarray = IMAGES) -> np.ndarray:
    found: torch.Tensor = chip(torch.tensor(images).permute(0, 3, 1, 2), range(len(images)))
    return found.numpy()


def test_ideal_chips_compute_what_the_function_does(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, bridge.PROFILES["ideal"], IMAGES)
    weights = chip.program(params, jax.random.key(0))
    assert jax.tree.structure(weights.params) == jax.tree.structure(params)
    digital = logits_fn(params, IMAGES)
    np.testing.assert_allclose(chip.apply(weights, IMAGES), digital, rtol=1e-5, atol=1e-6)
    for name, target in params.items():
        np.testing.assert_allclose(weights.params[name], target, rtol=1e-6, atol=1e-9)


def test_coverage_is_that_of_torch(network: nn.Module, in_jax: tuple[Any, Any]) -> None:
    chip = analog(*in_jax, bridge.PROFILES["ideal"], IMAGES)
    expected = bridge.coverage(network, IMAGES)
    assert chip.coverage["weights"].tolist() == expected["weights"].tolist()
    for column in ("macs", "tiles", "place"):
        assert chip.coverage[column].tolist() == expected[column].tolist()


@pytest.mark.parametrize(
    "adc",
    [ADC(), ADC(6, percentile=99.0), ADC(7, range=9.5)],
    ids=["largest", "percentile", "fixed"],
)
def test_converters_are_those_of_torch(
    network: nn.Module, in_jax: tuple[Any, Any], adc: ADC
) -> None:
    chip = bridge.program(network, Profile(adc=adc), seed=0, calibration=IMAGES)
    made = analog(*in_jax, Profile(adc=adc), IMAGES)
    bounds = [bound for bounds in made.adc_ranges.values() for bound in bounds]
    np.testing.assert_allclose(bounds, list(chip.out_bounds.values()), rtol=2e-6)
    assert made.layers == tuple(f"{name}.weight" for name in named_layers(chip.analog))
    expected = torch_logits(chip)
    found = np.asarray(made.apply(made.program(in_jax[1], jax.random.key(0)), IMAGES))
    digital = np.asarray(in_jax[0](in_jax[1], IMAGES))
    rounding = np.abs(expected - digital).std()
    # Rounding of floats moves a few outputs by a code.
    assert np.abs(found - expected).std() < 0.35 * rounding
    assert np.median(np.abs(found - expected)) < 0.1 * rounding


def test_single_outputs_are_within_a_code() -> None:
    """One tile with many outputs: no earlier code moves them."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(40, 200)).eval()
    x = np.random.default_rng(0).normal(size=(200, 40)).astype(np.float32)
    chip = bridge.program(layer, Profile(adc=ADC(8)), seed=0, calibration=x)
    logits_fn, params = bridge.to_jax(layer, x)
    made = analog(logits_fn, params, Profile(adc=ADC(8)), x)
    found = np.asarray(made.apply(made.program(params, jax.random.key(0)), x))
    expected = chip(torch.tensor(x), range(200)).numpy()
    largest = float(layer[0].weight.detach().abs().max())
    step = next(iter(chip.out_bounds.values())) / 127 * largest * np.abs(x).max(1, keepdims=True)
    difference = np.abs(found - expected) / step
    assert difference.max() < 1.01
    assert (difference > 1e-3).mean() < 1e-3


COMPENSATED = Profile(ADC(), None, PCM(t_inference=3600.0, compensation="per_column"))


@pytest.mark.parametrize(
    "profile", [bridge.PROFILES["wnoise+pcm"], bridge.PROFILES["adc+pcm"], COMPENSATED], ids=repr
)
def test_carried_chips_give_the_logits_of_aihwkits(network: nn.Module, profile: Profile) -> None:
    chip = bridge.program(network, profile, seed=1, calibration=IMAGES)
    made, weights = carried(chip, IMAGES)
    found = np.asarray(made.apply(weights, IMAGES))
    expected = torch_logits(chip)
    tolerance = 1e-5 if profile.adc is None else 2e-2
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize(
    "compensation",
    [None, "global", *(pytest.param(one, marks=LONG) for one in ("global_exact", "per_column"))],
)
@pytest.mark.parametrize("adc", [None, ADC()], ids=["", "adc"])
def test_equal_draws_give_the_tiles_of_aihwkit(
    network: nn.Module,
    in_jax: tuple[Any, Any],
    adc: ADC | None,
    compensation: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With every draw 0.3 in both: scaling, splitting, programming, drift and compensation."""
    memory = PCM(t_inference=3600.0, compensation=compensation)
    profile = Profile(adc, None, memory, Clipping("layer_gaussian", 2.0))
    monkeypatch.setattr(
        aihwkit.inference.noise.pcm, "randn_like", lambda x: torch.full_like(x, 0.3)
    )
    chip = bridge.program(network, profile, seed=0, calibration=IMAGES)
    made = analog(*in_jax, profile, IMAGES)
    expected = carried(chip, IMAGES)[1]
    monkeypatch.setattr(drifting, "normal", lambda key, shape: jnp.full(shape, 0.3))
    found = made.program(in_jax[1], jax.random.key(0))
    # A reading through converters may be a code away.
    tolerance = {"rtol": 1e-4 if adc is None else 2e-3, "atol": 1e-6}
    for one, other in zip(found.units, expected.units, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)
    for name, weight in expected.params.items():
        np.testing.assert_allclose(found.params[name], weight, **tolerance)


@pytest.mark.parametrize(
    "clipping", [Clipping("layer_gaussian", 1.5), Clipping("fixed_value", fixed_value=0.4)]
)
def test_clipping_is_torchs(
    network: nn.Module, in_jax: tuple[Any, Any], clipping: Clipping
) -> None:
    profile = Profile(clipping=clipping)
    made = analog(*in_jax, profile, IMAGES)
    expected = carried(bridge.program(network, profile, seed=0), IMAGES)[1]
    found = made.program(in_jax[1], jax.random.key(0))
    for name, weight in expected.params.items():
        np.testing.assert_allclose(found.params[name], weight, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
def test_frozen_noise_has_its_level(in_jax: tuple[Any, Any], kind: Any) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(wnoise=WeightNoise(0.05, kind)), IMAGES)
    program = jax.jit(chip.program)
    one, two = (program(params, jax.random.key(seed)) for seed in (0, 1))
    for name in chip.layers:
        target = np.asarray(params[name])
        noise = np.asarray(one.params[name]) - target
        largest = np.abs(target).max()
        level = 0.05 * (largest if kind == "constant" else np.sqrt(largest * np.abs(target)))
        if target.size > 5000:  # of several tiles, each with a largest weight of its own
            assert (noise / level).std() == pytest.approx(1.0, rel=0.1)
        assert abs(np.corrcoef(noise.ravel(), (two.params[name] - target).ravel())[0, 1]) < 0.1
    again = program(params, jax.random.key(0))
    assert all(map(np.array_equal, jax.tree.leaves(one.params), jax.tree.leaves(again.params)))


@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
@pytest.mark.parametrize("adc", [None, ADC(12, range=30.0)], ids=["", "adc"])
def test_noise_of_operations_has_the_closed_form(adc: ADC | None, kind: Any) -> None:
    """Over 2,000 samples, a layer of two columns of tiles, and a convolution."""
    rng = np.random.default_rng(0)
    profile = Profile(adc, WeightNoise(0.1, kind, "per_mvm"))
    w = rng.normal(size=(600, 5)).astype(np.float32)
    x = rng.normal(size=(1, 600)).astype(np.float32)
    chip = analog(lambda p, x: x @ p["w"], {"w": w}, profile, x)
    weights = chip.program({"w": w}, jax.random.key(0))
    logits = np.asarray(chip.apply(weights, np.repeat(x, 2000, 0)))
    variance = 0.0
    for part in (slice(0, 300), slice(300, 600)):
        largest = np.abs(w[part]).max()
        each = largest**2 if kind == "constant" else largest * np.abs(w[part])
        variance = variance + 0.01 * (x[0, part, None] ** 2 * each).sum(0)
    np.testing.assert_allclose(logits.std(0), np.sqrt(variance) * np.ones(5), rtol=0.08)
    np.testing.assert_allclose(logits.mean(0), (x @ w)[0], atol=5 * np.sqrt(variance).max() / 45)
    # A sample's noise is its number's, in any batch; another chip's is another.
    few = np.asarray(chip.apply(weights, np.repeat(x, 2, 0), indices=jnp.array([7, 1000])))
    np.testing.assert_allclose(few, logits[[7, 1000]], rtol=1e-4, atol=2e-3)
    other = chip.program({"w": w}, jax.random.key(1))
    assert np.abs(chip.apply(other, x) - logits[:1]).max() > 0.1


def test_noise_of_operations_in_convolutions() -> None:
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 2, 150, 3)).astype(np.float32)  # 600 inputs: two columns of tiles
    x = rng.normal(size=(1, 3, 3, 150)).astype(np.float32)

    def convolution(params: Any, x: Any) -> Any:
        y = jax.lax.conv_general_dilated(
            x, params, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(len(x), -1)

    chip = analog(convolution, w, Profile(wnoise=WeightNoise(0.1, "constant", "per_mvm")), x)
    logits = np.asarray(chip.apply(chip.program(w, jax.random.key(0)), np.repeat(x, 2000, 0)))
    variance = np.zeros((2, 2))
    for part in (slice(0, 75), slice(75, 150)):
        patches = np.stack(
            [x[0, i : i + 2, j : j + 2, part] for i in (0, 1) for j in (0, 1)]
        ).reshape(2, 2, -1)
        variance += 0.01 * np.abs(w[:, :, part]).max() ** 2 * np.square(patches).sum(-1)
    expected = np.repeat(np.sqrt(variance).ravel(), 3)
    np.testing.assert_allclose(logits.std(0), expected, rtol=0.08)


def test_tiles_layers_calls_and_times_have_draws_of_their_own() -> None:
    """What is alike in two places would add up in place of averaging out."""
    target = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
    params = {"a": target, "b": target[:512].copy()}

    def function(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["a"]) @ params["b"] @ params["b"]

    x = np.ones((1, 1024), np.float32)
    profile = Profile(memory=PCM(drift=0.0), wnoise=WeightNoise(0.05))
    chip = analog(function, params, profile, x)
    now, later, other = (
        one.program(params, jax.random.key(seed)).params
        for one, seed in ((chip, 0), (chip.at(7200.0), 0), (chip, 1))
    )

    def noise(one: Any, name: str, rows: slice) -> np.ndarray:
        deviation = np.asarray(one[name])[rows] - params[name][rows]
        return np.asarray((deviation / (1 + np.abs(params[name][rows]))).ravel())

    upper, lower, whole = slice(0, 512), slice(512, 1024), slice(None)
    assert abs(np.corrcoef(noise(now, "a", upper), noise(now, "a", lower))[0, 1]) < 0.02
    assert abs(np.corrcoef(noise(now, "a", upper), noise(now, "b", whole))[0, 1]) < 0.05
    assert abs(np.corrcoef(noise(now, "a", whole), noise(other, "a", whole))[0, 1]) < 0.05
    # The same devices at two times: their programming is common to both, their readings are not.
    common = np.corrcoef(noise(now, "a", whole), noise(later, "a", whole))[0, 1]
    assert 0.3 < common < 0.99
    noisy = Profile(wnoise=WeightNoise(0.05, drawn="per_mvm"))
    twice = analog(lambda p, x: x @ p - x @ p, target, noisy, x)
    difference = twice.apply(twice.program(target, jax.random.key(0)), x)
    expected = (
        np.sqrt(2)
        * 0.05
        * np.sqrt(sum(512 * np.abs(target[rows]).max() ** 2 for rows in (upper, lower)))
    )
    assert np.asarray(difference).std() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_chip_does_not_depend_on_those_beside_it(impl: str) -> None:
    w = np.random.default_rng(0).normal(size=(20, 10)).astype(np.float32)
    chip = analog(
        lambda p, x: x @ p, w, bridge.PROFILES["wnoise+pcm"], np.ones((1, 20), np.float32)
    )
    keys = jax.random.split(jax.random.key(0, impl=impl), 3)
    several = jax.vmap(chip.program, (None, 0))(w, keys)
    for number, key in enumerate(keys):
        np.testing.assert_allclose(several.params[number], chip.program(w, key).params, rtol=1e-5)


@pytest.mark.long
def test_a_hundred_chips_in_one_program(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, bridge.PROFILES["adc+wnoise+pcm"], IMAGES)
    keys = jax.random.split(jax.random.key(0), 5)
    chips = jax.jit(jax.vmap(chip.program, (None, 0)))(params, keys)
    logits = jax.vmap(chip.apply, (0, None))(chips, jnp.asarray(IMAGES[:4]))
    assert logits.shape == (5, 4, 10)
    alone = chip.apply(chip.program(params, keys[3]), IMAGES[:4])
    np.testing.assert_allclose(logits[3], alone, atol=0.02 * float(jnp.abs(alone).max()))


def test_the_same_devices_at_another_time(in_jax: tuple[Any, Any]) -> None:
    """Without noise of reading and programming what is left is drift, each device by its own
    exponent."""
    logits_fn, params = in_jax
    memory = PCM(programming_noise=0.0, read_noise=0.0, t_inference=0.0)
    chip = analog(logits_fn, params, Profile(memory=memory), IMAGES)
    name = chip.layers[0]
    first, hour, day = (
        np.abs(chip.at(t).program(params, jax.random.key(0)).params[name])
        for t in (0.0, 3600.0, 86400.0)
    )
    there = first > 1e-3
    exponents = [
        -np.log(later / first)[there] / np.log((t + 20) / 20)
        for later, t in ((hour, 3600.0), (day, 86400.0))
    ]
    np.testing.assert_allclose(*exponents, rtol=1e-3, atol=1e-4)
    assert exponents[0].std() > 0.005
    with pytest.raises(ValueError, match="profile adc has no memory"):
        analog(logits_fn, params, bridge.PROFILES["adc"], IMAGES).at(1.0)


def test_gradients_reach_the_targets_through_a_programmed_chip() -> None:
    """Finite differences, where nothing rounds; with a converter the straight-through rule."""
    rng = np.random.default_rng(0)
    a, b, x = (rng.normal(size=size).astype(np.float32) for size in ((6, 5), (5, 3), (4, 6)))
    params = {"a": a, "b": b}

    def function(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["a"]) @ params["b"]

    def loss(chip: Chip, params: Any) -> jax.Array:
        return jnp.square(chip.apply(chip.program(params, jax.random.key(0)), x)).sum()

    profile = Profile(wnoise=WeightNoise(0.05, drawn="per_mvm"), memory=PCM(compensation="global"))
    chip = analog(function, params, profile, x)
    found = jax.grad(lambda p: loss(chip, p))(params)
    for name, (i, j) in (("a", (1, 2)), ("b", (4, 0)), ("b", (2, 1))):
        around = []
        for step in (2e-3, -2e-3):
            moved = params[name].copy()
            moved[i, j] += step
            around.append(float(loss(chip, params | {name: moved})))
        expected = (around[0] - around[1]) / 4e-3
        assert float(found[name][i, j]) == pytest.approx(expected, rel=0.03, abs=0.05)
    fine = analog(function, params, replace(profile, adc=ADC(20, range=50.0)), x)
    rounded = jax.grad(lambda p: loss(fine, p))(params)
    np.testing.assert_allclose(rounded["a"], found["a"], rtol=0.02, atol=0.05)


def test_gradients_reach_images_through_converters_of_convolutions(
    in_jax: tuple[Any, Any],
) -> None:
    """Codes so fine that what a difference sees is the function, and the inputs' unit cancels."""
    logits_fn, params = in_jax
    chip = analog(logits_fn, params, Profile(adc=ADC(23, range=60.0)), IMAGES[:2])
    weights = chip.program(params, jax.random.key(0))
    image = jnp.asarray(IMAGES[:1])
    found = jax.grad(lambda x: jnp.square(chip.apply(weights, x)).sum())(image)
    expected = jax.grad(lambda x: jnp.square(logits_fn(params, x)).sum())(image)
    np.testing.assert_allclose(found, expected, atol=0.02 * float(jnp.abs(expected).max()))


def test_a_chip_is_a_model_like_any_other(in_jax: tuple[Any, Any]) -> None:
    chip = analog(*in_jax, bridge.PROFILES["pcm"], IMAGES)
    weights = chip.program(in_jax[1], jax.random.key(0))
    labels = np.arange(4) % 10
    found = input_curvature(chip.apply, IMAGES[:4], labels, params=weights)
    expected = input_curvature(in_jax[0], IMAGES[:4], labels, params=weights.params)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*grouped.*digital:UserWarning")
def test_carried_chips_keep_digital_layers_digital() -> None:
    module, shape = networks.made("MobileNetV2")
    x = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    x = x.transpose(0, 2, 3, 1)
    chip = bridge.program(module, bridge.PROFILES["pcm"], seed=0)
    made, weights = carried(chip, x)
    assert made.layers == tuple(f"{name}.weight" for name in named_layers(chip.analog))
    found = np.asarray(made.apply(weights, x))
    expected = torch_logits(chip, x)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
    with pytest.raises(ValueError, match="chip of an RPUConfig cannot be carried"):
        carried(replace(chip, profile=None), x)


def test_pruned_layers_and_black_images_are_told(in_jax: tuple[Any, Any]) -> None:
    logits_fn, params = in_jax
    pruned = params | {"4.weight": jnp.zeros_like(params["4.weight"])}
    with pytest.warns(UserWarning, match=r"no output other than 0 .*: tile 0 of 4.weight; each"):
        chip = analog(logits_fn, pruned, bridge.PROFILES["adc+pcm"], IMAGES)
    logits = chip.apply(chip.program(pruned, jax.random.key(0)), IMAGES[:2])
    assert np.isfinite(np.asarray(logits)).all()
    with pytest.raises(ValueError, match="finite and active"):
        analog(logits_fn, params, bridge.PROFILES["adc"], np.zeros_like(IMAGES))


@pytest.mark.parametrize("adc", [None, ADC(8, range=4.0)])
def test_a_layer_of_zeros_has_no_noise_of_operations(adc: ADC | None) -> None:
    """Noise is a fraction of the largest weight; AIHWKit's too."""
    images = IMAGES[:, 0, 0]
    noise = WeightNoise(0.3, drawn="per_mvm")
    profile = Profile(adc, noise, out_noise=OutputNoise(0.1))
    params = {"zero": jnp.zeros((3, 4)), "bias": jnp.arange(4.0)}
    chip = analog(lambda p, x: x @ p["zero"] + p["bias"], params, profile, images)
    found = chip.apply(chip.program(params, jax.random.key(0)), images)
    np.testing.assert_array_equal(found, np.tile(np.arange(4.0), (len(images), 1)))
    layer = nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(4.0))
    expected = bridge.program(layer.eval(), profile, seed=0)
    logits = expected(torch.tensor(images), range(len(images)))
    np.testing.assert_array_equal(found, logits.numpy())
