"""Whether a chip's network, or what runs of it, was changed since one was made of the other.

What runs is a copy of the network, with other layers in place of those on tiles.
"""

import hashlib
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from enum import Enum
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from bridge.chips.tiles import Tile, named_layers, named_tiles

_PROBED = 16  # values of a tensor that tell what its version does not, as writes to its .data
_PLAIN = (bool, int, float, complex, str, tuple, Enum, type(None))
_UNTOLD = {"training", "_is_full_backward_hook"}
_OTHERS = ("torch.", "aihwkit.", "bridge.chips.")  # whose modules set no settings when they run
_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")
_HELD = "tiles_held"
_TORCHS = set(vars(nn.Module()))
_WRITTEN = "written_by_itself"


_Place = tuple[int, int, int]
"""Which tensor it is, where its values lie, and how often PyTorch wrote to it."""


class _Tensor(NamedTuple):
    """A tensor as it was seen, at `held[key]`."""

    name: str
    held: dict[str, Any]
    key: str
    tensor: torch.Tensor
    alias: torch.Tensor
    """Keeps its memory from being given to another."""
    place: _Place
    probed: NDArray[Any] | None
    """Some of its values, where they lie."""
    probe: bytes
    """What these were."""


class _Settings(NamedTuple):
    """Numbers, words and functions among an object's attributes, as they were."""

    name: str
    held: dict[str, Any]
    keys: list[str]
    values: list[Any]


class _Layers(NamedTuple):
    """The layers right within one, as they were."""

    name: str
    held: dict[str, Any]
    layers: dict[str, Any]


class _List(NamedTuple):
    """A list or dict of numbers and words, as it was, at `held[key]`."""

    name: str
    held: dict[str, Any]
    key: str
    values: Any


class _Hooks(NamedTuple):
    """Forward hooks of a layer, as they were."""

    name: str
    held: dict[int, Any]
    hooks: dict[int, Any]
    own: list[Any]
    """Without those of this package."""


class Changes:
    """Tells what was changed in a chip's network, or in what runs, since this was made.

    A look at one of them costs some microseconds a layer: of tensors where they lie and how often
    PyTorch wrote to them, and some values. What a network writes itself when it
    runs, such as a count of its calls, is not told.

    Args:
      network: on tiles, on the CPU.
      running: what was made of it; any device later.
    """

    def __init__(self, network: nn.Module, running: nn.Module):
        vars(running)[_WRITTEN] = written_by_itself(network)
        self._network, self._running = _Watch(network), _Watch(running)
        self._written = written_by_itself(network)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of what runs is made of no network that it could be compared with."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A pickle holds None in its place."""
        return type(None), ()

    def of_network(self) -> list[str]:
        """Tensors, settings and layers of the network that what runs has otherwise; by name."""
        return self._told(self._network, self._running) + self._network.hooked()

    def of_running(self) -> list[str]:
        """Those of what runs that the network has otherwise."""
        return self._told(self._running, self._network)

    def hooks_of_running(self) -> list[str]:
        """Layers of what runs whose forward hooks are others; they may only read."""
        return self._running.hooked()

    def _told(self, changed: "_Watch", other: "_Watch") -> list[str]:
        return [
            name
            for name in changed.changed()
            if name not in self._written and not _is_same(changed, other, name)
        ]


def written_by_itself(network: nn.Module) -> set[str]:
    """Names of what a chip's network was seen to write itself; the set that it keeps."""
    found: set[str] = vars(network).setdefault(_WRITTEN, set())
    return found


def remember_tiles(network: nn.Module) -> None:
    """Has a network know what its tiles hold, for `tiles_set`."""
    vars(network)[_HELD] = {name: _held(tile) for name, tile in named_tiles(network).items()}


def tiles_set(network: nn.Module) -> list[str]:
    """Tiles whose weights were set since `remember_tiles`, and not what was programmed into them.

    Aging starts from what was programmed, and would undo this.
    """
    before: dict[str, tuple[bytes, bytes]] = vars(network).get(_HELD, {})
    found = []
    for name, tile in named_tiles(network).items():
        weights, programmed = _held(tile)
        if name in before and weights != before[name][0] and programmed == before[name][1]:
            found.append(name)
    return found


