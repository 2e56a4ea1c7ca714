"""Layers of a chip: signal-to-noise ratios against closed forms, and what each layer costs."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from torch import nn

from bridge import PROFILES, Profile, predict, program
from bridge.analysis.intervals import rate_interval
from bridge.chips import ADC, Clipping, WeightNoise, clipped_share, layer_failures, layer_report
from bridge.chips.layers import ALL_LAYERS
from bridge.chips.tiles import named_tiles

IDEAL = PROFILES["ideal"]
FULL = PROFILES["adc+wnoise+pcm"]
IMAGES = np.random.default_rng(0).normal(size=(40, 6, 6, 3)).astype(np.float32)
FIRST = torch.tensor(IMAGES.transpose(0, 3, 1, 2))


def sequence(**layers: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(OrderedDict(layers)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def linear(inputs: int = 108, outputs: int = 200) -> nn.Module:
    return sequence(flatten=nn.Flatten(), fc=nn.Linear(inputs, outputs))


def perceptron(*, inplace: bool = False) -> nn.Module:
    return sequence(
        flatten=nn.Flatten(),
        hidden=nn.Linear(108, 30),
        relu=nn.ReLU(inplace=inplace),
        fc=nn.Linear(30, 5),
    )


@pytest.fixture(scope="module")
def convolutional() -> nn.Module:
    return sequence(
        conv1=nn.Conv2d(3, 4, 3, padding=1),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(4, 4, 3, stride=2),
        flatten=nn.Flatten(),
        fc=nn.Linear(16, 5),
    )


def decibels(expected: torch.Tensor, actual: torch.Tensor) -> float:
    signal = expected.double().square().sum()
    return float(10 * torch.log10(signal / (actual.double() - expected.double()).square().sum()))


# --- the report


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_ideal_layers_are_digital_up_to_rounding(convolutional: nn.Module, engine: str) -> None:
    report = layer_report(
        program(convolutional, IDEAL, seed=0, engine=engine), convolutional, FIRST
    )
    assert list(report["layer"]) == ["conv1", "conv2", "fc"]
    assert list(report["tiles"]) == [1, 1, 1]
    assert (report["snr_db"] > 100).all()
    assert (report["own_snr_db"] > 100).all()
    assert report["clipped_share"].isna().all()


def test_infinite_where_nothing_differs() -> None:
    model = linear(outputs=3)
    model.fc.weight /= model.fc.weight.abs().max()  # the tile then holds these very weights
    row = layer_report(program(model, IDEAL, seed=0), model, IMAGES).iloc[0]
    assert (row["snr_db"], row["own_snr_db"]) == (math.inf, math.inf)


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
@pytest.mark.parametrize("drawn", ["per_chip", "per_mvm"])
def test_weight_noise_of_a_linear_layer(engine: str, drawn: str) -> None:
    """Each output errs by sigma max|w| ||x||, whether the noise is frozen or not."""
    model, sigma = linear(outputs=400), 0.05
    x = FIRST.flatten(1)
    signal = model(FIRST).square().sum()
    error = 400 * (sigma * model.fc.weight.abs().max()) ** 2 * x.square().sum()
    chip = program(model, Profile(wnoise=WeightNoise(sigma, drawn=drawn)), seed=3, engine=engine)
    row = layer_report(chip, model, IMAGES).iloc[0]
    # 400 outputs of 40 images: a relative spread of the error of sqrt(2 / 16000), or of about
    # sqrt(2 / (400 * 35)) where the images share the weights' noise.
    expected = 10 * math.log10(signal / error)
    assert row["own_snr_db"] == pytest.approx(expected, abs=4 * 0.012 * 10 / math.log(10))
    if engine == "fast" or drawn == "per_chip":
        assert row["snr_db"] == pytest.approx(row["own_snr_db"], abs=1e-4)


@pytest.mark.parametrize("inplace", [False, True])
def test_running_and_own_errors_of_a_second_layer(inplace: bool) -> None:
    model = perceptron(inplace=inplace)
    chip = program(model, PROFILES["wnoise+pcm"], seed=1)
    on_chip = chip.executable.network
    x = FIRST.flatten(1)
    digital_hidden, chip_hidden = model.hidden(x), on_chip.hidden(x)
    digital = model.fc(digital_hidden.relu())
    report = layer_report(chip, model, FIRST).set_index("layer")
    for column, layer, expected, actual in (
        ("own_snr_db", "hidden", digital_hidden, chip_hidden),
        ("snr_db", "hidden", digital_hidden, chip_hidden),
        ("own_snr_db", "fc", digital, on_chip.fc(digital_hidden.relu())),
        ("snr_db", "fc", digital, on_chip.fc(chip_hidden.relu())),
    ):
        assert report.loc[layer, column] == pytest.approx(decibels(expected, actual), abs=1e-3)
    assert report.loc["fc", "snr_db"] < report.loc["fc", "own_snr_db"]


def test_engines_agree(convolutional: nn.Module) -> None:
    chip = program(convolutional, FULL, seed=0, calibration=FIRST)
    fast = layer_report(chip, convolutional, FIRST)
    slow = layer_report(chip.on("aihwkit"), convolutional, FIRST)
    for column in ("snr_db", "own_snr_db"):
        np.testing.assert_allclose(fast[column], slow[column], atol=0.05)
    np.testing.assert_array_equal(fast["clipped_share"], slow["clipped_share"])


def test_clipped_share_is_the_largest_of_a_layer_s_tiles() -> None:
    images = np.random.default_rng(2).normal(size=(8, 10, 110, 1)).astype(np.float32)
    model = linear(1100, 4)
    chip = program(model, Profile(adc=ADC(range=0.5)), seed=0)
    shares = clipped_share(chip, images)
    row = layer_report(chip, model, images).iloc[0]
    assert row["tiles"] == len(shares) == 3
    assert row["clipped_share"] == max(shares.values()) > min(shares.values()) > 0


class OutOfOrder(nn.Module):
    """Registered in another order than it runs; one layer runs twice and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(108, 4)
        self.auxiliary = nn.Linear(108, 4)
        self.first = nn.Linear(108, 108)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.first(self.first(images.flatten(1))).tanh())


