"""A chip of `bridge.program` as one in JAX."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from bridge.graphs.conversion import to_jax
from bridge.jax_chips.chips import Chip, Programmed, analog
from bridge.jax_chips.keys import chip_key

if TYPE_CHECKING:
    import bridge


def carried(chip: "bridge.chips.Chip", images: Any) -> tuple[Chip, Programmed]:
    """The weights that a chip's tiles have now, with their converters, in JAX.

        made, weights = bridge.jax_chips.carried(chip, images)
        logits = made.apply(weights, images)

    Without converters the logits agree to 1e-5; with them a few values round to the next code.
    Noise at each operation has the same distribution, and other numbers.

    Args:
      chip: of `bridge.program`, at the time that it has.
      images: examples, as for `bridge.to_jax`.

    Raises:
      ValueError: a chip of an `RPUConfig`, which has settings of its own, or what `bridge.to_jax`
        refuses.
    """
    from bridge.chips.tiles import (
        digital_network,
        named_layers,
        named_tiles,
        output_scale,
        placed_tiles,
    )
    from bridge.chips.weight_noise import largest_target

    if chip.profile is None:
        raise ValueError(
            "a chip of an RPUConfig cannot be carried to JAX: program a bridge.Profile"
        )
    own = [name for name, tile in named_tiles(chip.analog).items() if tile.input_range is not None]
    if own and not chip.input_ranges:
        raise ValueError(
            f"tile {own[0]} has an input range that it was trained with, which a chip in JAX does "
            "not have"
        )
    chip.refuse_changed()
    logits_fn, params = to_jax(digital_network(chip.analog), images)
    layers = {_weight(name): layer for name, layer in named_layers(chip.analog).items()}
    digital = [name for name in params if name not in layers]
    profile = replace(chip.profile, adc=None, dac=None)
    made = analog(logits_fn, params, profile, _batch(images), digital_layers=digital)
    units, ranges, inputs = [], [], []
    for name in made.layers:
        columns: dict[int, list[np.ndarray]] = {}
        bounds = []
        path = name.removesuffix("weight").rstrip(".")
        inputs.append(chip.input_ranges.get(path, np.nan))
        for placed in placed_tiles(layers[name]):
            unit = (output_scale(placed.tile) * largest_target(placed.tile)).numpy()
            rows = np.broadcast_to(unit, (placed.rows.stop - placed.rows.start,))
            columns.setdefault(placed.columns.start, []).append(rows)
            bounds.append(chip.out_bounds.get(f"{path}.{placed.name}".lstrip("."), np.nan))
        units.append(jnp.asarray(np.stack([np.concatenate(one) for one in columns.values()])))
        ranges.append(np.array(bounds, np.float32))
    time = None if chip.t_inference is None else jnp.float32(chip.t_inference)
    weights = Programmed(params, tuple(units), chip_key(chip.seed, chip.stream), time)
    adc_ranges = None if chip.profile.adc is None else tuple(ranges)
    dac_ranges = tuple(inputs) if chip.input_ranges else None
    made = replace(made, profile=chip.profile, _ranges=adc_ranges, _input_ranges=dac_ranges)
    return made, weights


def _weight(layer: str) -> str:
    return f"{layer}.weight".lstrip(".")


def _batch(images: Any) -> Any:
    """Examples as the function in JAX takes them."""
    from bridge.chips.images import as_tensor

    tensor = as_tensor(images, "images")
    return tensor.permute(0, 2, 3, 1).numpy() if tensor.ndim == 4 else tensor.numpy()
