"""From a torch network to AIHWKit's analog layers, and what cannot be converted."""

from collections.abc import Callable, Sequence
from copy import deepcopy

import torch
from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import NoiseManagementType
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import nn

from bridge.chips.beside_tiles import fixed_tensors
from bridge.chips.configuration import clip_parameter, rpu_config
from bridge.chips.dac import leave_out_calibrated
from bridge.chips.digital_products import (
    digital_products,
    refuse_digital_products,
    remember_digital_products,
)
from bridge.chips.equivalents import join_tied, paths_of_equivalents, with_equivalents
from bridge.chips.evaluation import require_eval
from bridge.chips.examination import forget_examination
from bridge.chips.mappable import refuse_unmappable, refuse_unreadable
from bridge.chips.original import forget_original, keep_original
from bridge.chips.plain_layers import (
    fold_parametrizations,
    is_mapped,
    refuse_replaced_forwards,
    refuse_untraceable_hooks,
    separate_copy_of,
    state_geometry,
    staying_digital,
    without_compilation,
    without_fast_paths,
)
from bridge.chips.profiles import Profile
from bridge.chips.streams import stream
from bridge.chips.tiles import (
    Tile,
    digital_layer,
    named_layers,
    named_tiles,
    on_tiles,
    replace_layer,
)
from bridge.chips.weight_noise import MvmNoiseTile, largest_target


def convert(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    digital_layers: Sequence[str],
    *,
    seed: int,
    strict: bool = False,
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network on tiles with its target weights, clipped and rescaled; see `program`.

    Returns:
      The network, and the paths of what stays digital, given or by what it is.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"a chip is made of a torch module; got {type(model).__name__}")
    if (dtype := torch.get_default_dtype()) != torch.float32:
        raise ValueError(
            f"torch makes new tensors {dtype}, and chips and AIHWKit's tiles are float32: "
            "torch.set_default_dtype(torch.float32) before a chip is made, and while it runs"
        )
    if isinstance(digital_layers, str):
        raise ValueError(f"digital_layers is a list of paths: give [{digital_layers!r}]")
    left = staying_digital(model, digital_layers)
    refuse_unreadable(model, left)
    require_eval(model, "the model")
    paths = [name for name, _ in model.named_modules(remove_duplicate=False)]
    tensors = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    tensors |= {name for name, _ in fixed_tensors(model)}
    known = {*paths, *tensors, *paths_of_equivalents(model)} - {""}
    if unknown := [name for name in digital_layers if name not in known]:
        raise ValueError(f"the model has no layers {', '.join(map(repr, unknown))}")
    refuse_untraceable_hooks(model)
    refuse_replaced_forwards(model, left)
    original, model = model, without_compilation(separate_copy_of(model).cpu(), left)
    forget_examination(model)
    forget_original(model)
    if named_tiles(model):
        blocks = [name for name in digital_layers if name not in tensors]
        analog = _reconfigure(model, profile, blocks, left)
    elif profile is None:
        raise ValueError("the model is not on AIHWKit tiles: give a profile or an RPUConfig")
    else:
        kept = digital_products(model, left)
        if strict:
            refuse_digital_products(kept)
        digital_layers = [*digital_layers, *kept]
        left = staying_digital(model, digital_layers)
        model = with_equivalents(model, left)
        model = fold_parametrizations(model, left)
        left = staying_digital(model, digital_layers)  # of those in their place too
        refuse_unmappable(model, left)
        state_geometry(model, left)
        join_tied(model, left)
        targets = {
            name: layer.get_parameter("weight").detach()
            for name, layer in model.named_modules()
            if is_mapped(layer) and not left(name)
        }
        config = rpu_config(profile) if isinstance(profile, Profile) else profile
        if not isinstance(config, InferenceRPUConfig):
            raise ValueError(
                f"{type(config).__name__} does not describe inference; give a Profile, such as "
                'PROFILES["adc+pcm"], or AIHWKit\'s TorchInferenceRPUConfig or InferenceRPUConfig'
            )
        # New layers draw weights, which conversion then replaces, and what varies between outputs.
        with stream(seed, "conversion"):
            # Not wrapped: AIHWKit caches its wrapper classes by name and would mix up two "Net"s.
            analog = _convert_to_analog(model, config, left)
        remember_digital_products(analog, kept, strict)
        keep_original(analog, original, targets)
    analog.eval().requires_grad_(False)
    without_fast_paths(analog, named_layers(analog).values())
    if isinstance(profile, Profile):
        for tile in named_tiles(analog).values():
            leave_out_calibrated(tile)
            _set_to_profile(tile, profile)
    return analog, tuple(digital_layers)


