"""AIHWKit's tiles within a converted network: where they are, and what they amount to."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple, TypeAlias

import torch
from aihwkit import nn as aihwkit
from aihwkit.simulator.configs import InferenceRPUConfig
from aihwkit.simulator.tiles.inference import InferenceTileWithPeriphery
from torch import nn

from bridge.chips.plain_layers import carry_over, fill, put_in_place

AnalogLayer: TypeAlias = aihwkit.AnalogConv2d | aihwkit.AnalogLinear
Tile: TypeAlias = InferenceTileWithPeriphery


_KIND = "_digital_kind"


class _Readable:
    """A layer whose weight and bias can be read: those that its tiles have now, float32.

    For code that asks for their dtype, device or shape; AIHWKit's own layers have None.
    """

    @property
    def weight(self: Any) -> torch.Tensor:
        return readable_weight(self).to(placed_tiles(self)[0].tile.analog_ctx.device)

    @property
    def bias(self: Any) -> torch.Tensor | None:
        found: torch.Tensor | None = self.analog_module.bias
        return None if found is None else found.detach()


class AnalogConv2d(_Readable, aihwkit.AnalogConv2d):
    """AIHWKit's; chip files know it by this name."""


class AnalogLinear(_Readable, aihwkit.AnalogLinear):
    """AIHWKit's; chip files know it by this name."""


class Placed(NamedTuple):
    """A tile, its name within the layer, and the part of the layer's weight matrix it holds."""

    name: str
    tile: Tile
    rows: slice
    """Outputs."""
    columns: slice
    """Inputs; of a convolution, channel by channel, each with its kernel's taps row by row."""


def named_tiles(network: nn.Module) -> dict[str, Tile]:
    """Every tile of a network, by its path."""
    return {
        name: tile
        for name, tile in network.named_modules()
        if isinstance(tile, InferenceTileWithPeriphery)
    }


def named_layers(network: nn.Module) -> dict[str, AnalogLayer]:
    """Every layer on tiles, by its path."""
    kinds = (aihwkit.AnalogConv2d, aihwkit.AnalogLinear)
    return {name: one for name, one in network.named_modules() if isinstance(one, kinds)}


def on_tiles(layer: nn.Module, config: InferenceRPUConfig) -> AnalogLayer:
    """A Conv2d or Linear layer on AIHWKit's tiles of a configuration, which it keeps."""
    base, kind = (
        (aihwkit.AnalogConv2d, AnalogConv2d)
        if isinstance(layer, nn.Conv2d)
        else (aihwkit.AnalogLinear, AnalogLinear)
    )
    made = base.from_digital(layer, config)
    made.__class__ = kind  # not made as one, for AIHWKit's constructor sets weight and bias
    vars(made)[_KIND] = type(layer)
    return made


def placed_tiles(layer: AnalogLayer) -> list[Placed]:
    """The tiles of a layer."""
    module: Any = layer.analog_module
    if isinstance(module, InferenceTileWithPeriphery):
        rows, columns = module.tile.get_d_size(), module.tile.get_x_size()
        return [Placed("analog_module", module, slice(0, rows), slice(0, columns))]
    return list(_array(module))


def _array(module: Any) -> Iterator[Placed]:
    column = 0
    for i, (width, tiles) in enumerate(zip(module.in_sizes, module.array, strict=True)):
        row = 0
        for j, (height, tile) in enumerate(zip(module.out_sizes, tiles, strict=True)):
            name = f"analog_module.array.{i}.{j}"
            yield Placed(name, tile, slice(row, row + height), slice(column, column + width))
            row += height
        column += width


def output_scale(tile: Tile) -> torch.Tensor:
    """What a tile's normalised outputs are multiplied with, float32 `[1]` or `[rows]`, on the CPU.

    The scale of the weights, the learned scale and the compensation of drift; not the input range.
    """
    scale = tile.get_scales()
    scale = torch.ones(1) if scale is None else scale.detach().flatten().cpu()
    if tile.rpu_config.drift_compensation is not None:
        scale = scale * tile.alpha.flatten().cpu()
    return scale


def effective_weight(layer: AnalogLayer) -> torch.Tensor:
    """A layer's weights as its tiles have them now, float32 `[out, in]`, on the CPU."""
    placed = placed_tiles(layer)
    weight = torch.empty(placed[-1].rows.stop, placed[-1].columns.stop)
    for _, tile, rows, columns in placed:
        weight[rows, columns] = output_scale(tile)[:, None] * tile.tile.get_weights()
    return weight


def readable_weight(layer: AnalogLayer) -> torch.Tensor:
    """A layer's weights as its tiles have them now, in the shape of PyTorch's, on the CPU."""
    weight = effective_weight(layer)
    if isinstance(layer, aihwkit.AnalogConv2d):
        return weight.view(len(weight), -1, *layer.kernel_size)
    return weight


def layer_bias(layer: AnalogLayer) -> torch.Tensor | None:
    """A layer's digital bias, float32 `[out]`, on the CPU."""
    bias = layer.analog_module.bias
    return None if bias is None else bias.detach().cpu().clone()


def digital_layer(layer: AnalogLayer) -> nn.Conv2d | nn.Linear:
    """An ordinary layer, of the kind that it was, with the effective weights, on the CPU."""
    weight, bias = readable_weight(layer), layer_bias(layer)
    made: nn.Conv2d | nn.Linear
    if isinstance(layer, aihwkit.AnalogConv2d):
        made = nn.utils.skip_init(
            nn.Conv2d,
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            bias=bias is not None,
        )
    else:
        made = nn.utils.skip_init(
            nn.Linear, layer.in_features, layer.out_features, bias=bias is not None
        )
    made.__class__ = vars(layer).get(_KIND, type(made))
    fill(made, weight, bias)
    return made


def digital_network(analog: nn.Module) -> nn.Module:
    """A copy with ordinary layers of the effective weights, on the CPU.

    Tiles in other kinds of layers are left.
    """
    left_out = [tile for layer in named_layers(analog).values() for tile in layer.analog_tiles()]
    made = deepcopy(analog, {id(tile): tile for tile in left_out})
    for name, layer in named_layers(made).items():
        made = replace_layer(made, name, digital_layer(layer))
    return made


def replace_layer(network: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    """Puts a layer at a path, in place; returns the network, which is the layer at path "".

    The forward hooks of the layer that was there come with it. Where that had other names too, the
    new one gets them.
    """
    old = network.get_submodule(name)
    carry_over(old, layer)
    return put_in_place(network, {old: layer})
