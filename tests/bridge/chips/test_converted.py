"""Networks that AIHWKit has converted or trained hardware-aware, and layers that stay digital."""

import sys
from collections import OrderedDict
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from aihwkit.inference import ReRamWan2022NoiseModel
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.optim import AnalogSGD
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, WeightModifierParameter
from aihwkit.simulator.parameters.enums import NoiseManagementType, WeightModifierType
from torch import nn

from bridge import PROFILES, Profile, load_chip, program, save_chip
from bridge.chips import ADC, PCM, Clipping, OutputNoise, WeightNoise
from bridge.chips.tiles import named_layers, named_tiles
from tests.chips import IMAGES, NEUTRAL, configuration, single, small_resnet


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


def images(count: int = 64) -> torch.Tensor:
    return torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(0))[:count]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Trained by AIHWKit with noisy weights; its input ranges and output scales are learned."""
    config = TorchInferenceRPUConfig()
    config.forward = IOParameters(
        **{**NEUTRAL, "inp_res": 1 / 254, "noise_management": NoiseManagementType.NONE},
        out_res=-1.0,
        out_bound=-1.0,
    )
    config.mapping.weight_scaling_omega = 0.6
    config.mapping.learn_out_scaling = True
    config.mapping.out_scaling_columnwise = True
    config.mapping.max_input_size = config.mapping.max_output_size = 16
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_from_data = 3
    config.modifier = WeightModifierParameter(std_dev=0.05, type=WeightModifierType.ADD_NORMAL)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        digital = nn.Sequential(
            OrderedDict(
                conv=nn.Conv2d(2, 20, 3, stride=2, padding=1),
                act=nn.ReLU(),
                flatten=nn.Flatten(),
                fc=nn.Linear(80, 12),
            )
        )
        model = convert_to_analog(digital, config, ensure_analog_root=False)
        labels = (images()[:, 0].mean((1, 2)) > 0).long()
        optimiser = AnalogSGD(model.parameters(), lr=0.05)
        optimiser.regroup_param_groups(model)
        model.train()
        for _ in range(12):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images()), labels).backward()
            optimiser.step()
    return model.eval().requires_grad_(False)


def outputs(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(images())


def off(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def test_a_trained_network_keeps_its_scales_and_ranges(trained: nn.Module) -> None:
    before, expected = named_tiles(trained), outputs(trained)
    chip = program(trained, PROFILES["ideal"], seed=0)
    for name, tile in named_tiles(chip.analog).items():
        assert torch.equal(tile.input_range, before[name].input_range)
        assert torch.equal(tile.get_scales(), before[name].get_scales())
        assert torch.equal(tile.tile.weight, before[name].tile.weight)
    ranges = {float(tile.input_range.detach()) for tile in before.values()}
    assert len(ranges) > 3
    scales = torch.cat([tile.out_scaling_alpha.flatten() for tile in before.values()])
    assert scales.std() > 0
    # All that is left of its own settings is the inputs' 8 bits.
    assert off(chip(images(), range(64)), expected) < 0.02
    assert off(chip.on("aihwkit")(images(), range(64)), expected) < 0.02
    assert torch.equal(outputs(trained), expected)


# Noise of each operation is another on each engine.
@pytest.mark.parametrize(
    "name", [name for name, one in PROFILES.items() if one.noise_of_operations is None]
)
def test_profiles_of_a_trained_network(trained: nn.Module, name: str) -> None:
    chip = program(trained, PROFILES[name], seed=0, calibration=images())
    fast, tiles = chip(images(), range(64)), chip.on("aihwkit")(images(), range(64))
    # A flipped code is a step of the converter.
    assert off(fast, tiles) < (1e-5 if chip.profile.adc is None else 5e-3)
    assert off(fast, outputs(trained)) > 1e-4


def test_its_own_configuration(trained: nn.Module) -> None:
    few = images(6)
    chip = program(trained, None, seed=0, engine="aihwkit")
    assert (chip.profile, chip.name, chip.t_inference) == (None, "own configuration", 0.0)
    assert off(chip(few, range(6)), outputs(trained)[:6]) > 1e-3  # programmed, with PCM's noise
    again = program(trained, None, seed=0, engine="aihwkit")
    assert torch.equal(chip(few, range(6)), again(few, range(6)))
    assert off(program(trained, None, seed=0)(few, range(6)), chip(few, range(6))) < 1e-5
    assert torch.equal(chip.at(60.0)(few, range(6)), again.at(60.0)(few, range(6)))
    with pytest.raises(ValueError, match="give a Profile, or None"):
        program(trained, configuration(), seed=0)


def test_noise_and_clipping_are_relative_to_the_largest_weight(trained: nn.Module) -> None:
    """The largest weights of this network's tiles are not 1, AIHWKit's unit."""
    tiles = named_tiles(trained)
    largest = {name: float(tile.tile.weight.abs().max()) for name, tile in tiles.items()}
    assert min(largest.values()) < 0.7
    noisy = program(trained, Profile(wnoise=WeightNoise(0.02)), seed=0)
    every = []
    for name, tile in named_tiles(noisy.analog).items():
        every.append((tile.tile.weight - tiles[name].tile.weight).flatten() / largest[name])
    assert torch.cat(every).std().item() == pytest.approx(0.02, rel=0.08)
    per_mvm = WeightNoise(0.02, "pcm_read", "per_mvm")
    for name, tile in named_tiles(program(trained, Profile(wnoise=per_mvm), seed=0).analog).items():
        expected = 0.02 * largest[name] ** 0.5
        assert tile.rpu_config.forward.w_noise == pytest.approx(expected)
    noisy = program(trained, Profile(out_noise=OutputNoise(0.1)), seed=0)
    for name, tile in named_tiles(noisy.analog).items():
        assert tile.rpu_config.forward.out_noise == pytest.approx(0.1 * largest[name])
    clipped = program(trained, Profile(clipping=Clipping("fixed_value", fixed_value=0.5)), seed=0)
    for name, tile in named_tiles(clipped.analog).items():
        weight = tile.get_weights()[0]
        before = tiles[name].get_weights()[0]
        limit = 0.5 * tiles[name].tile.weight.abs().max() * tiles[name].get_scales()[:, None]
        torch.testing.assert_close(weight, torch.minimum(before.abs(), limit) * before.sign())


def test_a_trained_layer_may_go_back_to_digital(trained: nn.Module) -> None:
    chip = program(trained, PROFILES["wnoise"], seed=0, digital_layers=["fc"])
    assert list(named_layers(chip.analog)) == ["conv"]
    assert type(chip.analog.get_submodule("fc")) is nn.Linear


def test_what_was_programmed_before_is_programmed_anew(trained: nn.Module) -> None:
    used = deepcopy(trained)
    for tile in named_tiles(used).values():
        tile.program_weights()
        tile.drift_weights(1e6)
    assert off(outputs(used), outputs(trained)) > 0.01
    for name in ("ideal", "adc+pcm"):
        chips = [program(m, PROFILES[name], seed=0, calibration=images()) for m in (used, trained)]
        one, other = (chip(images(), range(64)) for chip in chips)
        assert torch.equal(one, other), name
    assert off(outputs(used), outputs(trained)) > 0.01


def test_noise_is_relative_to_the_clipped_weights(trained: nn.Module) -> None:
    clipping = Clipping("layer_gaussian", 2.0)
    profile = Profile(wnoise=WeightNoise(0.02, "pcm_read", "per_mvm"), clipping=clipping)
    for tile in named_tiles(program(trained, profile, seed=0).analog).values():
        assert tile.rpu_config.forward.w_noise == pytest.approx(0.02)  # rescaled to 1


def test_ranges_are_in_units_of_the_largest_weight(trained: nn.Module) -> None:
    """However AIHWKit has scaled the weights."""
    fixed = program(trained, Profile(adc=ADC(range=3.0)), seed=0)
    for name, tile in named_tiles(fixed.analog).items():
        largest = float(tile.tile.weight.abs().max())
        assert tile.rpu_config.forward.out_bound == pytest.approx(3.0 * largest)
        assert fixed.out_bounds[name] == pytest.approx(3.0)
    model = single(nn.Linear(30, 20))
    x = torch.randn(40, 1, 1, 30, generator=torch.Generator().manual_seed(0))
    bounds, logits = [], []
    for omega in (0.3, 1.0):
        config = configuration(100)
        config.mapping.weight_scaling_omega = omega
        analog = convert_to_analog(model, config, ensure_analog_root=False).eval()
        chip = program(analog, PROFILES["adc"], seed=0, calibration=x)
        bounds.append(chip.out_bounds["layer.analog_module"])
        logits.append(chip(x, range(40)))
    assert bounds[0] == pytest.approx(bounds[1])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=0.05)


# Layers that stay digital


def test_digital_layers_are_left_alone(network: nn.Module) -> None:
    chip = program(network, PROFILES["pcm"], seed=0, digital_layers=["layer2", "fc"])
    on_tiles = set(named_layers(chip.analog))
    assert "layer1.0.conv1" in on_tiles
    assert not any(name.startswith(("layer2", "fc")) for name in on_tiles)
    assert chip.digital_layers == ("layer2", "fc")
    # What stays on tiles is what the whole chip has there.
    whole = named_tiles(program(network, PROFILES["pcm"], seed=0).analog)
    for name, tile in named_tiles(chip.analog).items():
        assert torch.equal(tile.tile.weight, whole[name].tile.weight)


@pytest.mark.parametrize("layers", [["layer9"], [""], ["conv1", "nothing"]])
def test_unknown_digital_layers_are_refused(network: nn.Module, layers: list[str]) -> None:
    with pytest.raises(ValueError, match="the model has no layers"):
        program(network, PROFILES["ideal"], seed=0, digital_layers=layers)


def test_everything_digital_is_refused(trained: nn.Module) -> None:
    with pytest.raises(ValueError, match="no Conv2d or Linear layer"):
        program(single(nn.Linear(3, 2)), PROFILES["ideal"], seed=0, digital_layers=["layer"])
    with pytest.raises(ValueError, match="act has no layer on tiles"):
        program(trained, PROFILES["ideal"], seed=0, digital_layers=["act"])
    with pytest.raises(ValueError, match=r"give \['conv'\]"):
        program(trained, PROFILES["ideal"], seed=0, digital_layers="conv")
    with pytest.raises(ValueError, match="every layer is digital"):
        program(trained, PROFILES["ideal"], seed=0, digital_layers=["conv", "fc"])


def test_a_network_s_own_parameters_stay_digital() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.shift = nn.Linear(5, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + self.shift

    model, x = Shifted().eval(), torch.randn(4, 5)
    chip = program(model, PROFILES["ideal"], seed=0)
    torch.testing.assert_close(chip(x, range(4)), model(x).detach())


def test_one_layer_under_two_names_is_one_layer_on_tiles() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    model = nn.Sequential(OrderedDict(one=layer, two=layer)).eval()
    chip = program(model, PROFILES["ideal"], seed=0)
    assert list(named_tiles(chip.analog)) == ["one.analog_module"]
    torch.testing.assert_close(chip(x, range(3)), layer(layer(x)).detach())


# A user's configuration


def test_an_own_configuration_is_taken_as_it_is(network: nn.Module) -> None:
    config = configuration(100, out_res=1 / 254, out_bound=3.0)
    config.noise_model.prog_noise_scale = 1.0
    chip = program(network, config, seed=0)
    (*_, tile) = named_tiles(chip.analog).values()
    assert tile.rpu_config.forward.out_bound == 3.0
    assert tile.rpu_config.mapping.max_input_size == 100
    programmed = program(network, config, seed=0, engine="aihwkit")
    fast, tiles = chip(IMAGES, range(32)), programmed(IMAGES, range(32))
    assert (fast.argmax(1) == tiles.argmax(1)).double().mean() > 0.9
    assert off(fast, tiles) < 0.05
    assert off(fast, program(network, config, seed=1)(IMAGES, range(32))) > 1e-3


def test_configurations_that_are_not_for_inference(network: nn.Module) -> None:
    from aihwkit.simulator.configs import SingleRPUConfig

    with pytest.raises(ValueError, match="SingleRPUConfig does not describe inference"):
        program(network, SingleRPUConfig(), seed=0)
    with pytest.raises(ValueError, match="give a profile or an RPUConfig"):
        program(network, None, seed=0)


def test_a_configuration_whose_memory_has_times_of_its_own() -> None:
    config = configuration()
    config.noise_model = ReRamWan2022NoiseModel()
    model, x = single(nn.Linear(12, 5)), torch.rand(4, 12)
    chip = program(model, config, seed=0, t_inference=86400.0)
    assert chip.t_inference == 86400.0
    assert 1e-3 < off(chip(x, range(4)), model(x)) < 0.5
    with pytest.raises(ValueError, match="has its time of inference in its memory"):
        program(model, PROFILES["pcm"], seed=0, t_inference=60.0)


def test_the_compiled_tile_runs_or_says_why_not() -> None:
    config = InferenceRPUConfig(forward=IOParameters(is_perfect=True))
    config.noise_model.prog_noise_scale = 1.0
    config.drift_compensation = None
    model, x = single(nn.Linear(12, 5)), torch.rand(4, 12)
    if sys.version_info < (3, 12):  # AIHWKit 1.1 is not built for the torch of today
        with pytest.raises(ValueError, match=r"compiled tile.*use TorchInferenceRPUConfig"):
            program(model, config, seed=0, engine="aihwkit")
        return
    chip = program(model, config, seed=0, engine="aihwkit")
    with pytest.raises(ValueError, match="tile_class InferenceTile"):
        program(model, config, seed=0)
    same = program(model, config, seed=0, engine="aihwkit")
    assert torch.equal(chip(x, range(4)), same(x, range(4)))
    later = chip.at(3600.0)(x, range(4))
    assert 1e-3 < off(later, model(x)) < 0.9


# Converters


@pytest.mark.parametrize(
    ("percentile", "rank"), [(100.0, 3000), (99.9, 2997), (99.0, 2970), (98.99, 2970)]
)
def test_a_percentile_as_the_range(percentile: float, rank: int) -> None:
    model = single(nn.Linear(40, 30, bias=False))
    x = torch.randn(100, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    chip = program(
        model,
        Profile(adc=ADC(9, percentile=percentile)),
        seed=0,
        calibration=x.flatten(2)[..., None, :],
    )
    weight, inputs = model.layer.weight.double(), x.flatten(1).double()
    unit = weight.abs().max() * inputs.abs().amax(1, keepdim=True)
    magnitudes = ((inputs @ weight.T) / unit).abs().flatten()
    expected = float(magnitudes.sort().values[rank - 1])
    bounds = set(chip.out_bounds.values())
    assert len(bounds) == 1
    assert bounds.pop() == pytest.approx(expected, rel=1e-5)


def test_calibration_takes_jax_s_layout_too(network: nn.Module) -> None:
    one, other = (
        program(network, PROFILES["adc"], seed=0, calibration=calibration).out_bounds
        for calibration in (IMAGES, IMAGES.numpy().transpose(0, 2, 3, 1))
    )
    assert one == other


def test_a_memory_s_time_is_not_that_of_clipping() -> None:
    """All non-idealities together on one small layer, against its parts done by hand."""
    model = single(nn.Linear(30, 20))
    profile = Profile(
        ADC(8, range=5.0), WeightNoise(0.01), PCM(t_inference=3600.0), Clipping("layer_gaussian", 2)
    )
    chip = program(model, profile, seed=0)
    (tile,) = named_tiles(chip.analog).values()
    limit = 2 * model.layer.weight.std()
    target = model.layer.weight.clamp(-limit, limit)
    torch.testing.assert_close(tile.reference_combined_weights, target / limit)
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    unit = x.abs().amax(1, keepdim=True)
    step = 5.0 / 127
    codes = (x / unit @ tile.tile.weight.T / step).round().clamp(-127, 127)
    expected = codes * step * unit * limit + model.layer.bias
    torch.testing.assert_close(chip(x, range(6)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_another_default_dtype_is_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3)).eval()
    save_chip(tmp_path / "chip", program(model, PROFILES["pcm"], seed=0))
    message = rf"new tensors {dtype}.*set_default_dtype\(torch.float32\)"
    torch.set_default_dtype(dtype)
    try:
        with pytest.raises(ValueError, match=message):
            program(model, PROFILES["pcm"], seed=0)
        with pytest.raises(ValueError, match=message):
            load_chip(tmp_path / "chip", model)
    finally:
        torch.set_default_dtype(torch.float32)
