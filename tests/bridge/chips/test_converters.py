"""Input converters and output noise of chips: against AIHWKit's own tiles and closed forms."""

import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, MappingParameter
from aihwkit.simulator.parameters.enums import BoundManagementType, NoiseManagementType
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import nn

import bridge
from bridge import PROFILES, Profile, load_chip, output_noise, program, save_chip
from bridge.chips import ADC, DAC, PCM, OutputNoise, WeightNoise, clipped_share
from bridge.chips.files import _header, fingerprint
from bridge.chips.profiles import from_json, to_json
from bridge.chips.tiles import named_layers, named_tiles
from tests.bridge.chips.test_moments import margin_errors, of_one_layer
from tests.chips import IMAGES, single, small_resnet

FINE = ADC(16, range=4.0)
RANGES: list[Any] = ["max", "calibrated", 2.0]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


# Settings, names and files


def test_names_say_what_there_is() -> None:
    full = Profile(ADC(), WeightNoise(), PCM(), dac=DAC(), out_noise=OutputNoise())
    assert full.name == "dac+adc+wnoise+onoise+pcm"
    assert Profile(dac=DAC()).name == "dac"
    assert Profile(out_noise=OutputNoise(), memory=PCM()).name == "onoise+pcm"
    assert not any(one.dac or one.out_noise for one in PROFILES.values())
    assert from_json(json.loads(json.dumps(to_json(full)))) == full


EARLIER = {
    "adc+wnoise+pcm": '{"kind": "Profile", "settings": {"adc": {"kind": "ADC", "settings": {"bits":'
    ' 9, "range": "calibrated", "percentile": 100.0}}, "wnoise": {"kind": "WeightNoise", '
    '"settings": {"sigma": 0.02, "kind": "constant", "drawn": "per_chip"}}, "memory": {"kind": '
    '"PCM", "settings": {"g_max": 25.0, "t_inference": 20.0, "programming_noise": 1.0, "drift": '
    '1.0, "read_noise": 1.0, "compensation": null, "converter": {"kind": "SinglePair", "settings": '
    '{"g_min": 0.0}}}}, "clipping": {"kind": "Clipping", "settings": {"type": "none", "sigma": 2.5,'
    ' "fixed_value": 1.0}}}}',
    "ideal": '{"kind": "Profile", "settings": {"adc": null, "wnoise": null, "memory": null, '
    '"clipping": {"kind": "Clipping", "settings": {"type": "none", "sigma": 2.5, "fixed_value": '
    "1.0}}}}",
}
EARLIER_HEADER = (
    '{"kind": "analog chip", "profile": {"kind": "Profile", "settings": {"adc": {"kind": "ADC", '
    '"settings": {"bits": 8, "range": 12.0, "percentile": 100.0}}, "wnoise": null, "memory": null, '
    '"clipping": {"kind": "Clipping", "settings": {"type": "none", "sigma": 2.5, "fixed_value": '
    '1.0}}}}, "configurations": null, "seed": 3, "t_inference": null, "out_bounds": '
    '{"layer.analog_module": 12.0}, "engine": "fast", "digital_layers": [], "largest_pixel": null, '
    '"layers": {"layer": "AnalogLinear in_features=6 out_features=4"}, "tiles": '
    '{"layer.analog_module": {"out_bound": 12.0, "w_noise": 0.0}}}'
)


@pytest.mark.parametrize("name", list(EARLIER))
def test_profiles_without_them_are_written_as_before_there_were_any(name: str) -> None:
    assert json.dumps(to_json(PROFILES[name])) == EARLIER[name]
    assert from_json(json.loads(EARLIER[name])) == PROFILES[name]


