"""Chips to and from disk: tensors in a safetensors file, everything else as JSON in its header."""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields, is_dataclass
from difflib import unified_diff
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from aihwkit.optim.context import AnalogContext
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bridge.chips.behaviour import (
    behaviour,
    changed_layers,
    inputs_like,
    inputs_of,
    keep_inputs,
    other_code,
    other_layers,
)
from bridge.chips.contents import add_content, from_parts, plain_parts
from bridge.chips.conversion import convert
from bridge.chips.dac import set_input_ranges
from bridge.chips.execution.changes import remember_tiles
from bridge.chips.execution.executable import Executable
from bridge.chips.mappable import is_mask, with_values
from bridge.chips.original import forget_original
from bridge.chips.profiles import SHIPPED, Profile, from_json, to_json
from bridge.chips.programming import Chip, outside_inference_mode
from bridge.chips.streams import SampleNoise, root_seed, stream
from bridge.chips.tiles import Tile, digital_network, named_layers, named_tiles
from bridge.weights.files import load_weights, save_weights
from bridge.weights.wrappers import wrapped_as
from jaxcurv.settings import plain

_KIND = "analog chip"
_TILE_TENSORS = ("reference_combined_weights", "programmed_weights", "drift_baseline")


def save_chip(path: str | os.PathLike[str], chip: Chip) -> None:
    """Writes a chip to a safetensors file, atomically; `load_chip` gives the same logits.

    It holds what was programmed, the drift of each device and the weights as they are now, so that
    the chip can also be aged further; not the network's code, that is what the layers are and what
    happens between them. By that code's digital logits on a few inputs, noise and ramps of the
    shape and range that the chip has seen, `load_chip` knows it again. For a chip that has seen
    none, such inputs are guessed by its first layer, or `chip.examine(images)` shows it some.

    Args:
      path: the file; its folder must exist.
      chip: on any engine.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: what the file would not hold: a memory of your own that is not made again from
        its fields, a noise model that keeps what it draws elsewhere than in the float32 tensors
        that `apply_programming_noise` returns, or that is printed by its place in memory, a
        quantised tensor, or what was changed in the chip since it was made.
    """
    _require_storable(chip)
    tensors, masks, infinite = {}, set(), _masks(chip.analog)
    for name, tensor in _tensors(chip.analog).items():
        for more, part in _parts(name, tensor).items():
            # Each its own: digital layers may share a parameter.
            tensors[f"{name}{more}"] = part.clone()
            if name in infinite:
                masks.add(f"{name}{more}")
    header = _header(chip) | {"code": _code(chip.analog)}
    save_weights(path, tensors, header, masks=masks)


def load_chip(
    path: str | os.PathLike[str],
    model: nn.Module,
    rpu_config: InferenceRPUConfig | None = None,
    *,
    memories: Sequence[type] = (),
) -> Chip:
    """Reads what `save_chip` wrote; runs no code from the file.

    Args:
      path: the file.
      model: the network that was programmed, in eval mode; its weights do not matter, so that it
        may be on the meta device, and it is not changed. If it had been converted by AIHWKit
        before, a network converted in the same way. Either may be within what `torch.compile`,
        `DataParallel` or `AveragedModel` wrap it in. Its layers on tiles are compared by kind and
        geometry, its tensors by name and shape, and what its code does between them, hooks and
        settings of digital layers included, by the logits on a few inputs, within 3e-5 of the
        largest and what rounding does.
      rpu_config: the configuration that was programmed with, where it was AIHWKit's own and given
        to `program`.
      memories: the class of your own memory, where it was programmed into one, and those of
        dataclasses that its fields hold.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no chip's, the model, its code or the configuration is another, or its
        memory is of a class that is not among `memories`.

    Warns:
      UserWarning: layers are others, and the logits on these inputs are the same, so that other
        inputs may tell; or the file has no logits, for no input that was tried ran when it was
        saved. Files of earlier versions are not compared at all.
    """
    with outside_inference_mode():
        return _load(path, model, rpu_config, memories)


