"""The profile of a configuration of AIHWKit's."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from aihwkit.inference.compensation.drift import (
    GlobalDriftCompensation,
    GlobalDriftCompensationWithExactReference,
    PerColumnDriftCompensation,
)
from aihwkit.inference.converter.conductance import (
    CustomPairConductanceConverter,
    DualPairConductanceConverter,
    NPairConductanceConverter,
    SinglePairConductanceConverter,
)
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.parameters import IOParameters, WeightClipParameter
from aihwkit.simulator.parameters.enums import (
    NoiseManagementType,
    WeightClipType,
    WeightModifierType,
    WeightNoiseType,
)
from aihwkit.simulator.tiles.array import TileModuleArray
from aihwkit.simulator.tiles.inference import InferenceTile
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile

from bridge.checks import require_finite
from bridge.chips.configuration import ExactModel, resolution
from bridge.chips.execution.fast_tiles import not_neutral
from bridge.chips.memories.cmo import ReRamCMOModel
from bridge.chips.memories.conductances import MappedPairs, Pairs, SinglePair, WeightMapping
from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.protocol import Compensation, Memory
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from bridge.chips.memories.wan2022 import ReRamWan2022Model
from bridge.chips.profiles import (
    ADC,
    DAC,
    TILE_SIZE,
    Clipping,
    OutputNoise,
    Profile,
    WeightNoise,
)
from bridge.chips.weight_noise import MvmNoiseTile

_KINDS: dict[WeightNoiseType, Any] = {
    WeightNoiseType.ADDITIVE_CONSTANT: "constant",
    WeightNoiseType.PCM_READ: "pcm_read",
}
_COMPENSATIONS: dict[type, Compensation] = {
    GlobalDriftCompensation: "global",
    GlobalDriftCompensationWithExactReference: "global_exact",
    PerColumnDriftCompensation: "per_column",
}
_CLIPPING: dict[WeightClipType, Any] = {
    WeightClipType.NONE: "none",
    WeightClipType.LAYER_GAUSSIAN: "layer_gaussian",
    WeightClipType.FIXED_VALUE: "fixed_value",
}


def profile_of(rpu_config: InferenceRPUConfig, *, t_inference: float | None = None) -> Profile:
    """The profile that has the settings of a configuration of AIHWKit's.

    Counterparts: `forward.inp_res` of a DAC, whose range is `pre_post.input_range.init_value` where
    that is enabled; `out_res` and `out_bound` of an ADC; `out_noise`; `w_noise` of weight noise
    drawn per operation; `noise_model` and `drift_compensation` of a memory; `clip`. A range of NaN
    is a calibrated one.

    Left aside is what a converted network in evaluation does not use: `backward`, `update`,
    `modifier` (unless it is enabled during tests), `remap`, learned output scales, and how input
    ranges are learned. `clip` is taken over, though AIHWKit clips at training steps alone and
    `Profile.clipping` ahead of programming. AIHWKit's ReRAM models get the corrections of
    `ReRamWan2022` and `ReRamCMO`. Not in a configuration: weight noise that is frozen into a chip,
    a calibrated range's percentile and headroom, the time of inference, and settings without
    effect; these have their defaults.

    Args:
      rpu_config: an `InferenceRPUConfig` or `TorchInferenceRPUConfig`, or one of AIHWKit's presets.
      t_inference: seconds from programming to inference, of the memory; None for its default.

    Raises:
      ValueError: settings without a counterpart, all named with their values; they need
        `program(model, rpu_config)`, which takes a configuration as it is.
    """
    if not isinstance(rpu_config, InferenceRPUConfig):
        raise ValueError(
            f"{type(rpu_config).__name__} does not describe inference; give AIHWKit's "
            "TorchInferenceRPUConfig or InferenceRPUConfig"
        )
    left: list[str] = []
    _check_tiles(rpu_config, left)
    parts = _forward(rpu_config, left)
    memory = _memory(rpu_config, left)
    clipping = _clipping(rpu_config.clip, left)
    if left:
        raise ValueError(
            f"no profile has {', '.join(left)}: change these settings, or give "
            "bridge.program(model, rpu_config) the configuration as it is"
        )
    if memory is not None and t_inference is not None:
        seconds: Any = {"t_inference": require_finite("t_inference", t_inference)}
        memory = replace(memory, **seconds)
    return Profile(memory=memory, clipping=clipping, **parts)


def _check_tiles(config: InferenceRPUConfig, left: list[str]) -> None:
    """Names settings of tiles, of the mapping of weights and of what surrounds a tile."""
    mapping = config.mapping
    wanted = {
        "digital_bias": True,
        "weight_scaling_omega": 1.0,
        "weight_scaling_columnwise": False,
        "max_input_size": TILE_SIZE,
        "max_output_size": TILE_SIZE,
    }
    found = {name: getattr(mapping, name) for name in wanted}
    left += [f"mapping.{name}={found[name]}" for name in wanted if found[name] != wanted[name]]
    classes = {
        "tile_class": (InferenceTile, TorchInferenceTile),
        "simulator_tile_class": (TorchSimulatorTile, MvmNoiseTile),
        "tile_array_class": (TileModuleArray,),
    }
    for name, known in classes.items():
        kind = getattr(config, name, known[0])
        if kind not in known:
            left.append(f"{name}={kind.__name__}")
    periphery = getattr(config.pre_post, "periph_quant", None)
    if periphery is not None and periphery.n_bits > 0:
        left.append(f"pre_post.periph_quant.n_bits={periphery.n_bits}")
    if getattr(config, "act_quant_config", None) is not None:
        left.append("act_quant_config")
    modifier = config.modifier
    unchanged = (WeightModifierType.NONE, WeightModifierType.COPY)
    if modifier.enable_during_test and modifier.type not in unchanged:
        left.append(f"modifier.enable_during_test=True with modifier.type={modifier.type.name}")


def _forward(config: InferenceRPUConfig, left: list[str]) -> dict[str, Any]:
    """The parts of a profile that a forward pass shows."""
    forward, ranges = config.forward, config.pre_post.input_range
    if forward.is_perfect:
        if ranges.enable:
            left.append("pre_post.input_range.enable=True with forward.is_perfect=True")
        return {}
    if {one.name for one in fields(forward)} > {one.name for one in fields(IOParameters)}:
        left.append(f"forward of type {type(forward).__name__}")
    unit = forward.noise_management
    scaled = unit == NoiseManagementType.CONSTANT and forward.nm_thres in (0.0, 1.0)
    plain = replace(forward, nm_thres=0.0) if scaled else forward
    left += not_neutral(plain)
    parts: dict[str, Any] = {}
    if forward.inp_res > 0:
        bits = _bits("inp_res", forward.inp_res, left)
        if forward.inp_bound != 1:
            left.append(f"forward.inp_bound={forward.inp_bound}")
        if unit == NoiseManagementType.ABS_MAX and not ranges.enable:
            parts["dac"] = DAC(bits)
        elif unit == NoiseManagementType.NONE or scaled:
            value = ranges.init_value if ranges.enable else 1.0
            parts["dac"] = DAC(bits, _range("pre_post.input_range.init_value", value, left))
        else:
            also = " with pre_post.input_range.enable=True" if ranges.enable else ""
            left.append(f"forward.noise_management={unit.name}{also}")
    else:
        if ranges.enable:
            left.append("pre_post.input_range.enable=True without forward.inp_res")
        if unit != NoiseManagementType.ABS_MAX:
            left.append(f"forward.noise_management={unit.name} without forward.inp_res")
        elif 0 < forward.inp_bound < 1:
            left.append(f"forward.inp_bound={forward.inp_bound}")
    if forward.out_res > 0:
        bits = _bits("out_res", forward.out_res, left)
        parts["adc"] = ADC(bits, _range("forward.out_bound", forward.out_bound, left))
    elif 0 < forward.out_bound < math.inf:
        left.append(f"forward.out_bound={forward.out_bound} without forward.out_res")
    if forward.out_noise > 0:
        parts["out_noise"] = OutputNoise(forward.out_noise)
    if forward.w_noise_type in _KINDS:
        kind = _KINDS[forward.w_noise_type]
        parts["wnoise"] = WeightNoise(max(forward.w_noise, 0.0), kind, "per_mvm")
    elif forward.w_noise_type != WeightNoiseType.NONE:
        left.append(f"forward.w_noise_type={forward.w_noise_type.name}")
    return parts


def _bits(name: str, value: float, left: list[str]) -> int:
    """Bits of a converter's resolution; any where it has no such bits."""
    steps = value if value > 1 else 1 / value
    bits = round(math.log2(steps + 2))
    given = 1 / value if value > 1 else value
    if not 2 <= bits < 24 or not math.isclose(given, resolution(bits), rel_tol=1e-6):
        left.append(f"forward.{name}={value}")
        return 2
    return bits


