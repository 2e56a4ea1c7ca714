"""Moments of a profile's chips: against closed forms and against the chips themselves."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn.utils import parametrize, prune

from bridge import PROFILES, Profile, from_torch, program
from bridge.chips import ADC, PCM, Clipping, WeightNoise
from bridge.chips.execution.fast_tiles import propagated_variance
from bridge.chips.moments import WeightMoments, moment_state_dict, output_noise, weight_moments
from bridge.weights import twin
from jaxcurv.flips import flip_probability
from tests.bridge.weights.test_state import shallow_resnet
from tests.chips import noisy, single, small_resnet

RNG = np.random.default_rng(3)


def of_one_layer(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network linear in one layer's outputs, and the shape of its images; more than one tile."""
    if kind == "linear":
        network = nn.Sequential(nn.Flatten(), single(nn.Linear(600, 4)))
        return network.eval(), (10, 10, 6)
    network = nn.Sequential(
        single(nn.Conv2d(60, 4, 3, stride=2, padding=1)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return network.eval(), (6, 6, 60)


def source(shape: tuple[int, ...], count: int, distinct: int) -> list[Any]:
    images = RNG.normal(size=(distinct, *shape)).astype(np.float32)
    return [{"image": images[n % distinct], "label": 0, "index": n} for n in range(count)]


def margin_errors(
    network: nn.Module, profile: Profile, samples: list[Any], calibration: Any = None
) -> np.ndarray:
    """The chip's margin of the digital classes minus the digital one, float64 `[sample]`."""
    chip = program(network, profile, seed=0, calibration=calibration)
    images = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2)
    with torch.no_grad():
        digital = network(images).double()
    top = digital.topk(2).indices
    analog = chip(images, [s["index"] for s in samples]).double()
    pairs = analog.gather(1, top) - digital.gather(1, top)
    return (pairs[:, 0] - pairs[:, 1]).numpy()


# --- moments of the weights


@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
def test_frozen_noise_has_a_closed_form(kind: Any) -> None:
    sigma = 0.03
    network = single(nn.Linear(40, 30))
    profile = Profile(ADC(), WeightNoise(sigma, kind))  # the ADC plays no part in it
    (moments,) = weight_moments(network, profile).values()
    weight = network.get_parameter("layer.weight").double()
    share = (weight.abs() / weight.abs().max()) if kind == "pcm_read" else torch.ones_like(weight)
    expected = (sigma * weight.abs().max()) ** 2 * share
    assert not moments.mean.any()
    torch.testing.assert_close(moments.variance.double(), expected, rtol=1e-6, atol=0.0)


def test_moments_are_those_of_the_programmed_chips() -> None:
    """On sixty chips: the squared means in their standard errors are 1 in the mean, and so are the
    ratios of the variances; 5,000 weights."""
    network, profile = small_resnet(), PROFILES["adc+wnoise+pcm"]
    quiet, count = replace(profile, adc=None), 60
    found = weight_moments(network, profile)
    digital = network.state_dict()
    assert found.keys() == {
        name for name, tensor in digital.items() if name.endswith("weight") and tensor.ndim > 1
    }
    chips = [program(network, quiet, seed=s).executable.network.state_dict() for s in range(count)]
    squares, ratios = [], []
    for name, moments in found.items():
        deviations = torch.stack([chip[name] - digital[name] for chip in chips]).double()
        assert moments.mean.dtype == moments.variance.dtype == torch.float32
        squares.append((deviations.mean(0) - moments.mean) ** 2 / moments.variance * count)
        ratios.append(deviations.var(0) / moments.variance)
    mean_square, ratio = (torch.cat([one.flatten() for one in each]) for each in (squares, ratios))
    assert len(ratio) > 4000
    assert mean_square.mean().item() == pytest.approx(1, abs=5 * (2 / len(ratio)) ** 0.5)
    assert ratio.mean().item() == pytest.approx(1, abs=5 * (3 / count / len(ratio)) ** 0.5 + 0.01)


def test_drift_shrinks_the_mean_and_compensation_restores_it() -> None:
    network = single(nn.Linear(60, 50))
    weight = network.get_parameter("layer.weight")

    def slope(memory: PCM) -> float:
        (moments,) = weight_moments(network, Profile(memory=memory)).values()
        return float((moments.mean * weight).sum() / weight.square().sum())

    assert slope(PCM(t_inference=86400.0)) < -0.3
    assert abs(slope(PCM(t_inference=86400.0, compensation="global"))) < 0.15


def test_what_cannot_vary_has_no_variance_and_clipping_is_a_mean() -> None:
    network = single(nn.Linear(40, 30))
    weight = network.get_parameter("layer.weight")
    (ideal,) = weight_moments(network, PROFILES["ideal"]).values()
    assert float(ideal.variance.max()) == 0.0
    assert float(ideal.mean.abs().max()) < 1e-6
    (redrawn,) = weight_moments(network, noisy("constant")).values()
    assert float(redrawn.variance.max()) == 0.0  # drawn at each operation: for output_noise
    clipped = Profile(clipping=Clipping("fixed_value", fixed_value=0.5))
    (moments,) = weight_moments(network, clipped).values()
    bound = float(weight.abs().max()) / 2
    expected = weight.clamp(-bound, bound) - weight
    torch.testing.assert_close(moments.mean, expected, rtol=1e-4, atol=1e-5)
    assert float(moments.variance.max()) == 0.0


def test_layers_left_digital_have_no_moments() -> None:
    network = small_resnet()
    found = weight_moments(network, PROFILES["wnoise"], digital_layers=["conv1", "layer1"])
    assert "conv1.weight" not in found
    assert not any(name.startswith("layer1") for name in found)
    assert "fc.weight" in found


def test_moments_travel_to_flax() -> None:
    model = shallow_resnet(depths=(1, 0, 0, 0), in_channels=2)
    network = twin(model)
    moments = weight_moments(network, PROFILES["wnoise+pcm"])
    for which in ("mean", "variance"):
        carried = from_torch(moment_state_dict(moments, network.state_dict(), which), model)
        kernel = np.asarray(carried.layer1[0].conv2.kernel[...])  # HWIO
        expected = getattr(moments["layer1.0.conv2.weight"], which)
        np.testing.assert_array_equal(kernel, expected.permute(2, 3, 1, 0).numpy())
        assert np.any(kernel)
        np.testing.assert_array_equal(np.asarray(carried.bn1.scale[...]), np.zeros(4))
        np.testing.assert_array_equal(np.asarray(carried.bn1.var[...]), np.zeros(4))
        at_once = getattr(weight_moments(network, PROFILES["wnoise+pcm"], like=model), which)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(at_once), nnx.state(carried))