@pytest.mark.parametrize("engine", ["fast", "aihwkit"])
def test_layers_are_in_the_order_in_which_they_run(engine: str) -> None:
    model = OutOfOrder().eval().requires_grad_(False)
    for number, parameter in enumerate(model.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.manual_seed(number)) / 10)
    noise = WeightNoise(0.01, drawn="per_mvm")
    report = layer_report(
        program(model, Profile(wnoise=noise), seed=0, engine=engine), model, FIRST
    )
    assert list(report["layer"]) == ["first", "fc", "auxiliary"]
    assert report[["snr_db", "own_snr_db"]].iloc[2].isna().all()
    assert report[["snr_db", "own_snr_db"]].iloc[:2].gt(5).all(axis=None)


def test_caller_s_state_is_left_alone(convolutional: nn.Module) -> None:
    chip = program(convolutional, PROFILES["pcm"], seed=0)
    state = torch.get_rng_state()
    before = chip(FIRST, range(40))
    layer_report(chip, convolutional, FIRST)
    with pytest.raises(ValueError, match="non-finite"):
        layer_report(chip, convolutional, torch.full_like(FIRST, torch.nan))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(chip(FIRST, range(40)), before)
    for network in (convolutional, chip.executable, chip.analog):
        assert not any(module._forward_hooks for module in network.modules())


def test_report_refuses(convolutional: nn.Module) -> None:
    chip = program(convolutional, IDEAL, seed=0)
    with pytest.raises(ValueError, match="training mode"):
        layer_report(chip, nn.Sequential(nn.Linear(4, 4)), FIRST)
    with pytest.raises(ValueError, match=r"not the model that was programmed.*conv1"):
        layer_report(chip, linear(), FIRST)
    wider = sequence(
        conv1=nn.Conv2d(3, 5, 3, padding=1),
        relu=nn.ReLU(),
        conv2=nn.Conv2d(5, 4, 3, stride=2),
        flatten=nn.Flatten(),
        fc=nn.Linear(16, 5),
    )
    with pytest.raises(ValueError, match="not the model that was programmed: layer conv1"):
        layer_report(chip, wider, FIRST)
    with pytest.raises(ValueError, match="the model is on tiles already"):
        layer_report(chip, chip.analog, FIRST)
    with pytest.raises(ValueError, match="images must be float32"):
        layer_report(chip, convolutional, FIRST.double())
    with pytest.raises(ValueError, match="non-finite outputs in layers conv1, conv2, fc"):
        layer_report(chip, convolutional, torch.full_like(FIRST, torch.inf))


# --- one layer at a time


@pytest.fixture(scope="module")
def source(convolutional: nn.Module) -> list[dict]:
    """The digital model is right on the even samples."""
    right = convolutional(FIRST).argmax(1).tolist()
    return [
        {"image": image, "label": (label + i % 2) % 5, "index": i}
        for i, (image, label) in enumerate(zip(IMAGES, right, strict=True))
    ]