def _load(
    path: str | os.PathLike[str],
    model: nn.Module,
    rpu_config: InferenceRPUConfig | None,
    memories: Sequence[type],
) -> Chip:
    if not Path(path).is_file():
        raise FileNotFoundError(f"no chip file at {path}")
    tensors, header = load_weights(path)
    if header.get("kind") != _KIND:
        raise ValueError(f"{path} holds no chip; write it with save_chip")
    # Within the file they lie unaligned, and PyTorch's sums there may differ in the last bit.
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    profile = None if header["profile"] is None else from_json(header["profile"], memories)
    layers = tuple(header["digital_layers"])
    if profile is None and rpu_config is None and not named_tiles(model):
        raise ValueError(
            f"{path} was programmed with a configuration of AIHWKit's own: pass it as rpu_config="
        )
    configuration = rpu_config if profile is None else profile
    model = wrapped_as(model, header["layers"], counted="n_averaged" in tensors)
    label = header.get("stream")
    root = root_seed(header["seed"], label)
    analog, _ = convert(with_values(model), configuration, layers, seed=root)
    forget_original(analog)  # whose weights need not be those of the file
    tiles = named_tiles(analog)
    geometry = _geometry(analog)
    for name in [*header["layers"], *geometry]:
        if geometry.get(name) != header["layers"].get(name):
            raise ValueError(
                f"{path} is of another network: layer {name} is {header['layers'].get(name)} there "
                f"and {geometry.get(name)} here"
            )
    if tiles.keys() != header["tiles"].keys():
        raise ValueError(
            f"{path} is of another network: its tiles are {', '.join(header['tiles'])}"
        )
    for name, tile in tiles.items():
        forward = tile.rpu_config.forward
        for setting, value in header["tiles"][name].items():
            setattr(forward, setting, value)
        tile.tile.set_weights(tensors.pop(f"{name}/weight"))
    if profile is None:
        _require_same(header["configurations"], _configurations(analog), path)
    ranges = header.get("input_ranges", {})
    set_input_ranges(analog, ranges)
    _restore(analog, tensors, path)
    remember_tiles(analog)
    if "code" in header:  # files of earlier versions have none
        _require_code(header["code"], analog, path)
    chip = Chip(
        analog,
        Executable(analog, SampleNoise(root), one_by_one=False),
        profile,
        header["seed"],
        header["t_inference"],
        header["out_bounds"],
        header["engine"],
        layers,
        header["largest_pixel"],
        ranges,
        label,
    )
    return chip.on(chip.engine)


def _require_storable(chip: Chip) -> None:
    """Refuses a chip that would not come back from its file."""
    chip.refuse_changed()
    chip.refuse_set_tiles()
    if chip.profile is not None:
        _require_remade(chip.profile)
    for name, tile in named_tiles(chip.analog).items():
        for one in tile.drift_noise_parameters or []:
            if one is not None and (
                not isinstance(one, torch.Tensor) or one.dtype != torch.float32
            ):
                raise ValueError(
                    f"a chip's file cannot hold what the noise model of tile {name} keeps of each "
                    "device: apply_programming_noise must return float32 tensors, or None, in its "
                    f"list; got {getattr(one, 'dtype', type(one).__name__)}"
                )
        described = str(tile.rpu_config)
        if chip.profile is None and described != str(deepcopy(tile.rpu_config)):
            raise ValueError(
                f"a chip's file describes the configuration of tile {name} by its text, which a "
                "copy does not share: give its noise model, or what else is yours in it, a "
                "__str__ that says its settings"
            )
    noise = chip.profile.memory.noise_model() if chip.profile and chip.profile.memory else None
    own = None if chip.profile is None else chip.profile.memory
    if chip.t_inference is not None and (own is None or type(own) not in SHIPPED):
        _require_memoryless(next(iter(named_tiles(chip.analog).values())), noise)


def _require_remade(profile: Profile) -> None:
    """Refuses a profile that its JSON does not give back."""
    stored, kinds = to_json(profile), _own_kinds(profile)
    _refuse_infinite(profile)
    for kind in kinds:
        taken = [
            one.name
            for one in signature(kind).parameters.values()
            if one.kind not in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        ]
        if lost := sorted(set(taken) - {field.name for field in fields(kind)}):
            raise ValueError(
                f"a chip's file keeps the fields of {kind.__name__}, which {', '.join(lost)} of "
                "its __init__ is not: make it a field"
            )
    try:
        back = to_json(from_json(json.loads(json.dumps(stored)), kinds))
    except (TypeError, ValueError) as error:
        back = error
    if back != stored:
        memory = type(profile.memory).__name__
        raise ValueError(
            f"a chip's file keeps the fields of {memory} to make it again from them, which gives "
            f"{back}, not {stored}: let __init__ take every field and keep it as it is given"
        )


def _refuse_infinite(setting: Any) -> None:
    """Refuses numbers that JSON has not."""
    if isinstance(setting, tuple | list):
        for one in setting:
            _refuse_infinite(one)
    if not is_dataclass(setting):
        return
    for field in fields(setting):
        value = getattr(setting, field.name)
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(
                    f"a chip's file keeps the fields of {type(setting).__name__} as JSON, and "
                    f"{field.name} is not plain JSON: it has {one}; let None or a large number "
                    "stand for it"
                )
        _refuse_infinite(value)