def _range(name: str, value: float, left: list[str]) -> Any:
    """A converter's range; any where it has none."""
    if math.isnan(value):
        return "calibrated"
    if not 0 < value < math.inf:
        left.append(f"{name}={value}")
        return 1.0
    return value


def _memory(config: InferenceRPUConfig, left: list[str]) -> Memory | None:
    """The memory of a noise model, its drift compensated as the configuration says."""
    model, chosen = config.noise_model, config.drift_compensation
    compensation = None
    if chosen is not None:
        compensation = _COMPENSATIONS.get(type(chosen))
        if compensation is None:
            left.append(f"drift_compensation={chosen}")
    if type(model) is ExactModel:
        if chosen is not None:
            left.append(f"drift_compensation={chosen} without a memory")
        return None
    make = _MEMORIES.get(type(model))
    try:
        if make is None:
            raise ValueError("of a kind that no memory here has")
        memory: Memory = make(model)
    except ValueError as error:
        left.append(f"noise_model={type(model).__name__} ({error})")
        return None
    differing = _differing(model, memory.noise_model())
    left += [f"noise_model.{name}={getattr(model, name)}" for name in differing]
    its: Any = {"compensation": compensation}
    return replace(memory, **its)


def _differing(model: Any, made: Any) -> list[str]:
    """Attributes in which a noise model differs from the one that a memory makes."""
    found = [
        name
        for name in vars(model)
        if name != "g_converter" and vars(model)[name] != vars(made).get(name)
    ]
    # What a conversion leaves behind in a converter is no setting.
    mine, its = (
        {name: value for name, value in vars(one.g_converter).items() if name != "scale_ratio"}
        for one in (model, made)
    )
    return found if mine == its else [*found, "g_converter"]


