"""The DAC's fixed input range: set on a layer's tiles, and calibrated on images."""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import nn

from bridge.chips.calibration import calibrated, refused_unused
from bridge.chips.observation import run_over
from bridge.chips.profiles import DAC
from bridge.chips.range_rules import INPUTS
from bridge.chips.tiles import AnalogLayer, Tile, named_layers


def calibrate_input_ranges(
    analog: nn.Module, images: torch.Tensor, percentile: float
) -> dict[str, float]:
    """Input ranges of the layers on tiles, in units of their activations; not set.

    Args:
      analog: a converted network with its target weights, without input ranges.
      images: as `as_tensor` gives them.
      percentile: the range is this percentile of the magnitudes of a layer's inputs over all
        images, positions and calls, by nearest rank; a convolution's padding does not count.

    Returns:
      The ranges by layer; see `calibrated` for layers whose inputs are 0.

    Raises:
      ValueError: images that are all 0, leave a layer unused or make its inputs non-finite.
    """
    ideal = deepcopy(analog)
    layers = named_layers(ideal)
    for layer in layers.values():
        for tile in layer.analog_tiles():
            tile.rpu_config.forward.is_perfect = True

    def observe(some: torch.Tensor, keep: Callable[[str, torch.Tensor], None]) -> None:
        def hook(name: str) -> Callable[[AnalogLayer, tuple[torch.Tensor]], None]:
            return lambda layer, inputs: keep(name, inputs[0])

        handles = [one.register_forward_pre_hook(hook(name)) for name, one in layers.items()]
        try:
            run_over(ideal, some, "calibrate inputs")
        finally:
            for handle in handles:
                handle.remove()

    def unused(lacking: list[str]) -> ValueError:
        return refused_unused(lacking, len(images), "a DAC", "DAC(range=5.0)")

    return calibrated(observe, dict.fromkeys(layers, 1.0), images, percentile, INPUTS, unused)


def input_ranges(analog: nn.Module, dac: DAC, calibration: torch.Tensor | None) -> dict[str, float]:
    """The DAC's fixed range of each layer on tiles; {} where each input vector has its own unit."""
    if dac.range == "max":
        return {}
    if dac.range == "calibrated":
        assert calibration is not None
        return calibrate_input_ranges(analog, calibration, dac.percentile)
    return dict.fromkeys(named_layers(analog), float(dac.range))


def set_input_ranges(analog: nn.Module, ranges: Mapping[str, float]) -> None:
    """Gives the tiles of each layer its input range, in place."""
    layers = named_layers(analog)
    for name, value in ranges.items():
        for tile in layers[name].analog_tiles():
            _set(tile, value)


def leave_out_calibrated(tile: Tile) -> None:
    """Takes a range from a tile that is still to be calibrated: NaN would reach its outputs."""
    settings = tile.rpu_config.pre_post.input_range
    if settings.enable and math.isnan(settings.init_value):
        settings.enable = False
        tile.init_input_processing()


def _set(tile: Tile, value: float) -> None:
    settings = tile.rpu_config.pre_post.input_range
    settings.enable, settings.learn_input_range = True, False
    settings.init_value, settings.init_from_data = value, 0
    tile.init_input_processing()
    tile.input_range_update_idx.requires_grad_(False)
