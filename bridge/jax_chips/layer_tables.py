"""A chip layer by layer: how far a layer's outputs are off, and how many predictions it costs."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Shaped
from numpy.typing import NDArray

from bridge.checks import require_count, require_seed
from bridge.chips.layer_tables import ALL_LAYERS, decibels, failures_by_layer
from bridge.jax_chips.chips import Chip, Programmed, sample_numbers
from bridge.jax_chips.keys import chip_key
from bridge.jax_chips.prediction import samples_of, tables_of
from jaxcurv.data.adapters import Keys, SourceLike
from jaxcurv.progress import progress

_CHUNK = 16  # images at once: the digital outputs of every layer are held


def layer_report(
    chip: Chip, weights: Programmed, images: Shaped[Array | np.ndarray, "batch ..."]
) -> pd.DataFrame:
    """How far the outputs of each layer on tiles are from the digital ones.

    The table of `bridge.chips.layer_report`, for outputs ahead of the bias: layer, tiles, snr_db
    (in the running chip), own_snr_db (on digital activations) and clipped_share (the largest share
    of a tile's outputs beyond its ADC range; NaN without an ADC). Noise of each operation is drawn
    as for samples of the indices 0, 1, ...

    Args:
      chip: made by `bridge.analog`.
      weights: one chip of `chip.program`.
      images: as the function takes them.

    Raises:
      ValueError: images of another shape or kind of numbers, weights of several chips or of
        another, outputs that are not finite, or a function that has changed, as for `chip.program`.
    """
    images = np.asarray(images)
    if not len(images):
        raise ValueError("there are no images")
    chip.require_images(images)
    chip.require_one(weights)
    chip.require_same_function()
    sums = np.zeros((3, len(chip.layers)))
    with progress(len(images), "layers") as shown:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            indices = np.arange(start, start + len(chunk), dtype=np.uint32)
            given = jnp.asarray(chunk, chip._example.dtype), jnp.asarray(indices)
            sums += np.stack([np.asarray(one) for one in chip._energies(weights, *given)])
            shown.update(len(chunk))
    pairs = zip(chip.layers, sums.T, strict=True)
    if broken := [name for name, found in pairs if not np.isfinite(found).all()]:
        raise ValueError(
            f"non-finite outputs in layers {', '.join(broken)}; check the weights and the images"
        )
    signal, error, own = sums
    clipped = chip.clipped_share(weights, images) if chip.adc_ranges else {}
    return pd.DataFrame(
        {
            "layer": chip.layers,
            "tiles": [layer.grid.count for layer in chip._plan.layers],
            "snr_db": decibels(signal, error),
            "own_snr_db": decibels(signal, own),
            "clipped_share": [max(clipped.get(name, [math.nan])) for name in chip.layers],
        }
    )


def layer_failures(
    chip: Chip,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    seed: int = 0,
    chips: int = 1,
    batch_size: int = 64,
    stream: str | None = None,
) -> pd.DataFrame:
    """What each layer alone costs: chips with one layer on tiles and every other one digital.

    The layer is programmed as it is on the whole chip of that seed. The digital function and
    `chips` times (layers + 1) chips run over the source.

    Args:
      chip: made by `bridge.analog`.
      source, keys: as for `bridge.predict`.
      seed: the first chip has the key `jax.random.key(seed)`, chip k that of seed + k.
      chips: how many.
      batch_size: images at once.
      stream: a label that is folded into each key, as `jax.random.fold_in(key,
        zlib.crc32(label.encode()))`; None for none.

    Returns:
      The table of `bridge.chips.layer_failures`.

    Raises:
      ValueError: chips below 1, and what `predict` refuses.
    """
    chips, seed = require_count("chips", chips), require_seed(seed)
    batch_size = require_count("batch_size", batch_size)
    given = samples_of(source, keys)
    count, names = len(chip.layers), [*chip.layers, ALL_LAYERS]
    outcomes: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in names}
    logits = jax.jit(chip._logits)
    with progress((1 + chips * len(names)) * len(given), "layers") as shown:

        def correct(weights: Programmed, chosen: np.ndarray, what: str) -> NDArray[np.bool_]:
            def apply(images: Array, indices: Any) -> Array:
                return logits(weights, images, sample_numbers(indices), jnp.asarray(chosen))

            (table,) = tables_of(chip, apply, given, batch_size, [what], _nothing, shown)
            return table["correct"].to_numpy()

        for number in range(seed, seed + chips):
            weights = chip.program(chip.params, chip_key(number, stream))
            if number == seed:
                exact = weights._replace(params=chip.params)
                digital = correct(exact, np.zeros(count, bool), "digital")
            for layer, name in enumerate(chip.layers):
                alone = chip._alone(layer, weights)
                chosen = np.arange(count) == layer
                outcomes[name].append(correct(alone, chosen, f"chip {number}, {name}"))
            outcomes[ALL_LAYERS].append(correct(weights, np.ones(count, bool), f"chip {number}"))
    return failures_by_layer(digital, outcomes)


def _nothing(logits: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """What is kept of logits whose outcome alone counts."""
    return {}
