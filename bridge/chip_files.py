"""Chips to and from disk: tensors in a safetensors file, everything else as JSON in its header."""

import hashlib
import json
import os
from typing import Any

import torch
from aihwkit.optim.context import AnalogContext
from aihwkit.simulator.configs import InferenceRPUConfig
from torch import nn

from bridge.chip import Chip, Executable, convert
from bridge.noise import SampleNoise
from bridge.profiles import from_json, to_json
from bridge.tiles import named_tiles
from bridge.weights import load_weights, save_weights

_KIND = "analog chip"
_TILE_TENSORS = ("reference_combined_weights", "programmed_weights", "drift_baseline")


def save_chip(path: str | os.PathLike[str], chip: Chip) -> None:
    """Writes a chip to a safetensors file, atomically; `load_chip` gives the same logits.

    It holds what was programmed, the drift of each device and the weights as they are now, so that
    the chip can also be aged further; not the network's code.

    Args:
      path: the file; its folder must exist.
      chip: on any engine.
    """
    save_weights(path, _tensors(chip.analog), _header(chip))


def load_chip(
    path: str | os.PathLike[str],
    model: nn.Module,
    rpu_config: InferenceRPUConfig | None = None,
) -> Chip:
    """Reads what `save_chip` wrote; runs no code from the file.

    Args:
      path: the file.
      model: a network of the same structure as was programmed, in eval mode; its weights do not
        matter and it is not changed. If what was programmed had been converted by AIHWKit before,
        a network converted in the same way.
      rpu_config: the configuration that was programmed with, where it was AIHWKit's own and given
        to `program`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is no chip's, or the model or the configuration is another.
    """
    tensors, header = load_weights(path)
    if header.get("kind") != _KIND:
        raise ValueError(f"{path} holds no chip; write it with save_chip")
    profile = None if header["profile"] is None else from_json(header["profile"])
    layers = tuple(header["digital_layers"])
    configuration = rpu_config if profile is None else profile
    analog = convert(model, configuration, layers, seed=header["seed"])
    tiles = named_tiles(analog)
    if tiles.keys() != header["tiles"].keys():
        raise ValueError(
            f"{path} is of another network: its tiles are {', '.join(header['tiles'])}"
        )
    for name, tile in tiles.items():
        forward = tile.rpu_config.forward
        for setting, value in header["tiles"][name].items():
            setattr(forward, setting, value)
        tile.tile.set_weights(tensors.pop(f"{name}/weight"))
    if profile is None and (mine := _configuration(analog)) != header["configuration"]:
        raise ValueError(
            f"{path} was programmed with another configuration than rpu_config; it had "
            f"{header['configuration']}, not {mine}"
        )
    _restore(analog, tensors, path)
    chip = Chip(
        analog,
        Executable(analog, SampleNoise(header["seed"]), one_by_one=False),
        profile,
        header["seed"],
        header["t_inference"],
        header["out_bounds"],
        header["engine"],
        layers,
    )
    return chip.on(chip.engine)


def fingerprint(chip: Chip | nn.Module) -> str:
    """A hash of everything that decides a chip's, or a module's, logits but the module's code."""
    if isinstance(chip, Chip):
        tensors, header = _tensors(chip.analog), _header(chip)
    else:
        tensors, header = chip.state_dict(), {}
    digest = hashlib.sha256(json.dumps(header).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _header(chip: Chip) -> dict[str, Any]:
    tiles = named_tiles(chip.analog)
    return {
        "kind": _KIND,
        "profile": None if chip.profile is None else to_json(chip.profile),
        "configuration": _configuration(chip.analog) if chip.profile is None else None,
        "seed": chip.seed,
        "t_inference": chip.t_inference,
        "out_bounds": dict(chip.out_bounds),
        "engine": chip.engine,
        "digital_layers": list(chip.digital_layers),
        "tiles": {
            name: {
                setting: getattr(tile.rpu_config.forward, setting)
                for setting in ("out_bound", "w_noise")
            }
            for name, tile in tiles.items()
        },
    }


def _configuration(analog: nn.Module) -> str:
    return str(next(iter(named_tiles(analog).values())).rpu_config)


def _slots(analog: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Where the tensors that are not on a crossbar sit: their names, modules and attributes."""
    tiles = named_tiles(analog)
    slots = {}
    for path, module in analog.named_modules():
        on_crossbar = any(path == f"{name}.tile" for name in tiles)
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for attribute, tensor in own:
            weight = on_crossbar and attribute == "weight"
            if not weight and not isinstance(tensor, AnalogContext):
                slots[f"{path}.{attribute}".lstrip(".")] = module, attribute
    return slots


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
            if exponents is not None:
                tensors[f"{name}/drift/{number}"] = exponents
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _restore(
    analog: nn.Module, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]
) -> None:
    """Puts every tensor but the tiles' weights where it was; `tensors` is used up."""
    slots = _slots(analog)
    for name, (module, attribute) in slots.items():
        if name not in tensors:
            raise ValueError(f"{path} is of another network: it has no {name}")
        mine, stored = getattr(module, attribute), tensors.pop(name)
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
            tile.drift_noise_parameters = [tensors.pop(key) for key in ordered]
    if tensors:
        raise ValueError(f"{path} is of another network: it also has {', '.join(tensors)}")
