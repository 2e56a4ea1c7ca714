"""Programmed chips to and from safetensors files."""

import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bridge.array_files import read_arrays, require_folder, write_arrays
from bridge.chips.profiles import to_json
from bridge.jax_chips.chips import Chip, Programmed, exact_logits, paths


def save_programmed(path: str | os.PathLike[str], chip: Chip, weights: Programmed) -> None:
    """Writes a programmed chip, or several stacked ones, atomically.

    Args:
      path: the file; its folder must exist.
      chip: what programmed them.
      weights: of `chip.program`, or that mapped over keys.

    Raises:
      FileNotFoundError: no such folder.
      ValueError: parameters of a type that the format lacks, such as bfloat16, or weights that
        were programmed at another time than the chip's.
    """
    target = require_folder(path)
    _require_time(chip, weights)
    logits = _logits(chip, weights, chip._samples)
    arrays = {name: np.asarray(leaf) for name, leaf in _named(_plain(weights)).items()}
    arrays[_SAMPLES] = chip._samples
    if wrong := sorted({str(one.dtype) for one in arrays.values() if one.dtype.isbuiltin != 1}):
        raise ValueError(f"a file does not hold {', '.join(wrong)}: program float32 parameters")
    header = json.dumps({**_header(chip), "logits": logits.tolist()})
    write_arrays(target, arrays, header)


def load_programmed(path: str | os.PathLike[str], chip: Chip) -> Programmed:
    """Reads what `save_programmed` wrote; runs no code from the file.

    Args:
      path: the file.
      chip: one made as that was which programmed them: of the same profile, parameters' shapes,
        ranges of the converters, and logits without a chip's operations: of a few of the examples
        that the first chip was made with, as they are and, where they are no ids, four times as
        large.

    Raises:
      FileNotFoundError: no such file.
      ValueError: the file is damaged, no such file, or of another chip.
    """
    arrays, header = read_arrays(path, "programmed chip", "save_programmed")
    there, here = json.loads(header), _header(chip)
    for name, value in here.items():
        if there.get(name) != value:
            raise ValueError(
                f"{path} is of a chip with other {name}: {there.get(name)} there and {value} here"
            )
    shapes = jax.eval_shape(lambda: _plain(chip.program(chip.params, jax.random.key(0))))
    like, samples = _named(shapes), arrays.pop(_SAMPLES, None)
    if samples is None:
        raise ValueError(
            f"{path} was written by an earlier version, which kept no samples: program the chip "
            "again, with the same key, and save it"
        )
    if arrays.keys() != like.keys():
        raise ValueError(f"{path} has other arrays than the chip: {', '.join(arrays)}")
    stacked = {arrays[name].shape[: arrays[name].ndim - one.ndim] for name, one in like.items()}
    for name, one in like.items():
        if len(stacked) > 1 or arrays[name].shape[arrays[name].ndim - one.ndim :] != one.shape:
            raise ValueError(f"{path} has {name} {arrays[name].shape}, the chip {one.shape}")
    leaves = [jnp.asarray(arrays[name]) for name in like]
    found_there: Programmed = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    params = jax.tree.map(_as, chip.params, found_there.params)
    key = jax.random.wrap_key_data(found_there.key, impl="threefry2x32")
    weights = found_there._replace(params=params, key=key)
    then, now = np.array(there["logits"], np.float32), _logits(chip, weights, samples)
    largest = np.abs(then[np.isfinite(then)]).max(initial=0.0)
    if then.shape != now.shape or not np.allclose(now, then, 0, 1e-4 * largest, equal_nan=True):
        raise ValueError(
            f"{path} is of a chip of other code: with its weights the function gives {now[0]} for "
            f"one sample, and gave {then[0]}"
        )
    return weights


_SAMPLES = "samples"


def _logits(chip: Chip, weights: Programmed, samples: np.ndarray) -> np.ndarray:
    """What the function makes of samples with the weights of the first chip, `[n, classes]`."""
    params = jax.tree.map(
        lambda leaf, like: leaf[(0,) * (leaf.ndim - jnp.ndim(like))], weights.params, chip.params
    )
    if np.issubdtype(samples.dtype, np.floating):
        samples = np.concatenate([samples, 4 * samples])
    return np.asarray(exact_logits(chip, params, samples), np.float32)


def _require_time(chip: Chip, weights: Programmed) -> None:
    memory = chip.profile.memory
    if memory is None or weights.time is None:
        return
    if not (np.asarray(weights.time) == np.float32(memory.t_inference)).all():
        raise ValueError(
            f"the weights are of {np.ravel(weights.time)[0]:g} s after programming, the chip of "
            f"{memory.t_inference:g} s: save them with the chip that programmed them, such as "
            f"chip.at({np.ravel(weights.time)[0]:g})"
        )


def _header(chip: Chip) -> dict[str, Any]:
    ranges = {name: one.tolist() for name, one in chip.adc_ranges.items()}
    profile = json.loads(json.dumps(to_json(chip.profile)))
    header = {"profile": profile, "layers": list(chip.layers), "ranges": ranges}
    return header | ({"input ranges": chip.dac_ranges} if chip.dac_ranges else {})


def _named(weights: Any) -> dict[str, Any]:
    return dict(zip(paths(weights), jax.tree.leaves(weights), strict=True))


def _is_key(leaf: Any) -> bool:
    return bool(jax.dtypes.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key))


def _plain(tree: Any) -> Any:
    """A tree with numbers in place of random keys."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, tree)


def _as(like: Any, array: jax.Array) -> jax.Array:
    """A random key again, where `like` is one."""
    if not _is_key(like):
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