def test_what_a_chip_s_hash_is_of_is_as_before() -> None:
    chip = program(single(nn.Linear(6, 4)), Profile(ADC(8, 12.0)), seed=3)
    assert json.dumps(_header(chip)) == EARLIER_HEADER


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DAC(bits=1), "DAC bits must be an integer from 2 to 23, got 1"),
        (lambda: DAC(range="largest"), 'DAC range, unless "max" or "calibrated", must be'),
        (lambda: DAC(range=0.0), 'DAC range, unless "max" or "calibrated", must be'),
        (lambda: DAC(percentile=101.0), "DAC percentile must be at most 100"),
        (lambda: ADC(range="max"), 'ADC range, unless "calibrated", must be'),
        (lambda: ADC(headroom=0.0), "ADC headroom must be finite and > 0, got 0.0"),
        (lambda: ADC(range=12.0, headroom=2.0), "headroom is a factor on a calibrated range"),
        (lambda: OutputNoise(0.0), "output noise sigma must be"),
        (lambda: OutputNoise(float("nan")), "output noise sigma must be"),
        (lambda: Profile(dac=ADC()), "a profile's dac must be a DAC, got ADC"),
        (lambda: Profile(out_noise=0.1), "a profile's out_noise must be a OutputNoise, got 0.1"),
    ],
    ids=range(11),
)
def test_bad_settings_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# Engines


@pytest.mark.parametrize("adc", [None, ADC()], ids=["", "adc"])
@pytest.mark.parametrize("unit", RANGES)
def test_networks_agree_layer_by_layer(network: nn.Module, unit: Any, adc: ADC | None) -> None:
    """Each layer is fed what AIHWKit's has seen, so that one flipped code does not spread."""
    chip = program(network, Profile(adc, dac=DAC(6, unit)), seed=0, calibration=IMAGES)
    tiled, seen = chip.on("aihwkit"), {}

    def note(path: str) -> Callable:
        return lambda module, inputs, output: seen.update({path: (inputs[0], output)})

    layers = named_layers(chip.analog)
    handles = [
        tiled.executable.network.get_submodule(path).register_forward_hook(note(path))
        for path in layers
    ]
    expected = tiled(IMAGES, range(32))
    for handle in handles:
        handle.remove()
    assert seen.keys() == layers.keys()
    for path, (x, outputs) in seen.items():
        with torch.inference_mode():
            actual = chip.executable.network.get_submodule(path)(x)
            exact = network.get_submodule(path)(x)
        off = (actual - outputs).abs() / outputs.abs().max()
        assert (off > 1e-4).double().mean() <= 1e-3, path
        assert (exact - outputs).abs().max() > 1e-3 * outputs.abs().max(), path
    assert (chip(IMAGES, range(32)).argmax(1) == expected.argmax(1)).double().mean() >= 0.995


@pytest.mark.parametrize("unit", ["max", 1.7])
def test_a_layer_is_that_of_aihwkits_unchanged_tile(unit: Any) -> None:
    """AIHWKit's layer of a configuration that is written out here; 200 outputs of 40 inputs."""
    model = single(nn.Linear(40, 200))
    x = torch.randn(300, 40, generator=torch.Generator().manual_seed(1))
    config = TorchInferenceRPUConfig(simulator_tile_class=TorchSimulatorTile)
    config.mapping = MappingParameter(digital_bias=True, weight_scaling_omega=1.0)
    config.drift_compensation = None
    config.forward = IOParameters(
        inp_res=1 / (2**5 - 2),
        out_noise=0.0,
        out_res=1 / (2**8 - 2),
        out_bound=6.0,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    if unit != "max":
        config.forward.noise_management = NoiseManagementType.NONE
        config.pre_post.input_range.enable = True
        config.pre_post.input_range.init_value = unit
        config.pre_post.input_range.init_from_data = 0
    layer = AnalogLinear.from_digital(model.layer, config).eval()
    with torch.inference_mode():
        expected = layer(x)
    chip = program(model, Profile(ADC(8, 6.0), dac=DAC(5, unit)), seed=0)
    off = (chip(x, range(300)) - expected).abs()
    inputs = x.abs().amax(1, keepdim=True) if unit == "max" else unit
    step = 6.0 / 127 * float(model.layer.weight.abs().max()) * inputs
    assert (off / step).max() < 1.01
    assert (off / step > 1e-3).double().mean() < 1e-3


def test_a_converter_has_its_codes_and_saturates() -> None:
    """A tile of the weight 1 shows its inputs: 7 codes at 3 bits."""
    model = nn.Sequential(OrderedDict(layer=nn.Linear(1, 1, bias=False))).eval()
    model.layer.weight.data.fill_(1.0)
    x = torch.linspace(-2, 2, 401)[:, None]
    chip = program(model, Profile(dac=DAC(3, 1.5)), seed=0)
    found = chip(x, range(401)).numpy()
    expected = np.clip(np.round(x.numpy() / 0.5), -3, 3) * 0.5
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(found.round(4))) == 7
    largest = program(model, Profile(dac=DAC(3)), seed=0)
    np.testing.assert_allclose(largest(x, range(401)), x, atol=1e-6)  # each is its own unit


