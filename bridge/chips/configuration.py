"""AIHWKit's configuration of a hardware profile."""

import math
from typing import Any

from aihwkit.inference import PCMLikeNoiseModel, ReRamWan2022NoiseModel
from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.converter.base import BaseConductanceConverter
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import (
    IOParameters,
    MappingParameter,
    WeightClipParameter,
)
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightClipType,
    WeightNoiseType,
)
from torch import Tensor

from bridge.chips.memories import PCM, Converter, Hermes, MappedPairs, Memory, Pairs, ReRamWan2022
from bridge.chips.noise import MvmNoiseTile
from bridge.chips.profiles import Clipping, Profile

TILE_SIZE = 512
"""Rows and columns of a crossbar tile; larger layers are split evenly."""


def rpu_config(profile: Profile) -> TorchInferenceRPUConfig:
    """AIHWKit's configuration of a profile, for its pure PyTorch tile.

    Biases are digital, each tile's largest weight is mapped to 1, inputs are not quantised and are
    scaled per input vector by their largest magnitude, and nothing that couples samples of a batch
    is on. Noise that is frozen into the weights is not part of it (see `bridge.chips.noise`).

    A calibrated ADC range is NaN here, so that a tile run without calibration gives NaN.
    """
    config = TorchInferenceRPUConfig(simulator_tile_class=MvmNoiseTile)
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=False,
        max_input_size=TILE_SIZE,
        max_output_size=TILE_SIZE,
    )
    noisy = profile.wnoise is not None and profile.wnoise.drawn == "per_mvm"
    config.forward = IOParameters(
        is_perfect=profile.adc is None and not noisy,
        inp_res=-1.0,
        inp_noise=0.0,
        out_noise=0.0,
        out_res=-1.0,
        out_bound=-1.0,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    if profile.adc is not None:
        config.forward.out_res = 1 / (2**profile.adc.bits - 2)
        adc_range = profile.adc.range
        config.forward.out_bound = math.nan if adc_range == "calibrated" else adc_range
    if profile.wnoise is not None and noisy:
        config.forward.w_noise = profile.wnoise.sigma
        config.forward.w_noise_type = {
            "constant": WeightNoiseType.ADDITIVE_CONSTANT,
            "pcm_read": WeightNoiseType.PCM_READ,
        }[profile.wnoise.kind]
    config.drift_compensation = None
    if profile.memory is not None:
        config.noise_model = noise_model(profile.memory)
        config.drift_compensation = drift_compensation(profile.memory)
    config.clip = clip_parameter(profile.clipping)
    return config


def clip_parameter(clipping: Clipping) -> WeightClipParameter:
    """AIHWKit's clipping; its fixed value would bound "layer_gaussian" too."""
    return WeightClipParameter(
        type=WeightClipType[clipping.type.upper()],
        sigma=clipping.sigma,
        fixed_value=clipping.fixed_value if clipping.type == "fixed_value" else -1.0,
    )


def noise_model(memory: Memory) -> BaseNoiseModel:
    """AIHWKit's noise model of a memory."""
    if isinstance(memory, PCM | Hermes):
        g_max = memory.largest_conductance if isinstance(memory, Hermes) else memory.g_max
        settings = {
            "g_max": memory.g_max or g_max,
            "g_converter": conductance_converter(memory.converter, memory.g_max or g_max),
            "prog_noise_scale": memory.programming_noise,
            "read_noise_scale": memory.read_noise,
            "drift_scale": memory.drift,
        }
        if isinstance(memory, Hermes):
            return HermesNoiseModel(num_devices=memory.devices, **settings)
        return PCMLikeNoiseModel(**settings)
    if isinstance(memory, ReRamWan2022):
        return _ReRamWan2022(
            g_converter=conductance_converter(memory.converter, memory.g_max),
            noise_scale=memory.noise,
        )
    return ReRamCMONoiseModel(
        g_max=memory.g_max,
        g_min=memory.g_min,
        prog_noise_scale=memory.programming_noise,
        read_noise_scale=memory.read_noise,
        drift_scale=memory.drift,
        acceptance_range=memory.acceptance,
    )


class _ReRamWan2022(ReRamWan2022NoiseModel):
    """AIHWKit's model in the units it was fitted in; 1.1 and 1.2 get two of them wrong.

    The polynomials' reference conductance is 40 uS, not g_max. And the noise of later times is
    around the target conductances, so that these are turned back into weights with the scale of the
    target weights; AIHWKit takes that of the programmed ones, whose largest is some 10 % larger.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.coeff_g_max_reference = 40.0

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Programmed weights; the target conductances, and behind them the target weights."""
        programmed, targets = super().apply_programming_noise(weights)
        return programmed, [*targets, weights]

    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor], t_inference: float
    ) -> Tensor:
        """Weights at a later time; AIHWKit's arguments."""
        *targets, target_weights = drift_noise_parameters
        return super().apply_drift_noise(target_weights, targets, t_inference)


def conductance_converter(converter: Converter, g_max: float) -> BaseConductanceConverter:
    """AIHWKit's converter from weights to conductances in microsiemens."""
    settings = {"g_max": g_max, "g_min": converter.g_min}
    if isinstance(converter, Pairs):
        return NPairConductanceConverter(f_lst=list(converter.factors), **settings)
    if isinstance(converter, MappedPairs):
        conductances = [list(values) for values in converter.conductances]
        return CustomPairConductanceConverter(list(converter.factors), conductances, **settings)
    return SinglePairConductanceConverter(**settings)


def drift_compensation(memory: Memory) -> BaseDriftCompensation | None:
    """AIHWKit's compensation of a memory's drift."""
    match memory.compensation:
        case "global":
            return GlobalDriftCompensation()
        case "global_exact":
            return GlobalDriftCompensationWithExactReference()
        case "per_column":
            return PerColumnDriftCompensation()
    return None