def _held(tile: Tile) -> tuple[bytes, bytes]:
    """Hashes of a tile's weights and of what was programmed into it."""
    programmed = tile.programmed_weights
    return _hash(tile.tile.get_weights()), b"" if programmed is None else _hash(programmed)


def _hash(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).digest()


class OwnWrites:
    """Sees what a network writes itself when it runs."""

    def __init__(self, network: nn.Module):
        self._network = network
        self._tensors = [
            _seen(name, held, key)
            for name, module, held, key in _tensors(network)
            # In evaluation they write nothing; what sets them anew is a change.
            if not isinstance(module, _NormBase)
        ]
        self._settings = [
            _plain(f"{path}." if path else "", vars(module))
            for path, module in _modules(network, tiles=False)
            if not type(module).__module__.startswith(_OTHERS)
        ]
        self._lists = list(_lists(network))

    def __deepcopy__(self, memo: dict[int, Any]) -> "OwnWrites":
        return OwnWrites(deepcopy(self._network, memo))

    def __reduce__(self) -> tuple[type["OwnWrites"], tuple[nn.Module]]:
        return OwnWrites, (self._network,)

    @contextmanager
    def remembered(self) -> Iterator[None]:
        """Within it the network runs; what it writes is added to `written_by_itself`."""
        places, values, lists = self._places(), self._values(), list(_lists_now(self._lists))
        yield
        now = zip(self._tensors, places, self._places(), strict=True)
        names = [one.name for one, was, place in now if was != place]
        for setting, was in zip(self._settings, values, strict=True):
            names += _changed_settings(setting._replace(values=was))
        names += [one.name for one in lists if _differs(one)]
        if names:
            written_by_itself(self._network).update(names)

    def _places(self) -> list[Any]:
        return [
            (_place(one.held.get(one.key)), None if one.probed is None else one.probed.tobytes())
            for one in self._tensors
        ]

    def _values(self) -> list[list[Any]]:
        return [list(map(one.held.get, one.keys)) for one in self._settings]


class _Watch:
    def __init__(self, network: nn.Module):
        self.tensors = [
            _seen(name, held, key) for name, _, held, key in _tensors(network, tiles=True)
        ]
        self.settings = list(_settings(network))
        self.hooks = [
            _Hooks(f"hooks of {path or 'the root'}", held, dict(held), _hooks(held))
            for path, module in network.named_modules()
            for held in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.lists = list(_lists(network))
        self.layers = [
            _Layers(path, module._modules, dict(module._modules))
            for path, module in _modules(network, tiles=True)
            if module._modules
        ]

    def changed(self) -> list[str]:
        names = [one.name for one in self.tensors if _is_changed(one)]
        for setting in self.settings:
            names += _changed_settings(setting)
        names += [one.name for one in self.lists if _differs(one)]
        return names + [one.name or "its layers" for one in self.layers if one.held != one.layers]

    def hooked(self) -> list[str]:
        """Layers whose forward hooks are others now."""
        changed = [one for one in self.hooks if one.held != one.hooks]
        return [one.name for one in changed if _hooks(one.held) != one.own]

    def find(self, name: str) -> Any:
        """What is at a name of a tensor or setting now; None if nothing."""
        for one in self.tensors:
            if one.name == name:
                return one.held.get(one.key)
        for one_list in self.lists:
            if one_list.name == name:
                return one_list.held.get(one_list.key)
        for setting in self.settings:
            path, _, key = name.rpartition(".")
            if setting.name.rpartition(".")[0] == path and key in setting.keys:
                return setting.held.get(key)
        return None


def _changed_settings(setting: _Settings) -> list[str]:
    name, held, keys, values = setting
    now = list(map(held.get, keys))
    if all(map(operator.is_, now, values)):
        return []
    pairs = zip(keys, now, values, strict=True)
    return [f"{name}{key}" for key, one, was in pairs if one is not was and not _equal(one, was)]


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other) or not isinstance(one, _PLAIN):
        return False
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # of arrays within a tuple
        return False


def _lists_now(lists: list[_List]) -> Iterator[_List]:
    for one in lists:
        now = one.held.get(one.key)
        yield one._replace(values=now.copy() if isinstance(now, list | dict) else now)


def _differs(one: _List) -> bool:
    try:
        return bool(one.held.get(one.key) != one.values)
    except (RuntimeError, ValueError):  # with arrays in it now
        return True