@pytest.mark.parametrize("percentile", [100.0, 90.0])
def test_a_calibrated_range_is_a_percentile_of_the_layer_s_inputs(
    network: nn.Module, percentile: float
) -> None:
    inputs: dict[str, list[torch.Tensor]] = {}
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].detach())
        )
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    network(IMAGES)
    for handle in handles:
        handle.remove()
    profile = Profile(dac=DAC(range="calibrated", percentile=percentile))
    chip = program(network, profile, seed=0, calibration=IMAGES)
    assert chip.input_ranges.keys() == inputs.keys()
    for name, given in inputs.items():
        magnitudes = np.abs(torch.cat(given).numpy()).ravel()
        expected = np.percentile(magnitudes, percentile, method="inverted_cdf")
        assert chip.input_ranges[name] == pytest.approx(expected, rel=1e-5)
        for tile in named_layers(chip.analog)[name].analog_tiles():
            assert float(tile.input_range) == pytest.approx(expected, rel=1e-5)


def test_an_adc_is_calibrated_in_the_unit_of_inputs() -> None:
    """On inputs that saturate and are not rounded; with a unit for each vector as without a DAC."""
    model = single(nn.Linear(40, 30, bias=False))
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(1))
    weight = model.layer.weight / model.layer.weight.abs().max()
    without = program(model, Profile(ADC()), seed=0, calibration=x)
    same = program(model, Profile(ADC(), dac=DAC(3)), seed=0, calibration=x)
    assert same.out_bounds == without.out_bounds
    fixed = program(model, Profile(ADC(), dac=DAC(3, 1.5)), seed=0, calibration=x)
    expected = float((x.clamp(-1.5, 1.5) / 1.5 @ weight.T).abs().max())
    (bound,) = fixed.out_bounds.values()
    assert bound == pytest.approx(expected, rel=1e-5)
    # Rounding to 3 bits moves some beyond the range that covers all of them exactly.
    (share,) = clipped_share(fixed, x).values()
    rounded = torch.round(x.clamp(-1.5, 1.5) / 0.5).clamp(-3, 3) / 3 @ weight.T
    assert share == pytest.approx(float((rounded.abs() > bound).double().mean()), abs=1e-9)
    halved = program(model, Profile(ADC(range=bound / 2), dac=DAC(3, 1.5)), seed=0)
    (share,) = clipped_share(halved, x).values()
    assert share == pytest.approx(float((rounded.abs() > bound / 2).double().mean()), abs=1e-3)
    assert share > 0


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_headroom_is_a_factor_on_the_step(engine: Any) -> None:
    """Outputs are whole steps of the calibrated range's, times the factor."""
    model = single(nn.Linear(40, 30, bias=False))
    x = torch.randn(100, 40, generator=torch.Generator().manual_seed(1))
    weight = model.layer.weight.abs().max()
    settings: dict[str, Any] = {"seed": 0, "calibration": x, "engine": engine}
    (bound,) = program(model, Profile(ADC(6)), **settings).out_bounds.values()
    for headroom in (1.0, 1.7, 0.6):
        chip = program(model, Profile(ADC(6, headroom=headroom)), **settings)
        (found,) = chip.out_bounds.values()
        assert found == pytest.approx(headroom * bound, rel=1e-6)
        outputs = chip(x, range(len(x))) / x.abs().amax(1, keepdim=True) / weight
        codes = outputs / (headroom * bound / 31)
        assert float((codes - codes.round()).abs().max()) < 1e-2
        assert (float(codes.abs().max()) > 30.9) is (headroom <= 1)
        (share,) = clipped_share(chip, x).values()
        assert (share > 0) is (headroom < 1)


def test_headroom_is_part_of_what_is_written_only_where_there_is_some() -> None:
    some = Profile(ADC(headroom=1.5))
    assert from_json(json.loads(json.dumps(to_json(some)))) == some
    assert "headroom" in json.dumps(to_json(some))
    assert "headroom" not in json.dumps(to_json(Profile(ADC())))