def test_ideal_layers_do_not_fail(convolutional: nn.Module, source: list[dict]) -> None:
    profile = Profile(clipping=Clipping("fixed_value"))  # at the largest weight: none
    table = layer_failures(convolutional, profile, source)
    assert list(table["layer"]) == ["conv1", "conv2", "fc", ALL_LAYERS]
    assert set(table["failures"]) == {0}
    assert set(table["failure_rate"]) == {0.0}
    assert set(table["digitally_correct"]) == {20}
    assert set(table["samples"]) == {40}
    assert set(table["analog_accuracy"]) == {0.5}


def test_failures_of_arrays_are_those_of_the_samples(convolutional: nn.Module) -> None:
    labels = np.arange(40) % 4
    rows = [{"img": image, "label": n % 4} for n, image in enumerate(IMAGES)]
    of_rows = layer_failures(convolutional, IDEAL, rows, keys={"image": "img"})
    assert set(of_rows["samples"]) == {40}
    assert layer_failures(convolutional, IDEAL, (IMAGES, labels)).equals(of_rows)


def test_a_layer_alone_is_that_of_the_whole_chip(convolutional: nn.Module) -> None:
    whole = named_tiles(program(convolutional, FULL, seed=5, calibration=FIRST).analog)
    for layer, others in (("conv1", ["conv2", "fc"]), ("fc", ["conv1", "conv2"])):
        chip = program(convolutional, FULL, seed=5, calibration=FIRST, digital_layers=others)
        (name,) = (tiles := named_tiles(chip.analog))
        assert name.startswith(f"{layer}.")
        assert torch.equal(tiles[name].tile.get_weights(), whole[name].tile.get_weights())
        forward, of_whole = tiles[name].rpu_config.forward, whole[name].rpu_config.forward
        assert forward.out_bound == pytest.approx(of_whole.out_bound, rel=1e-5)


def test_failures_are_counted_over_chips(convolutional: nn.Module, source: list[dict]) -> None:
    profile = Profile(wnoise=WeightNoise(0.3))
    table = layer_failures(convolutional, profile, source, seed=7, chips=2).set_index("layer")
    digital = np.arange(40) % 2 == 0
    for layer, others in {"conv2": ["conv1", "fc"], ALL_LAYERS: []}.items():
        chips = []
        for seed in (7, 8):
            chip = program(convolutional, profile, seed=seed, digital_layers=others)
            chips.append(predict(chip, source, description="test")["correct"].to_numpy())
        row, failed = table.loc[layer], ~np.array(chips)[:, digital]
        assert row["failures"] == failed.sum() > 0
        assert row["failure_rate"] == failed.sum() / 40
        assert (row["failure_rate_low"], row["failure_rate_high"]) == rate_interval(failed)
        assert row["analog_accuracy"] == np.mean(chips)
    assert set(table["chips"]) == {2}
    assert set(table["samples"]) == {80}
    assert set(table["digitally_correct"]) == {40}


def test_rate_without_a_correct_sample_is_nan(convolutional: nn.Module, source: list[dict]) -> None:
    wrong = [sample for sample in source if sample["index"] % 2]
    table = layer_failures(convolutional, IDEAL, wrong)
    assert table[["failure_rate", "failure_rate_low", "failure_rate_high"]].isna().all(axis=None)


def test_failures_refuse(convolutional: nn.Module, source: list[dict]) -> None:
    for chips in (0, True, 1.0):
        with pytest.raises(ValueError, match="chips must be an integer >= 1"):
            layer_failures(convolutional, IDEAL, source, chips=chips)
    with pytest.raises(ValueError, match="training mode"):
        layer_failures(nn.Sequential(nn.Linear(4, 4)), IDEAL, source)
    with pytest.raises(ValueError, match="seed must be"):
        layer_failures(convolutional, IDEAL, source, seed=-1)
    with pytest.raises(ValueError, match="calibrated ADC range needs calibration"):
        layer_failures(convolutional, PROFILES["adc"], source)
    with pytest.raises(ValueError, match="the source has no samples"):
        layer_failures(convolutional, IDEAL, [])
    converted = convert_to_analog(
        convolutional, TorchInferenceRPUConfig(), ensure_analog_root=False
    ).eval()
    with pytest.raises(ValueError, match="the model is on tiles already"):
        layer_failures(converted, IDEAL, source)
