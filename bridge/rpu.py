"""AIHWKit's configuration of a hardware profile."""

import math

from aihwkit.inference import PCMLikeNoiseModel
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
)

from bridge.profiles import Profile

TILE_SIZE = 512
"""Rows and columns of a crossbar tile; larger layers are split evenly."""


def rpu_config(profile: Profile) -> TorchInferenceRPUConfig:
    """AIHWKit's configuration of a profile, for its pure PyTorch tile.

    Biases are digital, each tile's largest weight is mapped to 1, inputs are not quantised and are
    scaled per input vector by their largest magnitude, and nothing that couples samples of a batch
    is on. Weight noise is not part of it: the tile has none (see `bridge.noise`).

    A calibrated ADC range is NaN here, so that a tile run without calibration gives NaN.
    """
    config = TorchInferenceRPUConfig()
    config.mapping = MappingParameter(
        digital_bias=True,
        weight_scaling_omega=1.0,
        weight_scaling_columnwise=False,
        max_input_size=TILE_SIZE,
        max_output_size=TILE_SIZE,
    )
    config.forward = IOParameters(
        is_perfect=profile.adc is None,
        inp_res=-1.0,
        inp_noise=0.0,
        out_noise=0.0,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    if profile.adc is not None:
        config.forward.out_res = 1 / (2**profile.adc.bits - 2)
        adc_range = profile.adc.range
        config.forward.out_bound = math.nan if adc_range == "calibrated" else adc_range
    config.drift_compensation = None
    if profile.pcm is not None:
        config.noise_model = PCMLikeNoiseModel(
            g_max=profile.pcm.g_max,
            prog_noise_scale=profile.pcm.programming_noise,
            read_noise_scale=profile.pcm.read_noise,
            drift_scale=profile.pcm.drift,
        )
    if profile.clipping is not None:
        config.clip = WeightClipParameter(
            type=WeightClipType.LAYER_GAUSSIAN, sigma=profile.clipping.sigma
        )
    return config