def test_calibration_of_inputs_tells_what_it_lacks(network: nn.Module) -> None:
    profile = Profile(ADC(range=8.0), dac=DAC(range="calibrated"))
    with pytest.raises(ValueError, match="a calibrated DAC range needs calibration images"):
        program(network, profile, seed=0)
    with pytest.raises(ValueError, match=r"gives layer conv1 the DAC range 0\.0"):
        program(network, profile, seed=0, calibration=torch.zeros(2, 3, 8, 8))

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) + (self.other(x) if x.max() > 100 else 0)

    with pytest.raises(ValueError, match=r"without a DAC range: layer other; .*DAC\(range=5\.0\)"):
        program(Gated().eval(), profile, seed=0, calibration=torch.ones(3, 6))
    dead = nn.Sequential(single(nn.Linear(6, 4, bias=False)), nn.ReLU(), single(nn.Linear(4, 3)))
    dead[0].layer.weight.data.abs_().neg_()
    with pytest.warns(UserWarning, match=r"no input other than 0 .*: layer 2\.layer; each gets"):
        chip = program(dead.eval(), profile, seed=0, calibration=torch.ones(3, 6))
    assert chip.input_ranges["2.layer"] == 1.0  # that of the other layer
    assert chip(torch.ones(2, 6), range(2)).isfinite().all()


# Noise of outputs


def split_layer() -> tuple[nn.Module, torch.Tensor]:
    """1152 inputs, three tiles of several scales; a patch."""
    model = single(nn.Conv2d(128, 4, 3, bias=False))
    model.layer.weight.data[:, 40:90] *= 3
    x = torch.randn(1, 128, 3, 3, generator=torch.Generator().manual_seed(1)).relu()
    return model, x


@pytest.mark.parametrize(
    ("engine", "profile", "count"),
    [
        ("fast", Profile(out_noise=OutputNoise(0.05)), 4000),
        ("fast", Profile(FINE, out_noise=OutputNoise(0.05)), 4000),
        ("fast", Profile(dac=DAC(12), out_noise=OutputNoise(0.05)), 4000),
        ("fast", Profile(dac=DAC(14, 6.0), out_noise=OutputNoise(0.05)), 4000),
        ("fast", Profile(FINE, WeightNoise(0.002, "pcm_read", "per_mvm"),
                         out_noise=OutputNoise(0.05)), 4000),
        ("fast", Profile(None, WeightNoise(0.002, "pcm_read", "per_mvm"),
                         out_noise=OutputNoise(0.05)), 4000),
        ("aihwkit", Profile(FINE, out_noise=OutputNoise(0.05)), 800),
        ("aihwkit", Profile(None, WeightNoise(0.002, "pcm_read", "per_mvm"), dac=DAC(14, 6.0),
                            out_noise=OutputNoise(0.05)), 800),
    ],
    ids=lambda value: value.name if isinstance(value, Profile) else str(value),
)  # fmt: skip
def test_noise_of_several_tiles_has_the_closed_form(
    engine: Any, profile: Profile, count: int
) -> None:
    """The sum over tiles of (sigma x largest weight x unit of inputs)^2, and of weight noise."""
    model, x = split_layer()
    weight, inputs = model.layer.weight.flatten(1).double(), x.flatten().double()
    variance = torch.zeros(4, dtype=torch.float64)
    for part in (slice(0, 384), slice(384, 768), slice(768, 1152)):
        unit = 6.0 if profile.fixed_inputs else inputs[part].abs().max()
        largest = weight[:, part].abs().max()
        variance += (0.05 * largest * unit) ** 2
        if profile.wnoise is not None:
            variance += 0.002**2 * largest * (weight[:, part].abs() * inputs[part] ** 2).sum(1)
    chip = program(model, profile, seed=0, engine=engine)
    draws = chip(x.expand(count, -1, -1, -1), range(count)).flatten(1).double()
    error, spread = draws - (weight @ inputs), variance.sqrt()
    rounding = 0.05 * spread if profile.dac else 1e-3
    assert (error.mean(0).abs() < 5 * spread / count**0.5 + rounding).all()
    assert ((error.std(0) / spread - 1).abs() < 5 / (2 * count) ** 0.5).all()
    kurtosis = (error**4).mean(0) / error.std(0) ** 4
    assert kurtosis.mean() == pytest.approx(3, abs=0.5)
    assert np.abs(np.corrcoef(error.T.numpy()) - np.eye(4)).max() < 6 / count**0.5