def _own_kinds(setting: Any) -> list[type]:
    """Classes of the dataclasses that a setting is made of."""
    if isinstance(setting, tuple | list):
        return [kind for one in setting for kind in _own_kinds(one)]
    if not is_dataclass(setting):
        return []
    below = [getattr(setting, field.name) for field in fields(setting)]
    return [type(setting), *_own_kinds(below)]


def _require_memoryless(tile: Tile, noise_model: Any) -> None:
    """Refuses a noise model that programming changes: the file holds nothing of it."""
    noise_model = deepcopy(noise_model or tile.rpu_config.noise_model)
    before = f"{noise_model} {vars(noise_model)}"
    with stream(0, "programming for the file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noise_model.apply_programming_noise(tile.reference_combined_weights)
    if f"{noise_model} {vars(noise_model)}" != before:
        raise ValueError(
            f"the noise model {type(noise_model).__name__} keeps what it draws in itself, which a "
            "chip's file does not hold: return it from apply_programming_noise, as float32 tensors "
            "in the list"
        )


def fingerprint(chip: Chip | nn.Module) -> str:
    """A hash of everything that decides a chip's, or a module's, logits but the module's code.

    Raises:
      ValueError: a tensor that is of no use for it, such as one on the meta device, it is named; or
        a chip that was changed (`Chip.refuse_changed`).
    """
    state: dict[str, Any]
    if isinstance(chip, Chip):
        chip.refuse_changed()
        state, header = {**_tensors(chip.analog)}, _header(chip)
        state |= _extra_states(chip.analog)
    else:
        state, header = chip.state_dict(), {}
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(state):
        digest.update(name.encode())
        try:
            add_content(digest, state[name])
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            raise ValueError(
                f"{name} of the network, {_told(state[name])}, cannot be hashed to know the "
                f"network again ({error}): give it dense, on a device with values"
            ) from error
    return digest.hexdigest()


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} on {value.device}"
    return type(value).__name__


def _extra_states(network: nn.Module) -> dict[str, Any]:
    """What modules of the user's own keep beside tensors, by name."""
    return {
        f"{path}._extra_state".lstrip("."): module.get_extra_state()
        for path, module in network.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
        and not type(module).__module__.startswith("aihwkit")
    }


def _header(chip: Chip) -> dict[str, Any]:
    tiles = named_tiles(chip.analog)
    # Of a chip without them the hash is as before there were any.
    later: dict[str, Any] = {}
    if chip.input_ranges:
        later["input_ranges"] = dict(chip.input_ranges)
    if chip.stream is not None:
        later["stream"] = chip.stream
    noisy = chip.profile is not None and chip.profile.out_noise is not None
    scaled = ("out_bound", "w_noise", *(["out_noise"] if noisy else []))
    return later | {
        "kind": _KIND,
        "profile": None if chip.profile is None else to_json(chip.profile),
        "configurations": _configurations(chip.analog) if chip.profile is None else None,
        "seed": chip.seed,
        "t_inference": chip.t_inference,
        "out_bounds": dict(chip.out_bounds),
        "engine": chip.engine,
        "digital_layers": list(chip.digital_layers),
        "largest_pixel": chip.largest_pixel,
        "layers": _geometry(chip.analog),
        "tiles": {
            name: {setting: plain(getattr(tile.rpu_config.forward, setting)) for setting in scaled}
            for name, tile in tiles.items()
        },
    }


def _code(analog: nn.Module) -> dict[str, Any]:
    """What `_require_code` knows the network's code by."""
    twin = digital_network(analog)
    like = inputs_of(twin)
    return behaviour(twin, None if like is None else inputs_like(like)) | {"inputs": like}


def _require_code(code: dict[str, Any], analog: nn.Module, path: str | os.PathLike[str]) -> None:
    twin = digital_network(analog)
    if code["logits"] is None:
        if layer := other_layers(code, twin):
            warnings.warn(
                f"{path} has no logits by which to compare the network's code, and {layer}: if "
                "that is another network, program it; chip.examine(images) before save_chip would "
                "have shown inputs",
                stacklevel=4,
            )
        return
    keep_inputs(analog, code["inputs"])
    inputs = inputs_like(code["inputs"])
    count = {2: "two", 3: "three", 4: "four"}[len(inputs)]
    if how := other_code(code, twin, inputs):
        raise ValueError(
            f"{path} was programmed with a network of other code. On {count} inputs of its kind "
            f"{how}: load it into the network that was programmed, with its hooks and settings, or "
            "program this one"
        )
    if layer := changed_layers(code, twin):
        warnings.warn(
            f"{path} was programmed with other layers: {layer}. Digital logits on {count} inputs "
            "are the same, on others they may not be: load it into the network that was "
            "programmed, or program this one",
            stacklevel=4,
        )


