"""Whether a chip's network and what runs are still the same: what runs is a copy of it, with other
layers in place of those on tiles.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from bridge.chips.contents import sum_of_bits
from bridge.chips.tiles import Tile, named_layers, named_tiles

_HELD = "tiles_held"


class Pair:
    """A chip's network and what was made of it, as they were then.

    Args:
      network: on tiles, on the CPU.
      running: what was made of it; any device later.
    """

    def __init__(self, network: nn.Module, running: nn.Module):
        self._network, self._running = network, running
        self._on_tiles, self._hooks = self._tensors_on_tiles(), _hooks(network)

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """A copy of what runs is made of no network that it could be compared with."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """A pickle holds None in its place."""
        return type(None), ()

    def differing(self) -> list[str]:
        """What was changed in one of them and not in the other, by name.

        Parameters, statistics of normalisations, tensors on tiles, and hooks of the network. Not
        settings, layers without weights and other buffers, some of which networks write themselves.
        """
        layers = _on_tiles(self._network)
        mine, its = dict(_digital(self._network, layers)), dict(_digital(self._running, layers))
        names = [name for name, mark in mine.items() if its.get(name) != mark]
        now = self._tensors_on_tiles()
        names += [name for name, mark in now.items() if self._on_tiles.get(name) != mark]
        hooks = _hooks(self._network)
        return names + [f"hooks of {name}" for name in hooks if hooks[name] != self._hooks[name]]

    def _tensors_on_tiles(self) -> dict[str, Any]:
        layers = _on_tiles(self._network)
        return {
            f"{name}{where}": _mark(tensor)
            for where, one in (("", self._network), (" (executable)", self._running))
            for name, tensor in [*one.named_parameters(), *one.named_buffers()]
            if name.startswith(layers)
        }


def _on_tiles(network: nn.Module) -> tuple[str, ...]:
    """How names of what is within layers on tiles begin."""
    return tuple(f"{path}." if path else "" for path in named_layers(network))


def _digital(network: nn.Module, layers: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """Parameters and statistics of normalisations outside of layers on tiles."""
    for path, module in network.named_modules():
        own = dict(module.named_parameters(path, recurse=False))
        if isinstance(module, _NormBase):
            own |= dict(module.named_buffers(path, recurse=False))
        for name, tensor in own.items():
            if not name.startswith(layers):
                yield name, _mark(tensor)


def _mark(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tuple(tensor.shape), sum_of_bits(tensor)


def _hooks(network: nn.Module) -> dict[str, Any]:
    return {
        path or "the network": (*module._forward_pre_hooks, *module._forward_hooks)
        for path, module in network.named_modules()
    }


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