@pytest.mark.parametrize("adc", [None, ADC(16)], ids=["", "adc"])
@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_noise_belongs_to_the_seed_the_layer_and_the_sample(
    network: nn.Module, adc: ADC | None, engine: Any
) -> None:
    profile = Profile(adc, dac=DAC(range="calibrated"), out_noise=OutputNoise(0.02))
    chip = program(network, profile, seed=0, calibration=IMAGES).on(engine)
    logits = chip(IMAGES[[0, 1, 1, 3]], [7, 3, 3, 11])
    torch.testing.assert_close(logits[1], logits[2], rtol=1e-5, atol=1e-5)
    for row, (image, index) in enumerate([(0, 7), (1, 3), (1, 3), (3, 11)]):
        alone = chip(IMAGES[[image]], [index])[0]
        torch.testing.assert_close(alone, logits[row], rtol=1e-2, atol=1e-2)
    assert not torch.allclose(chip(IMAGES[[1]], [3]), chip(IMAGES[[1]], [4]), rtol=0.1)
    other = program(network, profile, seed=1, calibration=IMAGES).on(engine)
    assert not torch.allclose(chip(IMAGES[[1]], [3]), other(IMAGES[[1]], [3]), rtol=0.1)


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("adc", [None, ADC(range=4.0)], ids=["", "adc"])
def test_an_input_of_zeros_has_noise_in_a_fixed_unit_alone(engine: Any, adc: ADC | None) -> None:
    model = single(nn.Conv2d(3, 4, 2, bias=False))
    x = torch.zeros(1, 3, 4, 4)
    x[0, 0, 0, 0] = 1.0  # one patch of nine sees it
    for dac in (None, DAC(), DAC(range=2.0)):
        chip = program(model, Profile(adc, dac=dac, out_noise=OutputNoise(0.3)), seed=0)
        found = chip.on(engine)(x, [0])
        there = (found.flatten(2) != 0).any(1)[0]
        assert there[0]
        assert bool(there[1:].any()) == (dac is not None and dac.range != "max")


def test_reading_out_for_a_compensation_goes_through_a_dac_exactly() -> None:
    model = single(nn.Linear(30, 8))
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    memory = PCM(t_inference=3600.0, compensation="global_exact")
    (without,) = named_tiles(program(model, Profile(memory=memory), seed=0).analog).values()
    for dac in (DAC(3), DAC(3, 0.3), DAC(3, 7.0), DAC(3, "calibrated")):
        chip = program(model, Profile(memory=memory, dac=dac), seed=0, calibration=x)
        (tile,) = named_tiles(chip.analog).values()
        assert float(tile.alpha) == pytest.approx(float(without.alpha), rel=1e-6)


# Files, networks that were converted before, many chips


@pytest.mark.parametrize("unit", RANGES)
def test_chips_come_back_from_their_files(network: nn.Module, tmp_path: Path, unit: Any) -> None:
    profile = Profile(
        ADC(),
        WeightNoise(),
        PCM(compensation="global"),
        dac=DAC(6, unit, 99.0),
        out_noise=OutputNoise(0.05),
    )
    chip = program(network, profile, seed=2, calibration=IMAGES)
    save_chip(tmp_path / "chip", chip)
    back = load_chip(tmp_path / "chip", small_resnet())
    assert fingerprint(back) == fingerprint(chip)
    assert back.input_ranges == chip.input_ranges
    assert bool(back.input_ranges) == (unit != "max")
    for one, other in ((chip, back), (chip.at(3600.0), back.at(3600.0))):
        assert torch.equal(one(IMAGES, range(32)), other(IMAGES, range(32)))
    assert clipped_share(back, IMAGES) == clipped_share(chip, IMAGES)
    other = program(network, Profile(**{**vars(profile), "dac": None}), seed=2, calibration=IMAGES)
    assert fingerprint(other) != fingerprint(chip)


