"""Many programmed chips over a data set, several at once."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from bridge.checks import require_count
from bridge.chips.outcomes import Keep
from bridge.jax_chips.chips import Chip, sample_numbers
from bridge.jax_chips.prediction import samples_of, tables_of
from jaxcurv.data.adapters import Keys, SourceLike
from jaxcurv.progress import progress


def predict_chips(
    chip: Chip,
    chip_keys: Array,
    source: SourceLike,
    *,
    at_once: int | None = None,
    keys: Keys | None = None,
    batch_size: int = 64,
    description: str = "predict",
    keep: Keep | None = None,
) -> pd.DataFrame:
    """What many chips make of every sample: one table after the other.

        keys = jax.random.split(jax.random.key(0), 100)
        table = bridge.jax_chips.predict_chips(chip, keys, (images, labels))
        failing = 1 - table.groupby("index")["correct"].mean()  # the share of chips, by image

    Chips are programmed and run in groups, those of a group spread over the local devices and
    mapped (`jax.vmap`); on CPUs, where mapped convolutions are slow, one by one. One compiled
    program serves all groups.

    Args:
      chip: made by `bridge.analog`.
      chip_keys: random keys `[chips]`, as `jax.random.split` gives them.
      source, keys, batch_size, description, keep: as for `predict`.
      at_once: chips of a group. None for one on CPUs, else as many as half of the devices' memory
        holds with their activations.

    Returns:
      The tables of `predict`, with the column chip (int64, the position of its key) first.

    Raises:
      ValueError: no chip, at_once below 1, or what `predict` refuses.
    """
    batch_size = require_count("batch_size", batch_size)
    given = samples_of(source, keys)
    if not _are_keys(chip_keys):
        raise ValueError(
            "chip_keys must be an array of random keys [chips], such as jax.random.split(key, "
            f"chips); got {chip_keys!r}"
        )
    count = len(chip_keys)
    devices = jax.local_devices()
    if at_once is None:
        at_once = fitting(chip, batch_size)
    group = _even(min(require_count("at_once", at_once), count), len(devices))
    chip.require_same_function()
    tables = []
    with progress(count * len(given), description, "image") as shown:
        for first in range(0, count, group):
            numbers = range(first, min(first + group, count))
            names = [f"{description}: chip {number}" for number in numbers]
            apply = _together(chip, chip_keys[np.resize(numbers, group)], devices)
            tables += tables_of(chip, apply, given, batch_size, names, keep, shown)
    for number, table in enumerate(tables):
        table.insert(0, "chip", np.int64(number))
    return pd.concat(tables, ignore_index=True)


def _are_keys(chip_keys: Any) -> bool:
    """Whether these are keys `[chips]`, typed or of the words that JAX had before."""
    if not isinstance(chip_keys, jax.Array | np.ndarray):
        return False
    typed = jnp.issubdtype(chip_keys.dtype, jax.dtypes.prng_key)
    return chip_keys.ndim == (1 if typed else 2) and len(chip_keys) > 0


def fitting(chip: Chip, batch_size: int) -> int:
    """How many chips half of the local devices' memory holds; one on CPUs."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return 1
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 0)
    weights = jax.eval_shape(chip.program, chip.params, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch_size, *chip._example.shape), chip._example.dtype)
    indices = jax.ShapeDtypeStruct((batch_size,), jnp.uint32)
    needed = chip._apply.lower(weights, images, indices).compile().memory_analysis()
    if needed is None:
        return len(devices)
    held = needed.argument_size_in_bytes + needed.temp_size_in_bytes
    return _that_fit(limit, held, len(devices))


def _that_fit(limit: int, held: int, devices: int) -> int:
    """How many chips half of the devices' memory holds, one a device at least.

    Args:
      limit: bytes of a device.
      held: bytes that one chip takes with a batch's activations.
    """
    return devices * max(1, limit // 2 // held)


def _even(group: int, devices: int) -> int:
    """A group's size, raised so that each device has as many of its chips as another."""
    used = min(group, devices)
    return -(-group // used) * used


def _together(chip: Chip, chip_keys: Array, devices: Sequence[jax.Device]) -> Callable[..., Array]:
    """From images and their indices to logits of a group of chips, `[chip, batch, class]`."""
    if len(chip_keys) == 1:
        weights = chip._programmed(chip.params, chip_keys[0])
        return lambda images, indices: chip.apply(weights, images, indices=indices)[None]
    used = min(len(chip_keys), len(devices))
    mesh = Mesh(np.array(devices[:used]), ("chips",))
    spread = NamedSharding(mesh, PartitionSpec("chips"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    chip_keys = jax.device_put(chip_keys, spread)
    weights = chip._program_many(jax.device_put(chip.params, everywhere), chip_keys)

    def apply(images: Array, indices: Any) -> Array:
        given = jax.device_put((images, sample_numbers(indices)), everywhere)
        return chip._apply_many(weights, *given)

    return apply
