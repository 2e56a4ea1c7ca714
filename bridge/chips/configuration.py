"""AIHWKit's configuration of a hardware profile."""

import math

from aihwkit.inference.compensation.base import BaseDriftCompensation
from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters import (
    InputRangeParameter,
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

from bridge.chips.memories.protocol import Compensation, noise_model_of
from bridge.chips.profiles import TILE_SIZE, Clipping, Profile
from bridge.chips.weight_noise import MvmNoiseTile


def rpu_config(profile: Profile) -> TorchInferenceRPUConfig:
    """AIHWKit's configuration of a profile, for its pure PyTorch tile.

    Biases are digital, each tile's largest weight is mapped to 1, inputs are scaled per input
    vector by their largest magnitude, or by a fixed input range where the DAC has one, and nothing
    that couples samples of a batch is on. `profile_of` (`bridge.chips.counterparts`) is the
    inverse. Noise that is frozen into the weights is not part of it (`bridge.chips.weight_noise`),
    nor are a calibrated range's percentile and the time of inference.

    A calibrated range is NaN here, so that a tile run without calibration gives NaN. Without a
    memory the weights are programmed exactly.
    """
    config = TorchInferenceRPUConfig(simulator_tile_class=MvmNoiseTile)
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=False,
        max_input_size=TILE_SIZE,
        max_output_size=TILE_SIZE,
    )
    noise, dac, out_noise = profile.noise_of_operations, profile.dac, profile.out_noise
    config.forward = IOParameters(
        is_perfect=all(one is None for one in (profile.adc, dac, out_noise, noise)),
        inp_res=-1.0 if dac is None else resolution(dac.bits),
        inp_noise=0.0,
        out_noise=0.0 if out_noise is None else out_noise.sigma,
        out_res=-1.0,
        out_bound=-1.0,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    if dac is not None and dac.range != "max":
        config.forward.noise_management = NoiseManagementType.NONE
        value = math.nan if dac.range == "calibrated" else dac.range
        config.pre_post.input_range = InputRangeParameter(
            enable=True, learn_input_range=False, init_value=value, init_from_data=0
        )
    if profile.adc is not None:
        config.forward.out_res = resolution(profile.adc.bits)
        adc_range = profile.adc.range
        config.forward.out_bound = math.nan if adc_range == "calibrated" else adc_range
    if noise is not None:
        config.forward.w_noise = noise.sigma
        config.forward.w_noise_type = {
            "constant": WeightNoiseType.ADDITIVE_CONSTANT,
            "pcm_read": WeightNoiseType.PCM_READ,
        }[noise.kind]
    config.drift_compensation = None
    config.noise_model = ExactModel()
    if profile.memory is not None:
        config.noise_model = noise_model_of(profile.memory)
        if not isinstance(config.noise_model, BaseNoiseModel):
            raise ValueError(
                f"{type(profile.memory).__name__}.noise_model() must return a noise model of "
                f"AIHWKit's (BaseNoiseModel); got {config.noise_model!r}"
            )
        config.drift_compensation = drift_compensation(profile.memory.compensation)
    config.clip = clip_parameter(profile.clipping)
    return config


def resolution(bits: int) -> float:
    """AIHWKit's resolution of a converter of `2**bits - 1` symmetric codes."""
    return 1 / (2**bits - 2)


class ExactModel(BaseNoiseModel):
    """No devices: weights stay what they were meant to be."""

    def apply_programming_noise(self, weights: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The weights, and nothing of any device."""
        return weights.clone(), []

    def apply_drift_noise(
        self, weights: Tensor, drift_noise_parameters: list[Tensor], t_inference: float
    ) -> Tensor:
        """The weights."""
        return weights.clone()


def clip_parameter(clipping: Clipping) -> WeightClipParameter:
    """AIHWKit's clipping; its fixed value would bound "layer_gaussian" too."""
    return WeightClipParameter(
        type=WeightClipType[clipping.type.upper()],
        sigma=clipping.sigma,
        fixed_value=clipping.fixed_value if clipping.type == "fixed_value" else -1.0,
    )


def drift_compensation(compensation: Compensation | None) -> BaseDriftCompensation | None:
    """AIHWKit's compensation of a memory's drift."""
    match compensation:
        case None:
            return None
        case "global":
            return GlobalDriftCompensation()
        case "global_exact":
            return GlobalDriftCompensationWithExactReference()
        case "per_column":
            return PerColumnDriftCompensation()
    raise ValueError(
        "a memory's compensation must be global, global_exact, per_column or None, got "
        f"{compensation!r}"
    )