def test_moments_of_a_pruned_network_travel_to_flax() -> None:
    """They are those of the weights that it computes with, pruned layers left digital or not."""
    model = shallow_resnet(depths=(1, 0, 0, 0), in_channels=2)
    network, plain = twin(model), twin(model)
    for layer in (network.conv1, network.layer1[0].conv2):
        prune.l1_unstructured(layer, "weight", amount=0.5)
    for name in ("conv1", "layer1.0.conv2"):
        plain.get_submodule(name).weight.data = network.get_submodule(name).weight.detach()
    for settings in ({}, {"digital_layers": ["conv1"]}):
        found, expected = (
            weight_moments(one, PROFILES["pcm"], like=model, **settings) for one in (network, plain)
        )
        for which in ("mean", "variance"):
            states = (nnx.state(getattr(one, which)) for one in (found, expected))
            jax.tree.map(np.testing.assert_array_equal, *states)


class Random(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight)


def test_weights_left_digital_may_be_other_ones_each_time() -> None:
    network = small_resnet(width=4)
    parametrize.register_parametrization(network.conv1, "weight", Random())
    found = weight_moments(network.eval(), PROFILES["pcm"], digital_layers=["conv1"])
    assert "fc.weight" in found
    assert "conv1.weight" not in found
    with pytest.raises(ValueError, match="conv1 has a parametrization that gives other weights"):
        weight_moments(network, PROFILES["pcm"])


def test_moments_like_another_network_are_refused_before_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bridge.chips.moments.convert", lambda *_, **__: pytest.fail("converted"))
    network = twin(shallow_resnet(depths=(1, 0, 0, 0), in_channels=2))
    other = shallow_resnet(depths=(1, 0, 0, 0), in_channels=3)
    with pytest.raises(ValueError, match=r"conv1.weight has shape \(4, 2, .*not \(4, 3"):
        weight_moments(network, PROFILES["pcm"], like=other)


