"""Analog chips against closed forms, and the promises that profiles of one seed share a chip."""

import math
import pickle
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from torch import nn

from bridge import PROFILES, Profile, predict, program
from bridge.chips import (
    ADC,
    PCM,
    Chip,
    Clipping,
    OutputNoise,
    ReRamCMO,
    WeightNoise,
    clipped_share,
    eight_profiles,
    named_profiles,
)
from bridge.chips.configuration import rpu_config
from bridge.chips.tiles import named_tiles
from bridge.weights import resnet18, resnet50
from bridge.weights.resnet import BasicBlock, ResNet

IDEAL = PROFILES["ideal"]
CLIP = Clipping("layer_gaussian", 2.0)
QUIET = PCM(programming_noise=0.0, read_noise=0.0)
IMAGES = np.random.default_rng(0).normal(size=(24, 8, 8, 3)).astype(np.float32)
CALIBRATION = torch.tensor(IMAGES.transpose(0, 3, 1, 2))


def linear(inputs: int, outputs: int) -> nn.Module:
    """One linear layer on images of `inputs` pixels."""
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(OrderedDict(flatten=nn.Flatten(), fc=nn.Linear(inputs, outputs)))
    model.fc.weight.data = torch.randn(outputs, inputs, generator=generator)
    model.fc.bias.data = torch.randn(outputs, generator=generator)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = ResNet(BasicBlock, (1, 1, 0, 0), 5, "cifar", width=4, in_channels=3)
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def make(model: nn.Module, profile: Profile, seed: int = 0, **settings: Any) -> Chip:
    return program(model, profile, seed=seed, calibration=CALIBRATION, **settings)


def source(images: np.ndarray, first: int = 0) -> list[dict[str, Any]]:
    """Samples with labels 0 to 3 and indices from `first` on."""
    return [{"image": x, "label": n % 4, "index": first + n} for n, x in enumerate(images)]


def logits(chip: Chip | nn.Module, batch_size: int = 24, images: np.ndarray = IMAGES) -> np.ndarray:
    return np.stack(predict(chip, source(images), batch_size=batch_size)["logits"].to_numpy())


def tiles(chip: Chip) -> dict[str, TorchInferenceTile]:
    return named_tiles(chip.analog)


def weights(chip: Chip) -> dict[str, torch.Tensor]:
    """The normalised weights on each tile."""
    return {name: tile.tile.get_weights() for name, tile in tiles(chip).items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


# Profiles


def test_there_are_eight_profiles() -> None:
    names = "ideal adc wnoise pcm adc+wnoise adc+pcm wnoise+pcm adc+wnoise+pcm"
    assert list(eight_profiles()) == names.split()
    assert all(profile.name == name for name, profile in eight_profiles().items())
    assert PROFILES["adc+pcm"] == Profile(adc=ADC(), memory=PCM())
    still = [name for name, profile in PROFILES.items() if profile.draws_nothing]
    assert still == ["ideal", "adc", "adc_coarse"]
    assert not Profile(out_noise=OutputNoise()).draws_nothing


def test_four_more_change_what_the_paper_leaves_open() -> None:
    more = {name: one for name, one in PROFILES.items() if name not in eight_profiles()}
    compensated = PCM(compensation="global")
    assert more == {
        "adc_coarse": Profile(adc=ADC(bits=5)),
        "wnoise_mvm": Profile(wnoise=WeightNoise(drawn="per_mvm")),
        "pcm_gdc": Profile(memory=compensated),
        "adc+wnoise+pcm_gdc": Profile(ADC(), WeightNoise(), compensated),
    }
    own = named_profiles(
        ADC(bits=8, range=2.0), WeightNoise(0.1), PCM(t_inference=9.0), CLIP, coarse_bits=3
    )
    assert list(own) == list(PROFILES)
    assert own["adc_coarse"] == Profile(adc=ADC(bits=3, range=2.0), clipping=CLIP)
    assert own["wnoise_mvm"].wnoise == WeightNoise(0.1, drawn="per_mvm")
    later = PCM(t_inference=9.0, compensation="global")
    assert own["pcm_gdc"] == Profile(memory=later, clipping=CLIP)
    assert own["adc+wnoise+pcm_gdc"] == replace(own["adc+wnoise+pcm"], memory=later)
    with pytest.raises(ValueError, match="ADC bits must be an integer from 2 to 23, got 1"):
        named_profiles(coarse_bits=1)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pcm gdc", "pcm_gdc"),
        ("ADC, wnoise, pcm_gdc", "adc+wnoise+pcm_gdc"),
        ("pcm+adc", "adc+pcm"),
        ("PCM + wnoise,ADC", "adc+wnoise+pcm"),
        ("adc_pcm", "adc+pcm"),
        ("Ideal", "ideal"),
        ("noise+pcm", "wnoise+pcm"),
        ("adc+wnose+pcm", "adc+wnoise+pcm"),
        ("wnoise+acd", "adc+wnoise"),
        ("full", None),
        ("", None),
        (8, None),
        (None, None),
        (Profile(), None),
    ],
)
def test_an_unknown_profile_is_told_with_the_nearest(name: Any, meant: str | None) -> None:
    for kind in (KeyError, ValueError):
        with pytest.raises(kind) as told:
            PROFILES[name]
        message = str(told.value)
        assert message.startswith(f"no profile is named {name!r}")
        assert all(one in message for one in PROFILES)
        assert ("did you mean" in message) == (meant is not None)
        assert meant is None or f" (did you mean {meant!r}?): there are" in message


