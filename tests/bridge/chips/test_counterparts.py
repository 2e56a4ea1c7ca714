"""The profile of AIHWKit's configuration: round trips, and settings that no profile has."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.simulator.configs import (
    InferenceRPUConfig,
    QuantizedTorchInferenceRPUConfig,
    SingleRPUConfig,
    TorchInferenceRPUConfig,
    TorchInferenceRPUConfigIRDropT,
)
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightClipType,
    WeightModifierType,
)
from aihwkit.simulator.presets import FloatingPointPreset, StandardHWATrainingPreset
from torch import nn

from bridge import PROFILES, Profile, program
from bridge.chips import (
    ADC,
    DAC,
    PCM,
    Clipping,
    Hermes,
    MappedPairs,
    OutputNoise,
    Pairs,
    ReRamCMO,
    ReRamWan2022,
    SinglePair,
    WeightNoise,
    profile_of,
)
from bridge.chips.configuration import rpu_config
from bridge.chips.weight_noise import weight_noise
from tests.chips import single

LISTS = ((0.0, 5.0, 25.0), (25.0, 5.0, 0.0))
MEMORIES = [
    None,
    PCM(),
    PCM(20.5, compensation="per_column", mapping=Pairs((1.0, 3.0), 1.0), drift=0.5),
    PCM(compensation="global_exact", programming_noise=0.0, read_noise=2.0),
    PCM(mapping=MappedPairs((1.0,), LISTS)),
    Hermes(1, compensation="global"),
    Hermes(2, g_max=15.0, mapping=SinglePair(2.0)),
    ReRamWan2022(30.0, noise=0.5),
    ReRamCMO(acceptance=2.0, g_min=5.0, read_noise=0.0),
]


@pytest.mark.parametrize("memory", MEMORIES, ids=repr)
def test_round_trips(memory: Any) -> None:
    for adc, dac, noise, weights, clipping in product(
        (None, ADC(), ADC(8, range=12.0)),
        (None, DAC(), DAC(8, 3.0), DAC(5, "calibrated")),
        (None, OutputNoise(0.1)),
        (None, WeightNoise(0.03, "pcm_read", "per_mvm"), WeightNoise(0.0, drawn="per_mvm")),
        (Clipping(), Clipping("layer_gaussian", 2.0), Clipping("fixed_value", fixed_value=0.5)),
    ):
        profile = Profile(adc, weights, memory, clipping, dac, noise)
        assert profile_of(rpu_config(profile)) == profile


@pytest.mark.parametrize(
    ("kind", "numbers", "expected"),
    [
        (WeightClipType.NONE, {"sigma": 9.0, "fixed_value": 0.3}, Clipping()),
        (WeightClipType.FIXED_VALUE, {"sigma": 9.0, "fixed_value": 0.3},
         Clipping("fixed_value", fixed_value=0.3)),
        (WeightClipType.LAYER_GAUSSIAN, {"sigma": 9.0}, Clipping("layer_gaussian", sigma=9.0)),
    ],
    ids=lambda value: value.name if isinstance(value, WeightClipType) else "",
)  # fmt: skip
def test_numbers_that_a_clipping_does_not_read_are_left_out(
    kind: WeightClipType, numbers: dict[str, float], expected: Clipping
) -> None:
    config = rpu_config(Profile())
    config.clip.type = kind
    for name, value in numbers.items():
        setattr(config.clip, name, value)
    assert profile_of(config) == Profile(clipping=expected)


@pytest.mark.parametrize(
    ("noise", "expected"),
    [
        (None, None),
        (WeightNoise(0.03), None),
        (WeightNoise(0.03, drawn="per_mvm"), WeightNoise(0.03, drawn="per_mvm")),
    ],
)
def test_noise_of_operations_is_what_the_configuration_draws(
    noise: WeightNoise | None, expected: WeightNoise | None
) -> None:
    profile = Profile(wnoise=noise)
    assert profile.noise_of_operations == expected
    assert weight_noise(rpu_config(profile).forward) == (expected.sigma if expected else 0.0)


@pytest.mark.parametrize("name", list(PROFILES))
def test_profiles_with_a_name_round_trip_but_for_frozen_noise(name: str) -> None:
    profile = PROFILES[name]
    assert profile_of(rpu_config(profile)) == replace(profile, wnoise=profile.noise_of_operations)


def test_what_a_configuration_does_not_hold() -> None:
    profile = Profile(ADC(percentile=99.0), WeightNoise(), PCM(t_inference=60.0))
    found = profile_of(rpu_config(profile))
    assert found == Profile(ADC(), None, PCM())
    assert profile_of(rpu_config(profile), t_inference=60.0).memory == profile.memory


def test_aihwkits_defaults_are_refused_by_name_and_are_a_profile_without_these() -> None:
    for config in (InferenceRPUConfig(), TorchInferenceRPUConfig()):
        with pytest.raises(ValueError, match="no profile has") as refused:
            profile_of(config)
        named = str(refused.value).partition(": change")[0].removeprefix("no profile has ")
        assert named.split(", ") == [
            "mapping.weight_scaling_omega=0.0",
            "forward.bound_management=BoundManagementType.ITERATIVE",
        ]
        config.mapping.weight_scaling_omega = 1.0
        config.forward.bound_management = BoundManagementType.NONE
        assert profile_of(config) == Profile(
            ADC(9, range=12.0),
            None,
            PCM(compensation="global"),
            dac=DAC(7),
            out_noise=OutputNoise(0.06),
        )


def test_presets() -> None:
    with pytest.raises(ValueError, match=r"omega=0\.0, mapping\.max_input_size=0, mapping\.max_ou"):
        profile_of(FloatingPointPreset())
    preset = StandardHWATrainingPreset()
    with pytest.raises(
        ValueError,
        match=r"no profile has mapping\.weight_scaling_columnwise=True, "
        r"mapping\.max_output_size=0, forward\.ir_drop=1\.0: change",
    ):
        profile_of(preset)
    preset.mapping.weight_scaling_columnwise = False
    preset.mapping.max_output_size = 512
    preset.forward.ir_drop = 0.0
    assert profile_of(preset) == Profile(
        ADC(8, range=10.0),
        WeightNoise(0.0175, "pcm_read", "per_mvm"),
        PCM(compensation="global"),
        Clipping("fixed_value", fixed_value=1.0),
        DAC(8, range=3.0),
        OutputNoise(0.04),
    )


class OwnCompensation(BaseDriftCompensation):
    def __str__(self) -> str:
        return "OwnCompensation()"


def changed(**settings: Any) -> TorchInferenceRPUConfig:
    """A configuration of everything that a profile has, but for some settings by dotted name."""
    memory = PCM(compensation="global")
    profile = Profile(ADC(8, range=9.0), None, memory, dac=DAC(6), out_noise=OutputNoise())
    config = rpu_config(profile)
    for name, value in settings.items():
        *path, last = name.split("__")
        part: Any = config
        for one in path:
            part = getattr(part, one)
        setattr(part, last, value)
    return config


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"forward__inp_noise": 0.01}, "forward.inp_noise=0.01"),
        ({"forward__ir_drop": 1.0}, "forward.ir_drop=1.0"),
        ({"forward__inp_sto_round": True}, "forward.inp_sto_round=True"),
        ({"forward__out_noise_std": 0.3}, "forward.out_noise_std=0.3"),
        ({"forward__out_scale": 2.0}, "forward.out_scale=2.0"),
        ({"forward__r_series": 0.1}, "forward.r_series=0.1"),
        ({"forward__inp_res": 1 / 100}, "forward.inp_res=0.01"),
        ({"forward__inp_bound": 0.5}, "forward.inp_bound=0.5"),
        ({"forward__out_bound": -1.0}, "forward.out_bound=-1.0"),
        ({"forward__out_res": 2.0**30}, f"forward.out_res={2.0**30}"),
        ({"forward__noise_management": NoiseManagementType.MAX},
         "forward.noise_management=MAX"),
        ({"pre_post__input_range__enable": True},
         "forward.noise_management=ABS_MAX with pre_post.input_range.enable=True"),
        ({"forward__out_res": -1.0}, "forward.out_bound=9.0 without forward.out_res"),
        ({"forward__is_perfect": True, "pre_post__input_range__enable": True},
         "pre_post.input_range.enable=True with forward.is_perfect=True"),
        ({"mapping__digital_bias": False}, "mapping.digital_bias=False"),
        ({"mapping__max_input_size": 256}, "mapping.max_input_size=256"),
        ({"noise_model__t_0": 1.0}, "noise_model.t_0=1.0"),
        ({"noise_model": StateIndependentNoiseModel()},
         "noise_model=StateIndependentNoiseModel (of a kind that no memory here has)"),
        ({"drift_compensation": OwnCompensation()}, "drift_compensation=OwnCompensation()"),
        ({"clip__type": WeightClipType.AVERAGE_CHANNEL_MAX}, "clip.type=AVERAGE_CHANNEL_MAX"),
        ({"modifier__type": WeightModifierType.ADD_NORMAL, "modifier__enable_during_test": True},
         "modifier.enable_during_test=True with modifier.type=ADD_NORMAL"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_settings_without_a_counterpart_are_named(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="no profile has") as refused:
        profile_of(changed(**settings))
    assert str(refused.value) == (
        f"no profile has {named}: change these settings, or give bridge.program(model, rpu_config) "
        "the configuration as it is"
    )


def test_all_of_them_are_named_at_once() -> None:
    config = changed(
        forward__inp_noise=0.01,
        mapping__weight_scaling_omega=0.5,
        noise_model=PCMLikeNoiseModel(prog_coeff=[1.0, 0.0, 0.0]),
    )
    wanted = r"omega=0\.5, forward\.inp_noise=0\.01, noise_model\.prog_coeff=\[1\.0, 0\.0, 0\.0\]"
    with pytest.raises(ValueError, match=wanted):
        profile_of(config)


def test_settings_of_training_are_left_aside() -> None:
    config = changed(
        modifier__type=WeightModifierType.ADD_NORMAL,
        modifier__std_dev=0.1,
        backward__is_perfect=False,
        mapping__learn_out_scaling=True,
    )
    assert profile_of(config) == profile_of(changed())


def test_other_configurations() -> None:
    with pytest.raises(ValueError, match=r"QuantizedTorchInferenceTile.*QuantizedTileModuleArray"):
        profile_of(QuantizedTorchInferenceRPUConfig())
    with pytest.raises(ValueError, match=r"TorchSimulatorTileIRDropT.*IOParametersIRDropT.*ir_dro"):
        profile_of(TorchInferenceRPUConfigIRDropT())
    with pytest.raises(ValueError, match="SingleRPUConfig does not describe inference"):
        profile_of(SingleRPUConfig())  # type: ignore[arg-type]


def test_a_configuration_and_its_profile_are_one_chip() -> None:
    """AIHWKit's own configuration of a converter chip, programmed as it is and as its profile."""
    config = changed(forward__out_noise=0.0, forward__out_bound=6.0)
    model = single(nn.Linear(30, 8))
    x = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    as_it_is = program(model, config, seed=3, t_inference=20.0)
    as_profile = program(model, profile_of(config), seed=3)
    torch.testing.assert_close(as_it_is(x, range(50)), as_profile(x, range(50)))
    assert math.isfinite(float(as_profile(x, range(50)).std()))


def test_the_configuration_of_no_memory_programs_exactly() -> None:
    model = single(nn.Linear(30, 8))
    x = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    chip = program(model, rpu_config(Profile()), seed=0, t_inference=3600.0)
    torch.testing.assert_close(chip(x, range(5)), model(x))