def _convert_to_analog(
    model: nn.Module, config: InferenceRPUConfig, left: Callable[[str], bool]
) -> nn.Module:
    """AIHWKit's `convert_to_analog`, but a layer of several names becomes one layer on tiles."""
    layers = {name: layer for name, layer in model.named_modules() if is_mapped(layer)}
    for name, layer in layers.items():
        if left(name):
            continue
        try:
            analog = on_tiles(layer, deepcopy(config))
        except RuntimeError as error:
            if isinstance(config, TorchInferenceRPUConfig):
                raise
            raise ValueError(
                f"AIHWKit's compiled tile, which {type(config).__name__} asks for, does not work "
                f"with PyTorch {torch.__version__} here ({error}); use TorchInferenceRPUConfig, or "
                "AIHWKit 1.2 on Python 3.12"
            ) from error
        model = replace_layer(model, name, analog)
    return model


def _reconfigure(
    analog: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    digital_layers: Sequence[str],
    left: Callable[[str], bool],
) -> nn.Module:
    """A network that is on tiles already, some of its layers made digital again."""
    if isinstance(profile, InferenceRPUConfig):
        raise ValueError(
            "the model is on AIHWKit tiles with a configuration of its own: give a Profile, or "
            "None to take it as it is"
        )
    for path in digital_layers:
        if not named_layers(analog.get_submodule(path)):
            raise ValueError(f"{path} has no layer on tiles that could stay digital")
    for name, layer in named_layers(analog).items():
        if left(name):
            analog = replace_layer(analog, name, digital_layer(layer))
    if not named_tiles(analog):
        raise ValueError("every layer is digital: leave some on tiles")
    for name, tile in named_tiles(analog).items():
        if tile.programmed_weights is not None:
            tile.tile.set_weights(tile.reference_combined_weights)
            tile.programmed_weights = tile.drift_noise_parameters = tile.drift_baseline = None
            tile.alpha = torch.ones(1)
        tile.reference_combined_weights = None
        if isinstance(profile, Profile) and profile.fixed_inputs and tile.input_range is not None:
            raise ValueError(
                f"tile {name} has an input range of its own, {float(tile.input_range):g}, which a "
                'DAC takes in place of another: give DAC(range="max")'
            )
        if profile is not None and type(tile) is not TorchInferenceTile:
            raise ValueError(
                f"tile {name} is a {type(tile).__name__}: a profile needs a network converted with "
                "TorchInferenceRPUConfig; or give None to take its own configuration"
            )
    return analog


def _set_to_profile(tile: Tile, profile: Profile) -> None:
    """Gives a tile the profile's settings and clips its weights; geometry and scales stay."""
    wanted, config = rpu_config(profile), tile.rpu_config
    config.forward = wanted.forward
    if tile.input_range is not None:
        # The range takes the place of the largest magnitude of each input vector.
        config.forward.noise_management = NoiseManagementType.NONE
    config.noise_model, config.drift_compensation = wanted.noise_model, wanted.drift_compensation
    if type(tile.tile) is TorchSimulatorTile:
        simulator = MvmNoiseTile(tile.tile.x_size, tile.tile.d_size, config)
        simulator.set_weights(tile.tile.get_weights())
        tile.tile = simulator.eval().requires_grad_(False)
    tile.tile.set_config(config)
    if profile.clipping.type != "none":
        clip = clip_parameter(profile.clipping)
        clip.fixed_value *= float(largest_target(tile))
        tile.tile.clip_weights(clip)
        tile.remap_weights(weight_scaling_omega=1.0)
    # AIHWKit's unit of weights is 1, ours the largest weight.
    config.forward.out_noise *= float(largest_target(tile))
    if config.forward.w_noise > 0 and profile.wnoise is not None:
        largest = float(largest_target(tile))
        config.forward.w_noise *= largest if profile.wnoise.kind == "constant" else largest**0.5
