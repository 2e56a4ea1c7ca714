"""Fast execution of AIHWKit's programmed tiles.

AIHWKit unfolds a convolution's input into patches and multiplies them with each tile. Here a layer
becomes an ordinary one where its tiles are linear, and otherwise a convolution for each tile over
the input channels that it sees, so that patches are not copied, but where a DAC rounds each patch
in a unit of its own. The tiles' weights, scales and settings are AIHWKit's; what this execution
cannot honour is refused by name.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import cast

import torch
from aihwkit.nn import AnalogLinear
from aihwkit.simulator.configs import TorchInferenceRPUConfig
from aihwkit.simulator.parameters.enums import (
    BoundManagementType,
    NoiseManagementType,
    WeightNoiseType,
)
from aihwkit.simulator.parameters.io import IOParameters
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile
from aihwkit.simulator.tiles.torch_tile import TorchSimulatorTile
from torch import nn

from bridge.chips.execution.convolution import Convolution
from bridge.chips.streams import SampleNoise
from bridge.chips.tiles import (
    AnalogLayer,
    Placed,
    Tile,
    digital_layer,
    effective_weight,
    layer_bias,
    named_layers,
    named_tiles,
    output_scale,
    placed_tiles,
    readable_weight,
    replace_layer,
)
from bridge.chips.weight_noise import MvmNoiseTile, draws_per_operation, weight_noise

_NEUTRAL = IOParameters(
    inp_res=-1.0, inp_noise=0.0, out_noise=0.0, bound_management=BoundManagementType.NONE
)
_HONOURED = {
    "is_perfect",
    "inp_bound",
    "inp_res",
    "out_bound",
    "out_noise",
    "out_res",
    "noise_management",
    "w_noise",
    "w_noise_type",
}
_ONLY_WITH = {  # of no effect while the other is off
    "ir_drop_g_ratio": "ir_drop",
    "out_nonlinearity_std": "out_nonlinearity",
    "slope_calibration": "out_nonlinearity",
    "out_noise_std": "out_noise",
    "inp_sto_round": "inp_res",
    "out_sto_round": "out_res",
}
_OF_BOUND_MANAGEMENT = {"max_bm_factor", "max_bm_res", "bm_test_negative_bound"}


def unsupported_settings(network: nn.Module) -> list[str]:
    """The tiles' settings that fast execution cannot honour, by AIHWKit's names."""
    layers = tuple(f"{path}." if path else "" for path in named_layers(network))
    found: dict[str, None] = {}
    for path, tile in named_tiles(network).items():
        if not path.startswith(layers):
            found[f"the kind of layer that tile {path} is in"] = None
        found |= dict.fromkeys(_unsupported(tile))
    return list(found)


def _unsupported(tile: Tile) -> list[str]:
    config = tile.rpu_config
    if type(tile) is not TorchInferenceTile or type(config) is not TorchInferenceRPUConfig:
        return [f"{type(config).__name__} with tile_class {type(tile).__name__}"]
    if type(tile.tile) not in (TorchSimulatorTile, MvmNoiseTile):
        return [f"simulator_tile_class {type(tile.tile).__name__}"]
    forward = config.forward
    if type(forward) is not IOParameters:
        return [f"forward of type {type(forward).__name__}"]
    if forward.is_perfect:
        return []
    found = []
    if tile.tile.out_noise_values is not None:
        found.append("forward.out_noise_std")
    if weight_noise(forward) > 0 and type(tile.tile) is not MvmNoiseTile:
        found.append("forward.w_noise on a tile class that ignores it")
    if forward.out_noise > 0 and type(tile.tile) is not MvmNoiseTile:
        found.append(f"forward.out_noise={forward.out_noise} on a tile class with draws of its own")
    found += not_neutral(forward)
    if forward.noise_management == NoiseManagementType.ABS_MAX:
        if tile.input_range is not None:
            found.append("pre_post.input_range with forward.noise_management=ABS_MAX")
        if 0 < forward.inp_bound < 1:
            found.append(f"forward.inp_bound={forward.inp_bound}")
    elif forward.noise_management != NoiseManagementType.NONE:
        found.append(f"forward.noise_management={forward.noise_management.name}")
    return found


def not_neutral(forward: IOParameters) -> list[str]:
    """Settings of a forward pass that fast execution does not know and that are not off."""
    found = []
    for name in [field.name for field in fields(IOParameters)]:
        value, neutral = getattr(forward, name), getattr(_NEUTRAL, name)
        if name in _HONOURED | _OF_BOUND_MANAGEMENT or value == neutral:
            continue
        if name in _ONLY_WITH and getattr(forward, _ONLY_WITH[name]) <= 0:
            continue
        if isinstance(value, float) and max(value, neutral) <= 0:
            continue  # off is 0 or any negative number
        found.append(f"forward.{name}={value}")
    return found


def fast_network(network: nn.Module, noise: SampleNoise) -> nn.Module:
    """Replaces every layer on tiles by one that computes the same; in place.

    Args:
      network: an AIHWKit network on the CPU without unsupported settings.
      noise: where noise that is drawn for each operation comes from.
    """
    for name, layer in named_layers(network).items():
        network = replace_layer(network, name, _fast_layer(layer, name, noise))
    return network


def draws_noise(network: nn.Module) -> bool:
    """Whether a network has fast tiles that draw noise for each operation."""
    return any(isinstance(one, _Tile) and one.draws for one in network.modules())


@contextmanager
def without_converters(network: nn.Module) -> Iterator[None]:
    """Within it a network's fast tiles round neither inputs nor outputs, and bound no outputs."""
    tiles = [tile for tile in network.modules() if isinstance(tile, _Tile)]
    settings = [(tile.quantised, tile.output_limit, tile.input_step) for tile in tiles]
    for tile in tiles:
        tile.quantised, tile.output_limit, tile.input_step = False, math.inf, 0.0
    try:
        yield
    finally:
        for tile, setting in zip(tiles, settings, strict=True):
            tile.quantised, tile.output_limit, tile.input_step = setting


