"""The ADC's range: calibrated on images, and how much lies beyond it."""

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType
from aihwkit.simulator.tiles.utils import UniformQuantize
from torch import nn

from bridge.chips.calibration import calibrated, refused_unused
from bridge.chips.observation import run_over
from bridge.chips.range_rules import OUTPUTS
from bridge.chips.tiles import Tile, named_tiles
from bridge.chips.weight_noise import largest_target


def calibrate_ranges(
    analog: nn.Module, images: torch.Tensor, percentile: float
) -> dict[str, float]:
    """Ranges of the tiles' converters from their outputs on some images, in the tiles' own unit.

    Args:
      analog: a converted network with its target weights.
      images: as `as_tensor` gives them.
      percentile: the range is this percentile of the outputs' magnitudes, by nearest rank.

    Returns:
      The ranges by tile; not set. A tile whose outputs are all 0 on these images, such as one of
      pruned weights, has no range of its own: relative to its largest weight it gets the median of
      the other tiles' ranges, 1 if there is none, and a UserWarning names it. Where only the
      percentile is 0, the largest output takes its place, and a UserWarning says so.

    Raises:
      ValueError: images that are all 0, leave a tile unused or make its outputs non-finite.
    """
    ideal = deepcopy(analog)
    for tile in named_tiles(ideal).values():
        tile.rpu_config.forward.is_perfect = True

    def observe(some: torch.Tensor, keep: Callable[[str, torch.Tensor], None]) -> None:
        _observe(ideal, some, keep, "calibrate")

    def unused(tiles: list[str]) -> ValueError:
        layers = [name.partition("analog_module")[0].rstrip(".") for name in tiles]
        return refused_unused(layers, len(images), "an ADC", "ADC(range=20.0)")

    scales = {
        name: float(largest_target(tile)) or 1.0 for name, tile in named_tiles(analog).items()
    }
    return calibrated(observe, scales, images, percentile, OUTPUTS, unused)


def tile_output_shares(analog: nn.Module, images: torch.Tensor) -> dict[str, float]:
    """The share of each tile's outputs beyond its converter's range, in [0, 1]."""
    tiles = named_tiles(analog)
    bounds = {name: tile.rpu_config.forward.out_bound for name, tile in tiles.items()}
    beyond, seen = dict.fromkeys(bounds, 0), dict.fromkeys(bounds, 0)

    def count(name: str, outputs: torch.Tensor) -> None:
        beyond[name] += int((outputs.abs() > bounds[name]).sum())
        seen[name] += outputs.numel()

    _observe(analog, images, count, "clipped outputs")
    return {name: beyond[name] / seen[name] if seen[name] else math.nan for name in seen}


def _observe(
    analog: nn.Module,
    images: torch.Tensor,
    observe: Callable[[str, torch.Tensor], None],
    description: str,
) -> None:
    """Runs the network and shows `observe` each tile's outputs ahead of the ADC, normalised.

    An output is `W x / unit` for each input vector x, W the weights as the tile holds them, x as
    the tile's DAC gives it, unless it computes perfectly, and the unit max|x|, or the tile's input
    range where it has one.
    """

    def hook(name: str) -> Callable[[Tile, tuple[torch.Tensor]], None]:
        def before(tile: Tile, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0]
            if tile.input_range is not None:
                x = tile.apply_input_range(x) / tile.input_range.abs()
            forward = tile.rpu_config.forward
            if forward.noise_management == NoiseManagementType.ABS_MAX:
                unit = x.abs().amax(-1, keepdim=True)
                x = x / torch.where(unit == 0, 1.0, unit)
            if not forward.is_perfect and forward.inp_res > 0:
                x = UniformQuantize.apply(x, forward.inp_res, forward.inp_bound, False)
                x = x.clamp(-forward.inp_bound, forward.inp_bound)
            observe(name, x @ tile.tile.weight.T)

        return before

    tiles = named_tiles(analog)
    handles = [tile.register_forward_pre_hook(hook(name)) for name, tile in tiles.items()]
    try:
        run_over(analog, images, description)
    finally:
        for handle in handles:
            handle.remove()