def _mapping(model: Any) -> WeightMapping:
    converter = model.g_converter
    if type(converter) is SinglePairConductanceConverter:
        return SinglePair(converter.g_min)
    if type(converter) in (NPairConductanceConverter, DualPairConductanceConverter):
        return Pairs(tuple(converter.f_lst), converter.g_min)
    if type(converter) is CustomPairConductanceConverter:
        lists = tuple(tuple(one) for one in converter.g_lst)
        return MappedPairs(tuple(converter.f_lst), lists, converter.g_min)
    raise ValueError(f"with {type(converter).__name__}")


def _factors(model: Any) -> dict[str, Any]:
    return {
        "programming_noise": model.prog_noise_scale,
        "drift": model.drift_scale,
        "read_noise": model.read_noise_scale,
    }


def _hermes(model: Any) -> Hermes:
    memory = Hermes(model.num_devices, mapping=_mapping(model), **_factors(model))
    return (
        memory if model.g_max == memory.largest_conductance else replace(memory, g_max=model.g_max)
    )


def _cmo(model: Any) -> ReRamCMO:
    limits = {"g_max": model.g_max, "g_min": model.g_min}
    return ReRamCMO(acceptance=model.acceptance_range, **limits, **_factors(model))


def _wan2022(model: Any) -> ReRamWan2022:
    return ReRamWan2022(model.g_max, noise=model.noise_scale, mapping=_mapping(model))


_MEMORIES: dict[type, Callable[[Any], Any]] = {
    PCMLikeNoiseModel: lambda model: PCM(model.g_max, mapping=_mapping(model), **_factors(model)),
    HermesNoiseModel: _hermes,
    ReRamWan2022Model: _wan2022,
    ReRamWan2022NoiseModel: _wan2022,
    ReRamCMOModel: _cmo,
    ReRamCMONoiseModel: _cmo,
}


def _clipping(clip: WeightClipParameter, left: list[str]) -> Clipping:
    kind = _CLIPPING.get(clip.type)
    if kind is None:
        left.append(f"clip.type={clip.type.name}")
        return Clipping()
    if kind == "layer_gaussian" and clip.fixed_value > 0:
        left.append(f"clip.fixed_value={clip.fixed_value} with clip.type=LAYER_GAUSSIAN")
    if kind == "fixed_value" and clip.fixed_value <= 0:
        left.append(f"clip.fixed_value={clip.fixed_value} with clip.type=FIXED_VALUE")
        return Clipping()
    # A number that its kind does not read is left out: equal chips have equal profiles.
    if kind == "fixed_value":
        return Clipping(kind, fixed_value=clip.fixed_value)
    return Clipping(kind, sigma=clip.sigma) if kind == "layer_gaussian" else Clipping()