def test_moments_of_a_network_trained_on_since_are_refused() -> None:
    model = shallow_resnet(depths=(1, 0, 0, 0), in_channels=2, num_classes=2)
    samples = [{"image": RNG.normal(size=(8, 8, 2)).astype(np.float32), "label": 0, "index": 0}]
    moments = weight_moments(twin(model), PROFILES["wnoise"], like=model)
    flip_probability(model, samples, moments=moments)
    model.conv1.kernel[...] *= 1.1
    with pytest.raises(ValueError, match=r"of other weights: \['conv1'\]\['kernel'\].* differs"):
        flip_probability(model, samples, moments=moments)


@pytest.mark.parametrize("name", ["wnoise", pytest.param("adc+wnoise+pcm", marks=pytest.mark.long)])
def test_probabilities_are_the_flips_of_chips_that_are_run(name: str) -> None:
    """In three calls. A hundred chips, for each shifts the margins of all images alike."""
    model = shallow_resnet(depths=(1, 0, 0, 0), in_channels=2, num_classes=2)
    images = RNG.normal(size=(60, 8, 8, 2)).astype(np.float32)
    model.fc.bias[...] -= model(images).mean(0)  # margins on both sides of 0, of chips' size
    network = twin(model)
    samples = [{"image": image, "label": 0, "index": n} for n, image in enumerate(images)]
    moments = weight_moments(network, PROFILES[name], like=model)
    noise = output_noise(network, PROFILES[name], samples, calibration=images)
    table = flip_probability(model, samples, moments=moments, added_variance=noise)
    flips = []
    for seed in range(100):
        chip = program(network, PROFILES[name], seed=seed, calibration=images)
        predicted = chip(torch.from_numpy(images).permute(0, 3, 1, 2), range(60)).argmax(1)
        flips.append(predicted.numpy() != table["prediction"].to_numpy())
    share = np.mean(flips, axis=0)
    assert 0.05 < share.mean() < 0.6
    assert table["probability"].mean() == pytest.approx(share.mean(), abs=0.05)
    assert np.corrcoef(table["probability"], share)[0, 1] > 0.9


# --- noise of the outputs


@pytest.mark.parametrize("layer", ["linear", "convolution"])
@pytest.mark.parametrize("kind", ["constant", "pcm_read"])
def test_noise_of_each_operation_is_that_of_many_draws(layer: str, kind: Any) -> None:
    network, shape = of_one_layer(layer)
    samples = source(shape, 3000, distinct=3)
    table = output_noise(network, noisy(kind), samples[:3])
    assert table["index"].tolist() == [0, 1, 2]
    errors = margin_errors(network, noisy(kind), samples).reshape(1000, 3)
    ratio = errors.var(axis=0, ddof=1) / table["variance"].to_numpy()
    assert np.all(np.abs(ratio - 1) < 4.5 * (2 / 999) ** 0.5)


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_a_converter_s_noise_is_that_of_many_images(layer: str) -> None:
    network, shape = of_one_layer(layer)
    samples = source(shape, 1500, distinct=1500)
    calibration = 1.2 * np.stack([s["image"] for s in samples])  # far enough: nothing saturates
    profile = Profile(ADC(bits=8, percentile=100.0))
    table = output_noise(network, profile, samples, calibration=calibration)
    errors = margin_errors(network, profile, samples, calibration)
    assert abs(errors.mean()) < 5 * errors.std() / 1500**0.5
    ratio = errors**2 / table["variance"].to_numpy()
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / 1500**0.5)
    assert ratio.std() / 1500**0.5 < 0.05  # so that the line above can fail


def test_a_network_s_layers_add_up() -> None:
    network = small_resnet()
    samples = source((8, 8, 3), 400, distinct=1)
    profile = noisy("constant", sigma=0.002)
    table = output_noise(network, profile, samples[:1])
    errors = margin_errors(network, profile, samples)
    variance = table["variance"].to_numpy()[0]
    # Noise so small that first order holds; its sampling error is 7 %.
    assert errors.var() / variance == pytest.approx(1, abs=4 * (2 / 399) ** 0.5)
    names = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    alone = [
        output_noise(network, profile, samples[:1], digital_layers=[o for o in names if o != name])
        for name in names
    ]
    parts = sum(one["variance"].to_numpy()[0] for one in alone)
    assert parts == pytest.approx(variance, rel=1e-4)


