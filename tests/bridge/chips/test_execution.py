"""Fast execution against AIHWKit's own tiles: any geometry, converters, noise, refusals."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from aihwkit.nn import AnalogConv2dMapped
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import QuantizedTorchInferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bridge import PROFILES, Profile, program
from bridge.chips import ADC, Chip, WeightNoise, clipped_share
from bridge.chips.tiles import named_tiles, output_scale
from tests.chips import IMAGES, NEUTRAL, configuration, noisy, single, small_resnet


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return small_resnet()


FINE = ADC(16, range=4.0)


def both(chip: Chip, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of the fast engine and of AIHWKit's tiles, in float64."""
    indices = range(len(x))
    return chip.on("fast")(x, indices).double(), chip.on("aihwkit")(x, indices).double()


def adc_steps(chip: Chip, x: torch.Tensor) -> float:
    """The largest output of one step of any of the tiles, for inputs of magnitude up to max|x|."""
    return max(
        2
        * tile.rpu_config.forward.out_res
        * tile.rpu_config.forward.out_bound
        * float(output_scale(tile).max())
        for tile in named_tiles(chip.analog).values()
    ) * float(x.abs().max())


@st.composite
def convolutions(draw: Callable) -> tuple[nn.Conv2d, torch.Tensor]:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(st.tuples(*[st.integers(1, 2)] * 2))
    padding = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
    channels, outputs = draw(st.integers(1, 12)), draw(st.integers(1, 50))
    size = [draw(st.integers(d * (k - 1) + 1, 9)) for k, d in zip(kernel, dilation, strict=True)]
    layer = nn.Conv2d(
        channels, outputs, kernel, stride, padding, dilation, bias=draw(st.booleans())
    )
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.normal(size=(2, channels, *size)).astype(np.float32)
    x[:, :, 0] = 0  # some patches see nothing
    return layer, torch.tensor(x)


def assert_convolution_equals_the_tiles(
    case: tuple[nn.Conv2d, torch.Tensor], columnwise: bool, **forward: float
) -> None:
    layer, x = case
    config = configuration(columnwise=columnwise, out_res=1 / 62, out_bound=1.5, **forward)
    chip = program(single(layer), config, seed=0)
    fast, tiles = both(chip, x)
    assert fast.shape == tiles.shape
    off = (fast - tiles).abs()
    wrong = off > 1e-4 * float(tiles.abs().max().clamp(min=1e-6))
    # A sum in another order may fall to the other side of a rounding edge: rarely, and by a step.
    assert wrong.sum() <= 2 + 1e-3 * wrong.numel() * len(named_tiles(chip.analog))
    assert off.max() <= 1.01 * adc_steps(chip, x) or not wrong.any()


@settings(max_examples=25, deadline=None)
@given(case=convolutions(), columnwise=st.booleans())
def test_any_convolution_equals_the_tiles(
    case: tuple[nn.Conv2d, torch.Tensor], columnwise: bool
) -> None:
    assert_convolution_equals_the_tiles(case, columnwise)


@settings(max_examples=15, deadline=None)
@given(case=convolutions(), columnwise=st.booleans())
def test_any_convolution_s_patches_are_rounded_as_the_tiles_do(
    case: tuple[nn.Conv2d, torch.Tensor], columnwise: bool
) -> None:
    assert_convolution_equals_the_tiles(case, columnwise, inp_res=1 / 30)


@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_that_cut_through_channels(channels_last: bool) -> None:
    """As in ResNet-18: 1152 inputs are three tiles of 42 2/3 channels."""
    model = single(nn.Conv2d(128, 6, 3, padding=1))
    x = torch.randn(4, 128, 8, 8, generator=torch.Generator().manual_seed(0))
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    chip = program(model, PROFILES["adc"], seed=0, calibration=x.contiguous())
    assert len(named_tiles(chip.analog)) == 3
    fast, tiles = both(chip, x)
    step = adc_steps(chip, x)
    off = (fast - tiles).abs()
    assert off.max() <= 1.01 * step
    assert (off > 0.01 * step).double().mean() <= 3e-3