def _fast_layer(layer: AnalogLayer, name: str, noise: SampleNoise) -> nn.Module:
    linear = isinstance(layer, AnalogLinear)
    convolution = (
        Convolution()
        if linear
        else Convolution(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    tiles = [
        _Tile(placed, convolution, f"{name}.{placed.name}", noise) for placed in placed_tiles(layer)
    ]
    made: nn.Module
    if not all(tile.linear for tile in tiles):
        made = _TiledLayer(tiles, layer_bias(layer))
    elif any(tile.draws for tile in tiles):
        made = _NoisyLayer(tiles, layer, name)
    else:
        return digital_layer(layer)
    made = _AsConvolution(made, layer_bias(layer)) if linear else made
    # For code that reads the dtype, device or shape of a layer's weight, or of the first parameter.
    made.weight = nn.Parameter(readable_weight(layer))
    return made.eval().requires_grad_(False)


class _Tile(nn.Module):
    """What one tile contributes to the outputs of its layer.

    Attributes:
      rows: the outputs that it contributes to.
      first: it is the first of the tiles that contribute to these outputs.
      linear: it has no converter and its inputs no bound.
      draws: noise is drawn for each operation.
      noise_level: level of the weight noise that is drawn for each operation, in units of the
        outputs; 0 for none.
      output_noise: standard deviation of the noise of outputs, in their units; 0 for none.
      input_step: step of the DAC, in the unit of inputs; 0 for none.
      scale: scale of its outputs, float32 `[1, 1, 1]` or `[rows, 1, 1]`.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    variance_weight: torch.Tensor | None

    def __init__(self, placed: Placed, convolution: Convolution, name: str, noise: SampleNoise):
        super().__init__()
        tile, self.rows, self.first = placed.tile, placed.rows, placed.columns.start == 0
        self.columns, self.name, self.noise = placed.columns, name, noise
        forward = tile.rpu_config.forward
        perfect = forward.is_perfect

        # The unit of inputs: a fixed range, or None: the largest magnitude of each input vector.
        fixed = perfect or forward.noise_management == NoiseManagementType.NONE
        input_range = None if tile.input_range is None else abs(float(tile.input_range))
        self.input_unit = (input_range or 1.0) if fixed else None
        limits = [] if input_range is None else [input_range]
        if not perfect and fixed and forward.inp_bound > 0:
            limits.append((input_range or 1.0) * forward.inp_bound)
        self.input_limit = min(limits, default=math.inf)
        self.input_range = input_range
        self.input_bound = forward.inp_bound
        self.input_step = 0.0 if perfect else _step(forward.inp_res, forward.inp_bound)

        # A DAC that rounds each patch in its own unit sees patches in place of an image.
        self.unfolded: Convolution | None = None
        if self.input_step and self.input_unit is None:
            self.unfolded, convolution = convolution, Convolution()
        self.convolution = convolution
        columns = placed.columns
        if self.unfolded is not None:
            columns = slice(0, columns.stop - columns.start)
        self.parts = convolution.parts(columns)
        self.channels = slice(self.parts[0].channels.start, self.parts[-1].channels.stop)

        # Weights and so outputs are in units of the converter's step.
        self.quantised = not perfect and forward.out_res > 0
        limit = math.inf if perfect or forward.out_bound <= 0 else forward.out_bound
        self.step = _step(forward.out_res, limit) if self.quantised else 1.0
        self.output_limit = limit / self.step
        open_inputs = math.isinf(self.input_limit) and not self.input_step
        self.linear = open_inputs and math.isinf(limit) and not self.quantised
        kernels = self._kernels(placed.tile.tile.get_weights(), columns)
        self.register_buffer("weight", kernels / self.step)
        self.register_buffer("scale", self.step * output_scale(tile)[:, None, None])

        self.draws = draws_per_operation(forward)
        self.noise_level = weight_noise(forward) / self.step
        self.output_noise = 0.0 if perfect else max(forward.out_noise, 0.0) / self.step
        variance_weight = None
        if self.noise_level and forward.w_noise_type == WeightNoiseType.PCM_READ:
            variance_weight = self.noise_level**2 * self.step * self.weight.abs()
        self.register_buffer("variance_weight", variance_weight)

    def _kernels(self, weights: torch.Tensor, columns: slice) -> torch.Tensor:
        """The tile's weights as `[rows, channel, *kernel]`; zero where a tap is another tile's."""
        taps = self.convolution.taps
        channels = self.channels.stop - self.channels.start
        kernels = torch.zeros(len(weights), channels * taps)
        first = columns.start - self.channels.start * taps
        kernels[:, first : first + weights.shape[1]] = weights
        return kernels.view(len(weights), channels, *self.convolution.kernel)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outputs as the converter gives them, and the factor that turns them into the layer's.

        Args:
          x: the layer's input, float32 `[batch, channel, height, width]`.

        Returns:
          float32 `[batch, rows, height, width]`, and a factor that broadcasts to it.
        """
        x, unit = self.inputs(x)
        outputs = self.convolution(x[:, self.channels], self.weight)
        if self.draws:
            normals = sample_normals(self.noise, self.name, outputs)
            outputs.addcmul_(normals, _spread(self.noise_variance(x, unit)))
        if not self.quantised and math.isinf(self.output_limit):
            return outputs, self.scale
        unit = _or_1(unit)
        outputs.div_(unit)
        if self.quantised:
            outputs.round_()
        outputs.clamp_(-self.output_limit, self.output_limit)
        return outputs, unit * self.scale

    def inputs(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tile's DAC makes of a layer's input, and the unit of inputs.

        Returns:
          The inputs in the layer's units, `[batch, channel, height, width]`, or its columns of each
          patch, `[batch, column, height, width]`, for a DAC with a unit for each patch. The unit
          broadcasts to outputs; 0 for inputs of 0 alone that have no fixed one, and where nothing
          needs it.
        """
        if self.unfolded is not None:
            x = self.unfolded.patches(x, self.columns)
        unit = self._unit(x)
        if not self.input_step:
            bounded = not math.isinf(self.input_limit)
            return (x.clamp(-self.input_limit, self.input_limit) if bounded else x), unit
        # Operation by operation as AIHWKit's, for equal values lie on the edge between two codes.
        if self.input_range is not None:
            x = x.clamp(-self.input_range, self.input_range) / unit
        elif self.input_unit is None:
            x = x * (1 / _or_1(unit))
        x = (x / self.input_step).round_().mul_(self.input_step)
        return x.clamp_(-self.input_bound, self.input_bound).mul_(unit), unit

    def noise_variance(self, x: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
        """Variance of the noise in the outputs, ahead of the converter; broadcasts to them.

        Args:
          x, unit: as `inputs` gives them.
        """
        variance = x.new_zeros(())
        if self.variance_weight is not None:
            variance = self.convolution(x[:, self.channels].square(), self.variance_weight)
        elif self.noise_level:
            variance = self.convolution.sum_of_squares(x, self.parts).mul_(self.noise_level**2)
        return variance + (self.output_noise * unit) ** 2 if self.output_noise else variance

    def output_variance(self, x: torch.Tensor) -> torch.Tensor:
        """Variance that noise and ADC add to the layer's outputs; broadcasts to them.

        The ADC's error counts as uniform over its step, of variance step^2 / 12, and saturation as
        none. Inputs of 0 alone have no error.

        Args:
          x: the layer's input.
        """
        x, unit = self.inputs(x)
        variance = x.new_zeros(())
        if self.draws:
            variance = variance + self.scale**2 * self.noise_variance(x, unit)
        if self.quantised:
            if self.input_unit is not None:
                unit = unit * (self.convolution.largest_magnitude(x, self.parts) > 0)
            variance = variance + (unit * self.scale) ** 2 / 12
        return variance

    def input_variance(self, x: torch.Tensor) -> torch.Tensor:
        """Variance of the DAC's error of each input, as uniform over its step: step^2 / 12.

        Saturation counts as none. Inputs of 0 and the largest, which gives the unit, are exact.

        Args:
          x: the layer's input.

        Returns:
          As the inputs that `inputs` gives.
        """
        _, unit = self.inputs(x)
        exact = x if self.unfolded is None else self.unfolded.patches(x, self.columns)
        inexact = (exact != 0) & (exact.abs() < unit * self.input_bound)
        return (unit * self.input_step) ** 2 / 12 * inexact

    def _unit(self, x: torch.Tensor) -> torch.Tensor:
        if self.input_unit is not None:
            return x.new_full((), self.input_unit)
        bounded = self.quantised or not math.isinf(self.output_limit)
        if bounded or self.input_step or self.output_noise:
            return self.convolution.largest_magnitude(x, self.parts)
        return x.new_zeros(())


def _step(resolution: float, bound: float) -> float:
    """The step of a converter of AIHWKit's resolution or number of steps, and bound; 0 for none."""
    if resolution <= 0:
        return 0.0
    return 2 * (1 / resolution if resolution > 1 else resolution) * bound


def _or_1(unit: torch.Tensor) -> torch.Tensor:
    """Units to divide by."""
    return torch.where(unit > 0, unit, 1.0)


# These layers take the attributes of those in whose place they are, so that their own have names
# that no one else gives.


class _TiledLayer(nn.Module):
    """Tile by tile; the partial sums are added in digital."""

    bias: torch.Tensor | None

    def __init__(self, tiles: list[_Tile], bias: torch.Tensor | None):
        super().__init__()
        self._chip_tiles = nn.ModuleList(tiles)
        self._chip_outputs = max(tile.rows.stop for tile in tiles)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 3:
            return self.forward(x[None])[0]  # one image, as PyTorch's own layers take it
        total: torch.Tensor | None = None
        for tile in cast(Iterable[_Tile], self._chip_tiles):
            outputs, factor = tile(x)
            if total is None:
                shape = (len(outputs), self._chip_outputs, *outputs.shape[2:])
                total = torch.empty(shape, device=x.device, memory_format=_memory_format(outputs))
            if tile.first:
                torch.mul(outputs, factor, out=total[:, tile.rows])
            else:
                total[:, tile.rows].addcmul_(outputs, factor)
        assert total is not None
        return total if self.bias is None else total.add_(self.bias[:, None, None])

    def _chip_variances(self, x: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
        """Outputs and the variance of their errors, which broadcasts to them; tile by tile."""
        tiles = cast(Iterable[_Tile], self._chip_tiles)
        return [(tile.rows, tile.output_variance(x)) for tile in tiles]

    def _chip_input_part(self, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """Variance of a quantity of this gradient that the tiles' DACs give it; `[batch]`.

        An input's error is in all outputs of its column of tiles: `sum_x (dq/dx)^2 var(x)`. For
        DACs with a unit for each patch, an input's errors in its patches count as independent.
        """
        tiles = [tile for tile in cast(Iterable[_Tile], self._chip_tiles) if tile.input_step]
        columns: dict[tuple[int, float | None], list[_Tile]] = {}
        for tile in tiles:
            columns.setdefault((tile.columns.start, tile.input_unit), []).append(tile)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for column in columns.values():
            with torch.enable_grad():
                inputs = column[0].inputs(x)[0].detach().requires_grad_()
                moved = inputs.new_zeros(())
                for tile in column:
                    outputs = tile.convolution(inputs[:, tile.channels], tile.weight) * tile.scale
                    moved = moved + (outputs * gradient[:, tile.rows]).sum()
            (slope,) = torch.autograd.grad(moved, inputs)
            terms = slope.square() * column[0].input_variance(x)
            total += terms.sum((1, 2, 3), dtype=torch.float64)
        return total


class _NoisyLayer(nn.Module):
    """Linear tiles with noise in each operation: one convolution, and the sum of their noises.

    The tiles' noises are independent, so that their sum is one Gaussian of the sum of variances.
    """

    _chip_kernels: torch.Tensor
    bias: torch.Tensor | None
    _chip_variance_weight: torch.Tensor | None

    def __init__(self, tiles: list[_Tile], layer: AnalogLayer, name: str):
        super().__init__()
        self._chip_tiles, self._chip_name = nn.ModuleList(tiles), name
        self._chip_convolution, self._chip_noise = tiles[0].convolution, tiles[0].noise
        weight = effective_weight(layer)
        shape = (len(weight), -1, *self._chip_convolution.kernel)
        self.register_buffer("_chip_kernels", weight.view(shape))
        self.register_buffer("bias", layer_bias(layer))
        variance_weight = None
        if all(tile.variance_weight is not None and not tile.output_noise for tile in tiles):
            # Each weight's share of the variance, so that all tiles are one convolution too.
            variance_weight = torch.empty_like(weight)
            for tile, placed in zip(tiles, placed_tiles(layer), strict=True):
                unit = (tile.noise_level * output_scale(placed.tile)[:, None]) ** 2
                variance_weight[placed.rows, placed.columns] = (
                    unit * placed.tile.tile.get_weights().abs()
                )
            variance_weight = variance_weight.view(shape)
        self.register_buffer("_chip_variance_weight", variance_weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 3:
            return self.forward(x[None])[0]
        outputs = self._chip_convolution(x, self._chip_kernels)
        normals = sample_normals(self._chip_noise, self._chip_name, outputs)
        for rows, variance in self._chip_variances(x):
            outputs[:, rows].addcmul_(normals[:, rows], _spread(variance))
        return outputs if self.bias is None else outputs.add_(self.bias[:, None, None])

    def _chip_variances(self, x: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
        """Outputs and the variance of their noise, which broadcasts to them."""
        if self._chip_variance_weight is not None:
            return [(slice(None), self._chip_convolution(x.square(), self._chip_variance_weight))]
        found: dict[tuple[int, int], torch.Tensor] = {}
        for tile in cast(Iterable[_Tile], self._chip_tiles):
            rows = (tile.rows.start, tile.rows.stop)
            variance = tile.scale**2 * tile.noise_variance(*tile.inputs(x))
            found[rows] = found[rows] + variance if rows in found else variance
        return [(slice(*rows), variance) for rows, variance in found.items()]


class _AsConvolution(nn.Module):
    """A linear layer as a convolution with a kernel of one tap over all axes but the last."""

    weight: torch.Tensor

    def __init__(self, layer: nn.Module, bias: torch.Tensor | None):
        super().__init__()
        self._chip_layer = layer
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel() == 0:  # rows that a router sends to no expert
            return x.new_zeros(*x.shape[:-1], len(self.weight))
        outputs = self._chip_layer(_as_images(x)).permute(0, 2, 3, 1)
        return outputs.reshape(*x.shape[:-1], outputs.shape[-1]).contiguous()


def _as_images(x: torch.Tensor) -> torch.Tensor:
    """Features `[batch, ..., feature]` as `[batch, feature, height, 1]`; or one `[feature]`."""
    batch = len(x) if x.ndim > 1 else 1
    return x.reshape(batch, math.prod(x.shape[1:-1]), 1, x.shape[-1]).permute(0, 3, 1, 2)


def propagated_variance(layer: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The variance that a layer's errors give a quantity q, to first order: sum_y (dq/dy)^2 var(y).

    The layer is one of `fast_network`; the errors are its converters' and its noise of each
    operation, each output's independent of the others', and each input's of its DACs.

    Args:
      x: the layer's input, float32 `[batch, ...]`, or one image `[channel, height, width]`.
      gradient: dq/dy, as the layer's outputs y.

    Returns:
      float64 `[batch]`; zeros for a layer that is without.
    """
    if isinstance(layer, _AsConvolution):
        return propagated_variance(layer._chip_layer, _as_images(x), _as_images(gradient))
    if x.ndim == 3:
        x, gradient = x[None], gradient[None]
    total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    if isinstance(layer, _TiledLayer | _NoisyLayer):
        for rows, variance in layer._chip_variances(x):
            # A fast convolution may give less than 0 for a 0.
            terms = gradient[:, rows].square() * variance.clamp(min=0.0)
            total += terms.sum((1, 2, 3), dtype=torch.float64)
    if isinstance(layer, _TiledLayer):
        total += layer._chip_input_part(x, gradient)
    return total


def _spread(variance: torch.Tensor) -> torch.Tensor:
    """The standard deviation, in place; a fast convolution may give less than 0 for a 0."""
    return variance.clamp_(min=0.0).sqrt_()


def sample_normals(noise: SampleNoise, name: str, like: torch.Tensor) -> torch.Tensor:
    """Standard normals of the shape of `like` `[batch, channel, height, width]`."""
    rows, channels, height, width = like.shape
    return noise.normals(name, (rows, height, width, channels), like.device).permute(0, 3, 1, 2)


def _memory_format(x: torch.Tensor) -> torch.memory_format:
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format