def _geometry(analog: nn.Module) -> dict[str, str]:
    """Kind and dimensions of each layer on tiles."""
    names = [
        *("in_features", "out_features", "in_channels", "out_channels"),
        *("kernel_size", "stride", "padding", "dilation"),
    ]
    return {
        path: " ".join(
            [type(layer).__name__]
            + [f"{name}={plain(getattr(layer, name))}" for name in names if hasattr(layer, name)]
        )
        for path, layer in named_layers(analog).items()
    }


def _configurations(analog: nn.Module) -> dict[str, list[str]]:
    """The tiles' configurations, as AIHWKit prints them, with the tiles that each is of."""
    found: dict[str, list[str]] = {}
    for name, tile in named_tiles(analog).items():
        found.setdefault(str(tile.rpu_config), []).append(name)
    return found


def _require_same(
    stored: dict[str, list[str]], mine: dict[str, list[str]], path: str | os.PathLike[str]
) -> None:
    if stored == mine:
        return
    there, here = (
        {name: text for text, names in one.items() for name in names} for one in (stored, mine)
    )
    name = next(name for name in there if there[name] != here.get(name))
    lines = unified_diff(
        there[name].splitlines(), here.get(name, "").splitlines(), n=0, lineterm=""
    )
    differing = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    raise ValueError(
        f"{path} was programmed with another configuration; of tile {name} the file has the lines "
        f"with - and rpu_config those with +: {' '.join(' '.join(differing).split())}"
    )


def _slots(analog: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where the tensors that are not on a crossbar sit: their names, modules and attributes."""
    crossbars = {f"{name}.tile" for name in named_tiles(analog)}
    slots = {}
    for path, module in analog.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for attribute, tensor in own:
            weight = path in crossbars and attribute == "weight"
            if not weight and not isinstance(tensor, AnalogContext):
                slots[f"{path}.{attribute}".lstrip(".")] = module, attribute
    return slots


def _masks(analog: nn.Module) -> set[str]:
    """Buffers and bare parameters of the network's own, which may be infinite."""
    tiles = tuple(f"{name}." for name in named_tiles(analog))
    return {
        name
        for name, (module, attribute) in _slots(analog).items()
        if not name.startswith(tiles)
        and (
            is_mask(module, getattr(module, attribute))
            if attribute in module._parameters
            else not isinstance(module, _BatchNorm)
        )
    }


def _tensors(analog: nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of a converted network, by name."""
    tensors = {
        name: getattr(module, attribute).detach()
        for name, (module, attribute) in _slots(analog).items()
    }
    for name, tile in named_tiles(analog).items():
        tensors[f"{name}/weight"] = tile.tile.get_weights()
        for attribute in _TILE_TENSORS:
            if getattr(tile, attribute) is not None:
                tensors[f"{name}/{attribute}"] = getattr(tile, attribute)
        for number, exponents in enumerate(tile.drift_noise_parameters or []):
            # A noise model may have none, or hand back the target weights themselves.
            kept = torch.empty(0) if exponents is None else exponents.clone()
            tensors[f"{name}/drift/{number}"] = kept
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _parts(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    try:
        return plain_parts(tensor)
    except ValueError as error:
        raise ValueError(f"{name} of the network is {error}") from error


def _restore(
    analog: nn.Module, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Puts every tensor but the tiles' weights where it was; `tensors` is used up."""
    slots = _slots(analog)
    for name, (module, attribute) in slots.items():
        mine = getattr(module, attribute)
        ends = list(_parts(name, mine))
        if missing := [end for end in ends if f"{name}{end}" not in tensors]:
            raise ValueError(f"{path} is of another network: it has no {name}{missing[0]}")
        stored = from_parts(mine, {end: tensors.pop(f"{name}{end}") for end in ends})
        # What compensates drift may have become one factor a column.
        if mine.shape != stored.shape and attribute != "alpha":
            raise ValueError(
                f"{path} is of another network: {name} is {tuple(stored.shape)} there and "
                f"{tuple(mine.shape)} here"
            )
        if isinstance(mine, nn.Parameter):
            mine.data = stored
        else:
            setattr(module, attribute, stored)
    for name, tile in named_tiles(analog).items():
        for attribute in _TILE_TENSORS:
            setattr(tile, attribute, tensors.pop(f"{name}/{attribute}", None))
        drift = [key for key in tensors if key.startswith(f"{name}/drift/")]
        if drift:
            ordered = sorted(drift, key=lambda key: int(key.rpartition("/")[2]))
            kept = [tensors.pop(key) for key in ordered]
            tile.drift_noise_parameters = [one if one.numel() else None for one in kept]
    if tensors:
        raise ValueError(f"{path} is of another network: it also has {', '.join(tensors)}")