def test_profiles_are_a_dict() -> None:
    assert isinstance(PROFILES, dict)
    assert PROFILES.get("pcm+adc") is None
    assert "pcm+adc" not in PROFILES
    assert dict(**PROFILES) == PROFILES == pickle.loads(pickle.dumps(PROFILES))
    assert (PROFILES | {"own": Profile()})["own"] == Profile()
    own = eight_profiles(memory=ReRamCMO())
    with pytest.raises(ValueError, match=r"did you mean 'adc\+wnoise\+reram_cmo'\?\): there are"):
        own["reram_cmo+wnoise+adc"]


def test_profiles_take_settings_and_clip_all_alike() -> None:
    chosen = eight_profiles(ADC(bits=6), WeightNoise(0.1), PCM(t_inference=0.0), CLIP)
    assert chosen["ideal"] == Profile(clipping=CLIP)
    assert chosen["adc+wnoise"] == Profile(ADC(bits=6), WeightNoise(0.1), clipping=CLIP)


@pytest.mark.parametrize(
    ("make_setting", "message"),
    [
        (lambda: ADC(bits=1), "bits"),
        (lambda: ADC(percentile=101.0), "percentile"),
        (lambda: WeightNoise(kind="white"), "constant or pcm_read"),
        (lambda: WeightNoise(drawn="once"), "per_chip or per_mvm"),
        (lambda: Clipping("channel"), "none, layer_gaussian or fixed_value"),
        (lambda: Profile(PCM()), "adc must be a ADC, got PCM"),
        (lambda: Profile(memory="pcm"), "memory must be a PCM or Hermes"),
        (lambda: ADC(bits=9.0), "bits"),
        (lambda: ADC(range=0.0), "range"),
        (lambda: ADC(range=math.nan), "range"),
        (lambda: ADC(range="auto"), "range"),
        (lambda: WeightNoise(-0.1), "sigma"),
        (lambda: WeightNoise(math.inf), "sigma"),
        (lambda: PCM(g_max=0.0), "g_max"),
        (lambda: PCM(t_inference=-1.0), "t_inference"),
        (lambda: PCM(read_noise=math.nan), "read_noise"),
        (lambda: Clipping(sigma=0.0), "clipping sigma"),
    ],
)
def test_bad_settings_are_refused(make_setting, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_setting()


def test_configuration_is_ideal_where_the_profile_says_nothing() -> None:
    config = rpu_config(IDEAL)
    assert config.forward.is_perfect
    assert config.drift_compensation is None
    config = rpu_config(Profile(adc=ADC(bits=9, range=12.0)))
    assert not config.forward.is_perfect
    assert config.forward.out_res == pytest.approx(1 / 510)
    assert (config.forward.inp_res, config.forward.out_noise) == (-1.0, 0.0)


# Ideal, and the two ways to run a chip


@pytest.mark.parametrize("resnet", [resnet18, resnet50])
def test_ideal_is_digital(resnet) -> None:
    network = resnet(num_classes=5, stem="cifar", width=4).eval()
    chip, expected = make(network, IDEAL), logits(network)
    assert relative_error(logits(chip), expected) < 1e-4
    assert relative_error(logits(chip.on("aihwkit")), expected) < 1e-4
    assert chip.t_inference is None
    analog_layers = {name.split(".analog_module")[0] for name in tiles(chip)}
    layers = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert analog_layers == layers


@pytest.mark.parametrize("name", ["ideal", "wnoise", "pcm", "wnoise+pcm"])
def test_without_adc_the_executable_equals_the_tiles(network: nn.Module, name: str) -> None:
    chip = make(network, PROFILES[name])
    assert not any(isinstance(m, TorchInferenceTile) for m in chip.executable.modules())
    assert relative_error(logits(chip), logits(chip.on("aihwkit"))) < 1e-5


def test_layers_larger_than_a_tile() -> None:
    model = linear(1100, 4)
    images = np.random.default_rng(2).normal(size=(5, 10, 110, 1)).astype(np.float32)
    chip = program(model, IDEAL, seed=0)
    assert len(tiles(chip)) == 3
    expected = logits(model, images=images)
    for one in (chip, chip.on("aihwkit")):
        assert relative_error(logits(one, images=images), expected) < 1e-5


# ADC


@pytest.mark.parametrize(("bits", "adc_range"), [(9, "calibrated"), (5, "calibrated"), (6, 0.4)])
def test_adc_quantises_and_saturates(bits: int, adc_range: str | float) -> None:
    model, levels = linear(192, 60), 2 ** (bits - 1) - 1
    chip = program(model, Profile(adc=ADC(bits, adc_range)), seed=0, calibration=CALIBRATION)
    x = CALIBRATION.flatten(1).double()
    weight, bias = model.fc.weight.double(), model.fc.bias.double()
    unit = weight.abs().max() * x.abs().amax(1, keepdim=True)
    exact = x @ weight.T / unit  # normalised tile output

    (bound,) = chip.out_bounds.values()
    if adc_range == "calibrated":
        assert bound == pytest.approx(exact.abs().max().item(), rel=1e-6)
    else:
        assert bound == adc_range
        assert exact.abs().max() > bound
    (share,) = clipped_share(chip, CALIBRATION).values()
    assert share == pytest.approx((exact.abs() > bound).double().mean().item(), abs=1e-3)

    step = bound / levels
    actual = (torch.tensor(logits(chip)).double() - bias) / unit
    codes = actual / step
    assert (codes - codes.round()).abs().max() < 1e-2
    assert 2 * levels // 3 < codes.round().unique().numel() <= 2**bits - 1
    assert codes.abs().max() < levels + 1e-2
    inside = exact.abs() <= bound
    assert (actual - exact)[inside].abs().max() <= step * 0.501
    assert (actual[~inside].abs() - bound).abs().lt(1e-5 * bound).all()


def test_more_bits_are_closer(network: nn.Module) -> None:
    expected = logits(network)
    errors = [
        relative_error(logits(make(network, Profile(adc=ADC(bits)))), expected)
        for bits in (5, 7, 9)
    ]
    assert errors[0] > errors[1] > errors[2] > 1e-4
    assert errors[2] < 0.1


def test_uncalibrated_range_is_not_silent() -> None:
    assert math.isnan(rpu_config(PROFILES["adc"]).forward.out_bound)


@pytest.mark.parametrize("name", ["adc", "pcm", "adc+wnoise+pcm"])
def test_batch_size_does_not_matter(network: nn.Module, name: str) -> None:
    # Quantised values at a rounding edge may fall either way: quantised logits differ by a step.
    chip = make(network, PROFILES[name])
    whole, parts = logits(chip, 24), logits(chip, 7)
    tolerance = 1e-5 if name == "pcm" else 1e-2
    assert relative_error(parts, whole) < tolerance


# Weight noise


def test_weight_noise_is_relative_to_each_tile_s_largest_weight() -> None:
    model = linear(1000, 200)
    model.fc.weight.data[:, 500:] *= 10
    chip = program(model, Profile(wnoise=WeightNoise(0.02)), seed=3)
    noise = chip.executable.network.fc.weight - model.fc.weight
    for half in (slice(0, 500), slice(500, 1000)):
        z = noise[:, half] / (0.02 * model.fc.weight[:, half].abs().max())
        assert abs(z.mean()) < 4 / math.sqrt(z.numel())
        assert abs(z.std() - 1) < 4 / math.sqrt(2 * z.numel())
    assert torch.equal(chip.executable.network.fc.bias, model.fc.bias)


def test_no_weight_noise_at_sigma_zero(network: nn.Module) -> None:
    chip = make(network, Profile(wnoise=WeightNoise(0.0)))
    assert same(weights(chip), weights(make(network, IDEAL)))


# PCM


def test_programming_noise_follows_the_polynomial() -> None:
    levels = torch.tensor([0.3, 0.6, 1.0])
    model = linear(500, 300)
    model.fc.weight.data = levels.repeat(100)[:, None].expand(300, 500).contiguous()
    chip = program(model, Profile(memory=PCM()), seed=0)
    (tile,) = tiles(chip).values()
    error = (tile.programmed_weights - model.fc.weight) * 25.0  # microsiemens
    empty = 0.26348  # spread of the pair's other device, at zero; what falls below zero is cut
    for row, level in enumerate(levels):
        spread = 0.26348 + 1.9650 * level - 1.1731 * level**2
        expected = torch.sqrt(spread**2 + empty**2 * (0.5 - 0.5 / math.pi))
        sample = error[row::3]
        assert sample.std().item() == pytest.approx(expected.item(), rel=0.02)
        assert sample.mean().item() == pytest.approx(-empty / math.sqrt(2 * math.pi), abs=0.03)


def test_drift_follows_the_power_law() -> None:
    model = linear(192, 30)
    chip = program(model, Profile(memory=QUIET), seed=0)
    (tile,) = tiles(chip).values()
    plus, minus = tile.drift_noise_parameters
    target = tile.reference_combined_weights
    exponent = torch.where(target > 0, plus, minus)
    assert 0.02 < exponent.mean() < 0.12
    for t in (0.0, 100.0, 1e6):
        (later,) = weights(chip.at(t)).values()
        torch.testing.assert_close(later, target * ((t + 20) / 20) ** -exponent)


def test_the_same_chip_later(network: nn.Module) -> None:
    chip = make(network, PROFILES["wnoise+pcm"])
    before = weights(chip)
    later = chip.at(3600.0)
    assert (later.t_inference, chip.t_inference) == (3600.0, 20.0)
    assert same(weights(later), weights(chip.at(3600.0)))
    assert same(weights(later.at(20)), before)
    assert same(weights(chip), before)
    assert not same(weights(later), before)
    programmed, later_programmed = tiles(chip), tiles(later)
    for name, tile in programmed.items():
        assert torch.equal(tile.programmed_weights, later_programmed[name].programmed_weights)
    profile = Profile(wnoise=WeightNoise(), memory=PCM(t_inference=3600.0))
    assert same(weights(later), weights(make(network, profile)))
    assert relative_error(logits(later), logits(chip)) > 1e-2


# Seeds and sharing


def test_profiles_of_a_seed_share_the_programmed_chip(network: nn.Module) -> None:
    chips = {name: make(network, profile) for name, profile in PROFILES.items()}
    programmed = {
        name: {k: tile.programmed_weights for k, tile in tiles(chip).items()}
        for name, chip in chips.items()
        if chip.profile.memory is not None
    }
    assert len(programmed) == 6
    assert all(same(one, programmed["pcm"]) for one in programmed.values())
    assert same(weights(chips["adc+pcm"]), weights(chips["pcm"]))
    assert same(weights(chips["adc+wnoise"]), weights(chips["wnoise"]))
    for name, ideal in weights(chips["ideal"]).items():
        noise = weights(chips["wnoise"])[name] - ideal
        on_top = weights(chips["wnoise+pcm"])[name] - weights(chips["pcm"])[name]
        torch.testing.assert_close(on_top, noise, atol=1e-6, rtol=0)
    bounds = [dict(chip.out_bounds) for chip in chips.values() if chip.profile.adc is not None]
    assert len(bounds) == 6
    assert all(one == bounds[0] for one in bounds)
    assert bounds[0].keys() == tiles(chips["adc"]).keys()
    all_logits = [logits(chip) for chip in chips.values()]
    for i, one in enumerate(all_logits):
        for other in all_logits[:i]:
            assert relative_error(one, other) > 1e-4


def test_seeds_are_reproducible_and_different(network: nn.Module) -> None:
    profile = PROFILES["wnoise+pcm"]
    first = weights(make(network, profile, seed=1))
    torch.rand(3)
    assert same(first, weights(make(network, profile, seed=1)))
    other = weights(make(network, profile, seed=2))
    assert not any(torch.equal(first[name], other[name]) for name in first)
    equal_shape = [n for n in first if n.startswith("layer1")]
    assert not torch.equal(first[equal_shape[0]], first[equal_shape[1]])


def test_the_caller_s_state_is_left_alone(network: nn.Module) -> None:
    state = torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    chip = make(network, PROFILES["adc+wnoise+pcm"])
    logits(chip.at(60.0))
    make(network, PROFILES["pcm"])
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before, network.state_dict())