@pytest.mark.parametrize("inp_res", [-1.0, 1 / 30], ids=["", "dac"])
@pytest.mark.parametrize("shape", [(5, 30), (5, 7, 30), (5, 2, 3, 30)])
def test_linear_layers_of_any_rank(shape: tuple[int, ...], inp_res: float) -> None:
    config = configuration(out_res=1 / 510, out_bound=2.0, inp_res=inp_res)
    chip = program(single(nn.Linear(30, 45)), config, seed=0)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    fast, tiles = both(chip, x)
    assert fast.shape == (*shape[:-1], 45)
    off = (fast - tiles).abs()
    assert off.max() <= 1.01 * adc_steps(chip, x)
    assert (off > 1e-4).double().mean() <= 5e-3


@pytest.mark.parametrize(
    "forward",
    [
        {"is_perfect": True},
        {"out_res": -1.0, "out_bound": -1.0},
        {"out_res": -1.0, "out_bound": 0.7},
        {"out_res": 30.0, "out_bound": 2.0},
        {"noise_management": NoiseManagementType.NONE, "inp_bound": 0.8, "out_bound": -1.0,
         "out_res": -1.0},
        {"noise_management": NoiseManagementType.NONE, "inp_bound": -1.0, "out_bound": -1.0,
         "out_res": -1.0},
        {"noise_management": NoiseManagementType.NONE, "out_res": 1 / 254, "out_bound": 3.0},
        {"inp_res": 1 / 30, "out_res": -1.0, "out_bound": -1.0, "inp_bound": 1.0},
        {"inp_res": 62.0, "inp_bound": 1.5, "out_res": -1.0, "out_bound": -1.0},
        {"noise_management": NoiseManagementType.NONE, "inp_res": 1 / 14, "inp_bound": 0.8,
         "out_res": -1.0, "out_bound": -1.0},
        {"inp_res": 1 / 126, "out_res": 1 / 254, "out_bound": 2.0},
    ],
    ids=["perfect", "open", "saturates", "steps", "input bound", "unbounded", "unscaled adc", "dac",
         "dac of another bound", "unscaled dac", "dac and adc"],
)  # fmt: skip
def test_settings_that_fast_execution_honours(forward: dict[str, object]) -> None:
    chip = program(single(nn.Conv2d(7, 5, 3)), configuration(**forward), seed=0)
    x = torch.randn(3, 7, 6, 6, generator=torch.Generator().manual_seed(1))
    fast, tiles = both(chip, x)
    off = (fast - tiles).abs()
    assert (off > 1e-4).double().mean() <= 5e-3
    perfect = program(single(nn.Conv2d(7, 5, 3)), configuration(is_perfect=True), seed=0)
    free = forward.get("out_bound") == -1.0 and forward.get("inp_bound", -1.0) == -1.0
    free = free and "inp_res" not in forward
    assert torch.allclose(fast, both(perfect, x)[1], atol=1e-3) == (free or "is_perfect" in forward)