def test_a_converted_network_keeps_its_input_ranges() -> None:
    config = TorchInferenceRPUConfig()
    config.mapping.weight_scaling_omega = 1.0
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_value = 1.5
    model = single(nn.Linear(40, 30))
    x = torch.randn(50, 40, generator=torch.Generator().manual_seed(1))
    converted = nn.Sequential(OrderedDict(layer=AnalogLinear.from_digital(model.layer, config)))
    chip = program(converted.eval(), Profile(dac=DAC(4)), seed=0)
    expected = program(model, Profile(dac=DAC(4, 1.5)), seed=0)
    torch.testing.assert_close(chip(x, range(50)), expected(x, range(50)))
    for unit in ("calibrated", 3.0):
        with pytest.raises(ValueError, match=r"input range of its own, 1\.5, .*range=\"max\""):
            program(converted, Profile(dac=DAC(4, unit)), seed=0, calibration=x)
    with pytest.raises(ValueError, match="an input range that it was trained with"):
        bridge.jax_chips.carried(chip, x)


def test_simulate_calibrates_inputs() -> None:
    model = nn.Sequential(nn.Flatten(), single(nn.Linear(192, 5))).eval()
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    profiles = {"own": Profile(dac=DAC(6, "calibrated"), out_noise=OutputNoise())}
    found = bridge.simulate(model, (images, np.arange(32) % 5), profiles=profiles, chips=2)
    assert len(found) == 2 * (32 - 3)


# The margin's variance


def source(shape: tuple[int, ...], count: int, distinct: int) -> list[dict[str, Any]]:
    images = np.random.default_rng(3).normal(size=(distinct, *shape)).astype(np.float32)
    return [{"image": images[n % distinct], "label": 0, "index": n} for n in range(count)]


@pytest.mark.parametrize("layer", ["linear", "convolution"])
@pytest.mark.parametrize("unit", ["max", 6.0])
def test_a_dac_s_noise_is_that_of_many_images(layer: str, unit: Any) -> None:
    network, shape = of_one_layer(layer)
    samples = source(shape, 1500, distinct=1500)
    for sample in samples:
        sample["image"] = np.maximum(sample["image"], 0)  # zeros are exact
    profile = Profile(dac=DAC(7, unit))
    table = output_noise(network, profile, samples)
    errors = margin_errors(network, profile, samples)
    assert abs(errors.mean()) < 5 * errors.std() / 1500**0.5
    ratio = errors**2 / table["variance"].to_numpy()
    # Errors of an input in patches of one unit are alike, which the variance leaves out.
    alike = 0.15 if layer == "convolution" and unit == "max" else 0.0
    assert ratio.mean() == pytest.approx(1, abs=5 * ratio.std() / 1500**0.5 + alike)
    assert ratio.std() / 1500**0.5 < 0.05


@pytest.mark.parametrize("layer", ["linear", "convolution"])
@pytest.mark.parametrize("dac", [None, DAC(12), DAC(12, 5.0)], ids=["", "max", "fixed"])
def test_output_noise_s_variance_is_that_of_many_draws(layer: str, dac: DAC | None) -> None:
    network, shape = of_one_layer(layer)
    samples = source(shape, 3000, distinct=3)
    profile = Profile(dac=dac, out_noise=OutputNoise(0.1))
    table = output_noise(network, profile, samples[:3])
    errors = margin_errors(network, profile, samples).reshape(1000, 3)
    ratio = errors.var(axis=0, ddof=1) / table["variance"].to_numpy()
    assert np.all(np.abs(ratio - 1) < 4.5 * (2 / 999) ** 0.5)


def test_variances_add_up() -> None:
    network, samples = small_resnet(), source((8, 8, 3), 5, distinct=5)
    parts: list[dict[str, Any]] = [{"adc": ADC(range=8.0)}, {"out_noise": OutputNoise()}]

    def variance(**settings: Any) -> np.ndarray:
        return output_noise(network, Profile(**settings), samples)["variance"].to_numpy()

    together = variance(dac=DAC(), **parts[0], **parts[1])
    apart = variance(dac=DAC()) + sum(variance(**part) for part in parts)
    # The ADC's and the noise's own are those of inputs that are rounded.
    np.testing.assert_allclose(together, apart, rtol=0.01)
