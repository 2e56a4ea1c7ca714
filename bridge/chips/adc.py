"""The ADC's range: calibrated on images, and how much lies beyond it."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from statistics import median

import torch
from aihwkit.simulator.parameters.enums import NoiseManagementType
from torch import nn

from bridge.chips.images import refused_layout, require_rows
from bridge.chips.mappable import some
from bridge.chips.tiles import Tile, named_tiles
from bridge.chips.weight_noise import largest_target
from jaxcurv.progress import progress

_CHUNK = 32  # images at once where tiles are observed: unfolded images are large


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
    black = images.is_floating_point() and not images.any()
    ideal = deepcopy(analog)
    for tile in named_tiles(ideal).values():
        tile.rpu_config.forward.is_perfect = True
    counts: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    largest: dict[str, torch.Tensor] = {}

    def count(name: str, outputs: torch.Tensor) -> None:
        counts[name] += outputs.numel() * len(images)

    def keep_largest(name: str, outputs: torch.Tensor) -> None:
        # Rounding must not lift 99.9 % of 3,000 above 2,997.
        below = math.ceil(counts[name] * percentile / 100 * (1 - 1e-12)) - 1
        magnitudes = outputs.abs().flatten()
        seen[name] += len(magnitudes)
        if name in largest:
            magnitudes = torch.cat([largest[name], magnitudes])
        largest[name] = magnitudes.topk(min(counts[name] - below, len(magnitudes))).values

    _observe(ideal, images[:1], count, "calibrate")
    _observe(ideal, images, keep_largest, "calibrate")
    if percentile < 100 and seen != counts:  # not as many of each image, as where images are routed
        counts, seen, largest = seen, Counter(), {}
        _observe(ideal, images, keep_largest, "calibrate")
    _refuse_unused(named_tiles(analog), seen, len(images))
    bounds: dict[str, float] = {}
    dead: list[str] = []
    sparse: list[str] = []
    scales = {
        name: float(largest_target(tile)) or 1.0 for name, tile in named_tiles(analog).items()
    }
    for name in scales:
        # topk puts NaN first: a maximum would hide it.
        kept = largest[name]
        bound = math.nan if kept.isnan().any() else float(kept[-1])
        if not math.isfinite(bound) or (bound == 0 and black):
            raise ValueError(
                f"calibration gives tile {name} the ADC range {bound}; "
                "use images on which every layer is finite and active"
            )
        if bound == 0:
            bound = float(kept[0])
            (sparse if bound else dead).append(name)
        if bound:
            bounds[name] = bound
    share = median([bound / scales[name] for name, bound in bounds.items()]) if bounds else 1.0
    if dead:
        warnings.warn(
            f"no output other than 0 on the calibration images: tile {', '.join(dead)}; each gets "
            f"the ADC range {share:g} (for a largest weight of 1)"
            f"{', the median of the other tiles' if bounds else ''}",
            stacklevel=4,
        )
    if sparse:
        warnings.warn(
            f"percentile {percentile:g} of the outputs on the calibration images is 0: tile "
            f"{', '.join(sparse)}; each gets its largest output as its ADC range",
            stacklevel=4,
        )
    return {name: bounds.get(name, share * scale) for name, scale in scales.items()}


def _refuse_unused(tiles: Iterable[str], seen: Mapping[str, int], images: int) -> None:
    """Refuses tiles whose outputs no image has shown: their ADC has no range."""
    unused = [
        name.partition("analog_module")[0].rstrip(".") for name in tiles if not seen.get(name)
    ]
    if unused:
        layers = list(dict.fromkeys(unused))
        raise ValueError(
            f"not used on the {images} calibration images, and so without an ADC range: layer "
            f"{some(layers)}; calibrate on images that need it, give a range, such as "
            f"ADC(range=20.0), or leave what no image needs digital, digital_layers={layers}"
        )


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

    An output is `W x / unit` for each input vector x, W the weights as the tile holds them and the
    unit max|x|, or the tile's input range where it has one.
    """

    def hook(name: str) -> Callable[[Tile, tuple[torch.Tensor]], None]:
        def before(tile: Tile, inputs: tuple[torch.Tensor]) -> None:
            x = inputs[0]
            if tile.input_range is not None:
                x = tile.apply_input_range(x) / tile.input_range.abs()
            if tile.rpu_config.forward.noise_management == NoiseManagementType.ABS_MAX:
                unit = x.abs().amax(-1, keepdim=True)
                x = x / torch.where(unit == 0, 1.0, unit)
            observe(name, x @ tile.tile.weight.T)

        return before

    tiles = named_tiles(analog)
    handles = [tile.register_forward_pre_hook(hook(name)) for name, tile in tiles.items()]
    try:
        with torch.inference_mode(), progress(len(images), description, side=True) as shown:
            for chunk in images.split(_CHUNK):
                with refused_layout(chunk):
                    found = analog(chunk.clone())
                require_rows(found, chunk)
                shown.update(len(chunk))
    finally:
        for handle in handles:
            handle.remove()