def _is_plain(values: Any) -> bool:
    parts = values.values() if isinstance(values, dict) else values
    return len(values) <= _PROBED and all(isinstance(x, bool | int | float | str) for x in parts)


def _hooks(held: dict[int, Any]) -> list[Any]:
    def is_own(hook: Any) -> bool:
        return not str(getattr(hook, "__module__", "")).startswith("bridge.chips")

    return list(filter(is_own, held.values()))


def _is_same(one: _Watch, other: _Watch, name: str) -> bool:
    mine, its = one.find(name), other.find(name)
    if isinstance(mine, torch.Tensor) and isinstance(its, torch.Tensor):
        return _same_values(mine, its)
    if isinstance(mine, list | dict):
        return type(mine) is type(its) and bool(mine == its)
    return mine is not None and _equal(mine, its)


def _seen(name: str, held: dict[str, Any], key: str) -> _Tensor:
    tensor, some = held[key], None
    plain = tensor.dtype == torch.float32 and tensor.layout == torch.strided
    if plain and tensor.is_cpu and tensor.numel() and tensor.is_contiguous():
        some = tensor.detach().view(-1)[:: max(1, tensor.numel() // _PROBED)].numpy()
    probe = b"" if some is None else some.tobytes()
    return _Tensor(name, held, key, tensor, tensor.detach(), _place(tensor), some, probe)


def _is_changed(seen: _Tensor) -> bool:
    now = seen.held.get(seen.key)
    place = _place(now)
    if place == seen.place:
        return seen.probed is not None and seen.probed.tobytes() != seen.probe
    if not isinstance(now, torch.Tensor):
        return True
    elsewhere = place[1] != seen.place[1] and _place(seen.alias)[2] == seen.place[2]
    return not (elsewhere and _same_values(now, seen.alias))  # such as on another device


def _same_values(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.layout != other.layout:
        return False
    if one.layout != torch.strided or one.is_quantized:
        return one is other
    return torch.equal(one.detach().cpu(), other.detach().cpu())


def _place(tensor: Any) -> _Place:
    try:
        return id(tensor), tensor.data_ptr(), tensor._version
    except (AttributeError, RuntimeError):  # of None, a sparse tensor, one of inference mode
        return id(tensor), -1, -1


def _modules(network: nn.Module, tiles: bool) -> Iterator[tuple[str, nn.Module]]:
    """Modules by path, those of layers on tiles only if asked for."""
    layers = () if tiles else tuple(f"{path}." for path in named_layers(network))
    for path, module in network.named_modules():
        if "." not in layers and not f"{path}.".startswith(layers):  # "." is that of the root
            yield path, module


def _tensors(
    network: nn.Module, tiles: bool = False
) -> Iterator[tuple[str, nn.Module, dict[str, Any], str]]:
    for path, module in _modules(network, tiles):
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None and key != "analog_ctx":
                    yield f"{path}.{key}".lstrip("."), module, held, key
    for path, module in _modules(network, tiles=False):
        for key, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{key}".lstrip("."), module, vars(module), key


def _settings(network: nn.Module) -> Iterator[_Settings]:
    """Those of digital layers, and what tiles compute by."""
    for path, module in _modules(network, tiles=False):
        yield _plain(f"{path}." if path else "", vars(module))
    for path, layer in named_layers(network).items():
        held = vars(layer)
        keys = [key for key in _GEOMETRY if key in held]
        yield _Settings(f"{path}." if path else "", held, keys, [held[key] for key in keys])
    for path, tile in named_tiles(network).items():
        yield _plain(f"{path}.rpu_config.forward.", vars(tile.rpu_config.forward))


def _lists(network: nn.Module) -> Iterator[_List]:
    for path, module in _modules(network, tiles=False):
        for key, value in vars(module).items():
            if type(value) in (list, dict) and key not in _TORCHS and _is_plain(value):
                yield _List(f"{path}.{key}".lstrip("."), vars(module), key, value.copy())


def _plain(name: str, held: dict[str, Any]) -> _Settings:
    keys = [k for k, one in held.items() if _is_setting(one) and k not in _UNTOLD]
    keys += [] if "forward" in keys else ["forward"]  # which an instance may be given
    return _Settings(name, held, keys, [held.get(key) for key in keys])


def _is_setting(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (
        callable(value) and not isinstance(value, nn.Module | torch.Tensor)
    )