def test_variances_of_converters_and_noise_add_up_and_batches_do_not_matter() -> None:
    network = small_resnet()
    samples = source((8, 8, 3), 5, distinct=5)
    calibration = np.stack([s["image"] for s in samples])
    settings: dict[str, Any] = {"calibration": calibration}

    def variance(profile: Profile, **changed: Any) -> np.ndarray:
        table = output_noise(network, profile, samples, **settings, **changed)
        assert table["variance"].dtype == np.float64
        return table["variance"].to_numpy()

    both = variance(noisy("constant", adc=ADC(), pcm=True))
    apart = variance(Profile(ADC())) + variance(noisy("constant"))
    np.testing.assert_allclose(both, apart, rtol=1e-4)
    smaller = variance(noisy("constant", adc=ADC(), pcm=True), batch_size=2)
    np.testing.assert_allclose(smaller, both, rtol=1e-4)


def test_images_need_no_labels() -> None:
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    labelled, alone = (
        output_noise(small_resnet(), Profile(ADC()), given, calibration=images)
        for given in ((images, np.arange(4)), images)
    )
    np.testing.assert_array_equal(alone, labelled)


def test_without_converters_and_noise_only_the_margin_is_left() -> None:
    network = small_resnet()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    samples = source((8, 8, 3), 4, distinct=4)
    table = output_noise(network, PROFILES["wnoise+pcm"], samples)
    assert table["variance"].tolist() == [0.0] * 4
    images = torch.from_numpy(np.stack([s["image"] for s in samples])).permute(0, 3, 1, 2)
    with torch.no_grad():
        top = network(images).topk(2).values
    np.testing.assert_allclose(table["margin"].to_numpy(), (top[:, 0] - top[:, 1]), rtol=1e-5)
    assert all(torch.equal(before[name], one) for name, one in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_inputs_of_zero_alone_have_no_converter_noise() -> None:
    network, shape = of_one_layer("convolution")
    chip = program(network, Profile(ADC(range=2.0)), seed=0)
    layer = chip.executable.network[0].layer
    x = torch.zeros(2, shape[2], *shape[:2])
    x[1, 0, 0, 0] = 1.0  # seen by one window of nine, and by one tile of two
    gradient = torch.ones(2, 4, 3, 3)
    nothing, something = propagated_variance(layer, x, gradient).tolist()
    assert nothing == 0.0
    step, scale = 2.0 / (2**8 - 1), float(network[0].layer.weight[:, :30].abs().max())
    assert something == pytest.approx(4 * (step * scale) ** 2 / 12, rel=0.05)


# --- refusals


def test_bad_settings_are_refused() -> None:
    network, samples = small_resnet(), source((8, 8, 3), 2, distinct=2)
    for chips in (1, True, 2.0):
        with pytest.raises(ValueError, match="chips to be an integer >= 2"):
            weight_moments(network, PROFILES["pcm"], chips=chips)  # type: ignore[arg-type]
    analog = program(network, PROFILES["ideal"], seed=0).analog
    with pytest.raises(ValueError, match="on tiles already"):
        weight_moments(analog, PROFILES["pcm"])
    with pytest.raises(ValueError, match="on tiles already"):
        output_noise(analog, PROFILES["ideal"], samples)
    with pytest.raises(ValueError, match="needs calibration images"):
        output_noise(network, PROFILES["adc"], samples)
    with pytest.raises(ValueError, match="must be at least 1, got 64 and 0"):
        output_noise(network, PROFILES["ideal"], [])
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 2"):
        output_noise(network, PROFILES["ideal"], samples, batch_size=0)
    nan = [samples[0], samples[1] | {"image": samples[1]["image"] * np.nan}]
    with pytest.raises(ValueError, match="the margin is not finite, first for image 1"):
        output_noise(network, PROFILES["ideal"], nan)
    calibration = np.stack([s["image"] for s in samples])
    far = [samples[0] | {"image": 255 * samples[0]["image"]}]
    with pytest.raises(ValueError, match="normalise both as the model expects"):
        output_noise(network, PROFILES["adc"], far, calibration=calibration)


def test_moments_of_another_model_are_refused() -> None:
    state = {"fc.weight": torch.zeros(3, 4), "fc.bias": torch.zeros(3)}
    one = WeightMoments(torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"fc.weight \(3, 5\) do not fit .* has \(3, 4\)"):
        moment_state_dict({"fc.weight": one}, state, "mean")
    with pytest.raises(ValueError, match="has no such weight"):
        moment_state_dict({"conv.weight": one}, state, "mean")
    with pytest.raises(ValueError, match="which is mean or variance, got 'sd'"):
        moment_state_dict({}, state, "sd")  # type: ignore[arg-type]
