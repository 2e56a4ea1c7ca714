"""NumPy's numbers as settings of chips: the same chip, file and identity as Python's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from bridge import Profile, load_chip, predict, program, save_chip, weight_moments
from bridge.analysis import failure_table, systematic_share
from bridge.chips import (
    ADC,
    PCM,
    Clipping,
    Hermes,
    MappedPairs,
    Pairs,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
    layer_failures,
    output_noise,
)
from bridge.chips.files import fingerprint
from bridge.chips.profiles import from_json, to_json
from bridge.routing import Costs, routing_curve
from bridge.weights import load_weights
from tests.chips import IMAGES

NUMBERS = [np.int64, np.uint8, np.array, jnp.int32, torch.tensor]

SETTINGS: list[Callable[[Any, Any], Any]] = [
    lambda n, x: ADC(bits=n(8), range=x(4.0), percentile=x(99.5)),
    lambda n, x: WeightNoise(sigma=x(0.25), kind=np.str_("constant")),
    lambda n, x: Clipping("layer_gaussian", sigma=x(2.5), fixed_value=x(0.5)),
    lambda n, x: PCM(x(25.0), x(60.0), x(0.5), x(0.5), x(0.5), mapping=SinglePair(x(0.5))),
    lambda n, x: PCM(t_inference=n(20), mapping=Pairs((x(1.0), n(4)), g_min=x(1.0))),
    lambda n, x: PCM(mapping=Pairs([x(1.0), x(4.0)])),
    lambda n, x: PCM(mapping=MappedPairs((x(1.0),), ((x(0.0), x(25.0)), (x(25.0), x(0.0))))),
    lambda n, x: Hermes(devices=n(1), g_max=x(10.0), t_inference=x(0.5)),
    lambda n, x: ReRamWan2022(t_inference=n(86400 % 86399), noise=x(0.5)),
    lambda n, x: ReRamCMO(g_max=x(88.0), g_min=x(9.0), acceptance=x(0.2), drift=x(0.5)),
    lambda n, x: Costs(x(0.25), n(2)),
]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("make", SETTINGS)
def test_settings_are_plain(make: Any, number: Any) -> None:
    wanted = make(int, float)
    for real in (np.float16, np.float32, np.float64, np.array, jnp.float32):
        try:
            made = make(number, real)
        except ValueError:  # 0.2 as float16 is 0.199951171875
            assert isinstance(wanted, ReRamCMO)
            assert real is np.float16
            continue
        assert made == wanted
        assert json.dumps(to_json(made)) == json.dumps(to_json(wanted))
        assert from_json(json.loads(json.dumps(to_json(wanted))), (Costs,)) == wanted


@pytest.mark.parametrize("wrong", [True, np.True_, torch.tensor(True), 8.0, np.nan, np.array([8])])
def test_bools_and_others_are_no_integers(wrong: Any) -> None:
    model = linear()
    for make in (
        lambda: ADC(bits=wrong),
        lambda: program(model, Profile(), seed=wrong),
        lambda: weight_moments(model, Profile(memory=PCM()), chips=wrong),
        lambda: weight_moments(model, Profile(memory=PCM()), seed=wrong),
        lambda: layer_failures(model, Profile(), SOURCE, chips=wrong),
        lambda: layer_failures(model, Profile(), SOURCE, seed=wrong),
        lambda: predict(model, SOURCE, batch_size=wrong),
        lambda: output_noise(model, Profile(), SOURCE, batch_size=wrong),
        lambda: failure_table([0.1, 0.2], [True, True], [True, False], bins=wrong),
        lambda: systematic_share([[True, True], [True, False]], seed=wrong),
        lambda: systematic_share([[True, True], [True, False]], resamples=wrong),
        lambda: routing_curve([0.1, 0.2], [True, True], [True, False], points=wrong),
    ):
        with pytest.raises(ValueError, match=r"integer|whole number|at least 1"):
            make()


@pytest.mark.parametrize("wrong", [True, np.nan, np.inf, np.float32("inf"), np.array([1.0]), "1"])
def test_what_is_no_finite_number_is_refused(wrong: Any) -> None:
    chip = program(linear(), Profile(memory=PCM()), seed=0)
    for make in (
        lambda: ADC(range=wrong),
        lambda: WeightNoise(wrong),
        lambda: PCM(t_inference=wrong),
        lambda: Pairs((1.0, wrong)),
        lambda: Costs(wrong),
        lambda: chip.at(wrong),
        lambda: failure_table([0.1, 0.2], [True, True], [True, False], bins=2, confidence=wrong),
    ):
        with pytest.raises(ValueError, match="must"):
            make()


def linear() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False)).eval()
    torch.nn.init.normal_(model[1].weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return model.requires_grad_(False)


SOURCE = (IMAGES[:4], [0, 1, 2, 3])


def test_a_chip_of_numpy_s_numbers_is_the_same_chip(tmp_path: Path) -> None:
    def made(n: Any, x: Any, name: str) -> tuple[Any, Any]:
        profile = Profile(ADC(n(8)), WeightNoise(x(0.25)), PCM(t_inference=x(60.0)))
        chip = program(linear(), profile, seed=n(3), calibration=IMAGES).at(x(1e3))
        save_chip(tmp_path / name, chip)
        table = predict(chip, SOURCE, batch_size=n(2))
        return chip, table

    (one, its), (other, also) = made(int, float, "a"), made(np.int64, np.float32, "b")
    assert fingerprint(one) == fingerprint(other)
    (tensors, header), (others, other_header) = (load_weights(tmp_path / name) for name in "ab")
    assert json.dumps(header) == json.dumps(other_header)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors | others)
    assert its.equals(also)
    assert type(other.seed) is int
    assert type(other.t_inference) is float
    back = load_chip(tmp_path / "b", linear())
    assert back.profile == one.profile
    assert fingerprint(back.at(np.array(60.0))) == fingerprint(one.at(60.0))