# Clipping


def test_clipping_applies_to_the_ideal_chip_too() -> None:
    model = linear(192, 30)
    chip = program(model, Profile(clipping=Clipping("layer_gaussian", 1.5)), seed=0)
    bound = 1.5 * model.fc.weight.std()
    torch.testing.assert_close(
        chip.executable.network.fc.weight, model.fc.weight.clamp(-bound, bound)
    )
    (normalised,) = weights(chip).values()
    assert normalised.abs().max() == pytest.approx(1.0)


# Refusals


def one_layer(layer: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), odd=layer)).eval()


def test_weights_of_another_precision_are_refused() -> None:
    layer = nn.Linear(4, 4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"odd.weight is torch.float64"):
        program(one_layer(layer), IDEAL, seed=0)


def test_bad_programming_inputs_are_refused() -> None:
    model = linear(192, 4)
    with pytest.raises(ValueError, match="seed"):
        program(model, IDEAL, seed=-1)
    with pytest.raises(ValueError, match="training mode"):
        program(linear(192, 4).train(), IDEAL, seed=0)
    with pytest.raises(ValueError, match="no Conv2d or Linear"):
        program(nn.Sequential(nn.ReLU()).eval(), IDEAL, seed=0)
    with pytest.raises(ValueError, match="does not drift"):
        program(model, IDEAL, seed=0).at(60.0)
    with pytest.raises(ValueError, match="t_inference"):
        program(model, PROFILES["pcm"], seed=0).at(-1.0)
    with pytest.raises(ValueError, match="no ADC"):
        clipped_share(program(model, IDEAL, seed=0), CALIBRATION)
    model.fc.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"non-finite weights in fc\.weight"):
        program(model, IDEAL, seed=0)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (None, "needs calibration images"),
        (CALIBRATION[0], "fails on inputs"),
        (CALIBRATION[0, 0, 0], "must be float32 images"),
        (CALIBRATION[:0], "must be float32 images"),
        (CALIBRATION.double(), "must be float32 images"),
        (torch.zeros_like(CALIBRATION), "tile fc.* range 0"),
        (torch.full_like(CALIBRATION, torch.nan), "tile fc.* range nan"),
    ],
    ids=["absent", "no batch", "rank", "empty", "dtype", "zero", "nan"],
)
def test_bad_calibrations_are_refused(calibration: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(linear(192, 4), PROFILES["adc"], seed=0, calibration=calibration)


def test_profile_changes_only_its_own_setting(network: nn.Module) -> None:
    doubled = replace(PROFILES["wnoise+pcm"], wnoise=WeightNoise(0.04))
    one, two = make(network, PROFILES["wnoise+pcm"]), make(network, doubled)
    base = weights(make(network, PROFILES["pcm"]))
    for name, pcm in base.items():
        noise, twice = weights(one)[name] - pcm, weights(two)[name] - pcm
        torch.testing.assert_close(twice, 2 * noise, atol=1e-6, rtol=0)