@pytest.mark.parametrize(
    ("forward", "named"),
    [
        ({"inp_noise": 0.01}, r"forward\.inp_noise=0\.01"),
        ({"out_noise": 0.06, "out_noise_std": 0.3}, r"forward\.out_noise_std=0\.3"),
        ({"out_sto_round": True}, r"forward\.out_sto_round=True"),
        ({"out_scale": 2.0}, r"forward\.out_scale=2\.0"),
        ({"nm_thres": 0.5}, r"forward\.nm_thres=0\.5"),
        ({"inp_bound": 0.5}, r"forward\.inp_bound=0\.5"),
        ({"inp_asymmetry": 0.1}, r"forward\.inp_asymmetry=0\.1"),
        ({"bound_management": BoundManagementType.ITERATIVE}, r"forward\.bound_management="),
        ({"noise_management": NoiseManagementType.MAX}, r"forward\.noise_management=MAX"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_settings_that_it_cannot_honour_are_refused_by_name(
    forward: dict[str, object], named: str
) -> None:
    model, config = single(nn.Conv2d(3, 4, 3)), configuration(**forward)
    with pytest.raises(ValueError, match=f"fast execution cannot honour .*{named}.*aihwkit"):
        program(model, config, seed=0)
    chip = program(model, config, seed=0, engine="aihwkit")
    with pytest.raises(ValueError, match=named):
        chip.on("fast")
    if "out_noise_std" in forward:
        return  # AIHWKit cannot run it in a convolution
    # What draws or couples samples runs one by one, and a sample's outputs are its own.
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    whole = chip(x, [3, 1, 4, 2])
    for row, index in enumerate([3, 1, 4, 2]):
        assert torch.equal(chip(x[row : row + 1], [index])[0], whole[row])


def test_other_configurations_run_on_their_own_tiles() -> None:
    config = QuantizedTorchInferenceRPUConfig(forward=IOParameters(**NEUTRAL))
    model = single(nn.Linear(6, 4))
    with pytest.raises(ValueError, match="QuantizedTorchInferenceRPUConfig"):
        program(model, config, seed=0)
    chip = program(model, config, seed=0, engine="aihwkit")
    (tile,) = named_tiles(chip.analog).values()
    assert type(tile) is config.tile_class
    assert chip.t_inference == 0.0
    assert chip.at(60.0).t_inference == 60.0


def test_output_noise_of_aihwkits_own_tile_class_is_its_own() -> None:
    model, config = single(nn.Conv2d(3, 4, 3)), configuration(out_noise=0.06)
    config.simulator_tile_class = TorchSimulatorTile
    with pytest.raises(ValueError, match=r"cannot honour forward\.out_noise=0\.06 on a tile class"):
        program(model, config, seed=0)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    chip = program(model, config, seed=0, engine="aihwkit")
    whole = chip(x, [3, 1, 4, 2])
    for row, index in enumerate([3, 1, 4, 2]):
        assert torch.equal(chip(x[row : row + 1], [index])[0], whole[row])


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_input_converters_without_a_range_are_refused(bound: float) -> None:
    config = configuration(inp_res=1 / 126, inp_bound=bound)
    with pytest.raises(ValueError, match=r"forward\.inp_bound=.*give a positive and finite one"):
        program(single(nn.Linear(6, 4)), config, seed=0, engine="aihwkit")


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf"), float("nan")])
def test_converters_without_a_range_are_refused(bound: float) -> None:
    config = configuration(out_res=1 / 510, out_bound=bound)
    with pytest.raises(ValueError, match=r"forward\.out_bound=.*give a positive and finite one"):
        program(single(nn.Linear(6, 4)), config, seed=0)


def test_weight_noise_without_a_kind_is_off() -> None:
    """As in AIHWKit's compiled tile, and its default."""
    model, x = single(nn.Linear(12, 3)), torch.ones(5, 12)
    for engine in ("fast", "aihwkit"):
        chip = program(model, configuration(w_noise=0.1, out_res=-1.0), seed=0, engine=engine)
        torch.testing.assert_close(chip(x, range(5)), model(x))


def test_settings_changed_after_conversion_are_not_ignored() -> None:
    """By fast execution, where AIHWKit's tile would not honour them or still does."""
    config = configuration(out_noise=0.06, out_noise_std=0.3)
    analog = program(single(nn.Linear(6, 4)), config, seed=0, engine="aihwkit").analog
    (tile,) = named_tiles(analog).values()
    tile.rpu_config.forward.out_noise = 0.0
    with pytest.raises(ValueError, match="out_noise_std"):
        program(analog, None, seed=0)
    config = configuration()
    config.simulator_tile_class = TorchSimulatorTile
    analog = convert_to_analog(single(nn.Linear(6, 4)), config, ensure_analog_root=False).eval()
    (tile,) = named_tiles(analog).values()
    tile.rpu_config.forward.w_noise = 0.1
    tile.rpu_config.forward.w_noise_type = WeightNoiseType.PCM_READ
    with pytest.raises(ValueError, match="w_noise on a tile class that ignores it"):
        program(analog, None, seed=0)


def test_layers_that_it_does_not_know_are_refused() -> None:
    conversions = {nn.Conv2d: AnalogConv2dMapped}
    analog = convert_to_analog(
        single(nn.Conv2d(3, 4, 3)),
        configuration(),
        conversion_map=conversions,
        ensure_analog_root=False,
    ).eval()
    with pytest.raises(ValueError, match="the kind of layer that tile layer"):
        program(analog, None, seed=0)


def test_indices_may_be_any_integers(network: nn.Module) -> None:
    chip = program(network, noisy("constant"), seed=0)
    for one in (chip, chip.on("aihwkit")):
        expected = one(IMAGES[:3], [4, 5, 6])
        assert torch.equal(one(IMAGES[:3], np.arange(4, 7)), expected)
        assert torch.equal(one(IMAGES[:3], torch.arange(4, 7)), expected)
        with pytest.raises(ValueError, match="must not be negative"):
            one(IMAGES[:1], [-1])


def test_unknown_engine() -> None:
    with pytest.raises(ValueError, match="the engine is fast or aihwkit, got 'slow'"):
        program(single(nn.Linear(6, 4)), PROFILES["ideal"], seed=0, engine="slow")


# A whole network


# Noise of each operation is another on each engine.
@pytest.mark.parametrize(
    "name", [name for name, one in PROFILES.items() if one.noise_of_operations is None]
)
def test_networks_agree_layer_by_layer(network: nn.Module, name: str) -> None:
    """Each layer is fed what AIHWKit's has seen, so that one flipped code does not spread."""
    chip = program(network, PROFILES[name], seed=0, calibration=IMAGES)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def note(path: str) -> Callable:
        return lambda module, inputs, output: seen.update({path: (inputs[0], output)})

    tiled = chip.on("aihwkit")
    layers = {path for path, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    handles = [
        tiled.executable.network.get_submodule(path).register_forward_hook(note(path))
        for path in layers
    ]
    tiled(IMAGES, range(32))
    for handle in handles:
        handle.remove()
    assert seen.keys() == layers
    for path, (x, expected) in seen.items():
        with torch.inference_mode():
            actual = chip.executable.network.get_submodule(path)(x)
        off = (actual - expected).abs() / expected.abs().max()
        assert (off > 1e-4).double().mean() <= 1e-3, path


# Noise drawn for each operation


def assert_noise_of_several_tiles_has_the_closed_form(
    engine: str, kind: str, adc: ADC | None, count: int
) -> None:
    """1152 inputs, three tiles: the variances of their noises add up, each in its tile's unit."""
    model = single(nn.Conv2d(128, 4, 3, bias=False))
    model.layer.weight.data[:, 40:90] *= 3
    x = torch.randn(1, 128, 3, 3, generator=torch.Generator().manual_seed(1)).relu()
    chip = program(model, noisy(kind, adc=adc), seed=0, engine=engine)
    weight, inputs = model.layer.weight.flatten(1).double(), x.flatten().double()
    variance = torch.zeros(4, dtype=torch.float64)
    for part in (slice(0, 384), slice(384, 768), slice(768, 1152)):
        largest = weight[:, part].abs().max()
        per_weight = largest**2 if kind == "constant" else largest * weight[:, part].abs()
        variance += 0.02**2 * (per_weight * inputs[part] ** 2).expand(4, 384).sum(1)
    draws = chip(x.expand(count, -1, -1, -1), range(count)).flatten(1).double()
    error = draws - (weight @ inputs)
    spread = variance.sqrt()
    assert (error.mean(0).abs() < 5 * spread / count**0.5 + 1e-3).all()
    assert ((error.std(0) / spread - 1).abs() < 5 / (2 * count) ** 0.5).all()
    kurtosis = (error**4).mean(0) / error.std(0) ** 4
    assert ((kurtosis - 3).abs() < 5 * (24 / count) ** 0.5).all()


@pytest.mark.parametrize(
    ("engine", "kind", "adc", "count"),
    [
        ("fast", "constant", FINE, 4000),
        ("fast", "pcm_read", None, 4000),
        ("aihwkit", "constant", None, 800),
        ("aihwkit", "pcm_read", FINE, 800),
    ],
)
def test_noise_of_several_tiles_has_the_closed_form(
    engine: str, kind: str, adc: ADC | None, count: int
) -> None:
    assert_noise_of_several_tiles_has_the_closed_form(engine, kind, adc, count)


@pytest.mark.parametrize("adc", [None, ADC(16)], ids=["linear", "adc"])
def test_noise_belongs_to_the_seed_the_layer_and_the_sample(
    network: nn.Module, adc: ADC | None
) -> None:
    chip = program(network, noisy("constant", adc=adc), seed=0, calibration=IMAGES)
    order = [7, 3, 30, 3, 11]
    logits = chip(IMAGES[[0, 1, 2, 1, 3]], order)
    torch.testing.assert_close(logits[1], logits[3], rtol=1e-5, atol=1e-5)
    for row, (image, index) in enumerate(zip([0, 1, 2, 1, 3], order, strict=True)):
        alone = chip(IMAGES[[image]], [index])[0]
        torch.testing.assert_close(alone, logits[row], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(chip(IMAGES[[1]], [3]), chip(IMAGES[[1]], [4]), rtol=1e-2)
    other = program(network, noisy("constant", adc=adc), seed=1, calibration=IMAGES)
    assert not torch.allclose(chip(IMAGES[[1]], [3]), other(IMAGES[[1]], [3]), rtol=1e-2)
    noise = chip.executable.noise
    noise.begin([3, 8])
    one, two, again = (noise.normals(name, (2, 500), torch.device("cpu")) for name in "aba")
    rows = torch.cat([one, two, again])  # two layers, and the first a second time
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.25
    noise.begin([8])
    assert torch.equal(noise.normals("a", (1, 500), torch.device("cpu")), one[1:])


class Twice(nn.Module):
    """A layer whose outputs cancel, but for noise."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(40, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x) - self.fc(x)


class Tokens(nn.Module):
    """A layer that works on several rows of each sample at once."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.reshape(-1, 10)).reshape(len(x), -1)


@pytest.mark.parametrize("adc", [None, ADC(16, range=20.0)], ids=["linear", "adc"])
def test_noise_of_a_layer_that_runs_twice_and_of_tokens(adc: ADC | None) -> None:
    profile = noisy("constant", 0.1, adc=adc)
    expected = 0.1 * 40**0.5  # of ones, in units of the largest weight
    x = torch.ones(3000, 40)
    twice = Twice().eval()
    chip = program(twice, profile, seed=0)
    unit = float(twice.fc.weight.detach().abs().max())
    spread = chip(x, range(3000)).std(0) / unit
    assert spread.numpy() == pytest.approx(2**0.5 * expected, rel=0.08)
    tokens = Tokens().eval()
    chip = program(tokens, profile, seed=0)
    unit = float(tokens.fc.weight.detach().abs().max())
    draws = chip(x, range(3000))
    assert (draws.std(0) / unit).numpy() == pytest.approx(expected / 2, rel=0.08)
    assert (torch.corrcoef(draws.T) - torch.eye(24)).abs().max() < 0.1
    step = 0.0 if adc is None else 2 * adc.range / (2**adc.bits - 2) * unit  # one code, by rounding
    torch.testing.assert_close(chip(x[:1], [7])[0], draws[7], rtol=1e-5, atol=1e-6 + 1.01 * step)
    chip.executable.noise.begin([1, 2])
    with pytest.raises(ValueError, match="works on 3 rows for 2 samples"):
        chip.executable.noise.normals("fc", (3, 4), torch.device("cpu"))


def test_the_clipped_share_of_a_noisy_chip_is_its_own(network: nn.Module) -> None:
    chip = program(network, noisy("constant", 0.1, ADC()), seed=0, calibration=IMAGES[:4])
    state = torch.get_rng_state()
    shares = clipped_share(chip, IMAGES)
    assert torch.equal(torch.get_rng_state(), state)
    assert shares == clipped_share(chip, IMAGES)
    assert max(shares.values()) > 0


def test_noise_is_on_top_of_what_was_programmed(network: nn.Module) -> None:
    chip = program(network, noisy("constant", pcm=True), seed=0)
    same = program(network, PROFILES["pcm"], seed=0)
    quiet = program(network, noisy("constant", sigma=0.0, pcm=True), seed=0)
    programmed = [tile.programmed_weights for tile in named_tiles(chip.analog).values()]
    for one, tile in zip(programmed, named_tiles(same.analog).values(), strict=True):
        assert torch.equal(one, tile.programmed_weights)
    expected = same(IMAGES, range(32))
    torch.testing.assert_close(quiet(IMAGES, range(32)), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(chip(IMAGES, range(32)), expected, rtol=1e-2)


def test_aihwkit_s_own_weight_noise_setting_is_honoured() -> None:
    """`forward.w_noise`, which AIHWKit's PyTorch tile refuses, on this package's tile class."""
    config = configuration(
        out_res=-1.0,
        out_bound=-1.0,
        w_noise=0.05,
        w_noise_type=WeightNoiseType.ADDITIVE_CONSTANT,
    )
    model = single(nn.Linear(12, 3))
    x = torch.ones(2000, 12)
    expected = 0.05 * float(model.layer.weight.abs().max()) * 12**0.5
    for engine, count in (("fast", 2000), ("aihwkit", 300)):
        chip = program(model, config, seed=0, engine=engine)
        spread = chip(x[:count], range(count)).std(0)
        assert spread.numpy() == pytest.approx(expected, rel=5 / (2 * count) ** 0.5)
    profile = Profile(wnoise=WeightNoise(0.05, "constant", "per_mvm"))
    as_profile = program(model, replace(profile), seed=0)
    assert as_profile(x, range(2000)).std(0).numpy() == pytest.approx(expected, rel=0.08)
