"""BatchNorm statistics that a chip in JAX measures itself (AdaBS)."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from bridge.checks import require_count
from bridge.chips.channel_moments import ChannelMoments, require_enough, require_measured
from bridge.chips.outcomes import refuse_other_scale
from bridge.jax_chips import jaxprs
from bridge.jax_chips.chips import Chip, Programmed, paths
from bridge.jax_chips.execution import met
from jaxcurv.engine.batch import PRECISION
from jaxcurv.progress import progress

_PAIRS = (("running_mean", "running_var"), ("mean", "var"))
"""How PyTorch and Flax name a BatchNorm's statistics."""


def recalibrate(
    chip: Chip,
    weights: Programmed,
    images: Shaped[Array | np.ndarray, "batch ..."],
    *,
    batch_size: int = 64,
) -> Programmed:
    """The same programmed chip with BatchNorm statistics of its own activations on some images.

        weights = chip.program(params, jax.random.key(0))
        again = bridge.jax_chips.recalibrate(chip, weights, images)

    What is estimated, how and whence: `bridge.recalibrate`. The statistics must be among the
    parameters, as a pair of vectors whose paths end in mean and var (Flax) or running_mean and
    running_var (`bridge.to_jax`), and meet activations by sums, differences, products or quotients
    alone, as (x - mean) / sqrt(var + eps) does. It costs as many passes as there are BatchNorms.
    Weights on tiles and all other parameters stay as they are.

    What stands where a pair first meets activations is taken for what the BatchNorm is given. Only
    parameters beside the pair may meet activations together with it, and are taken for its scale
    and shift: those whose paths differ in the last part alone, or in the first too, as those of
    Flax's collections do. Add a layer's bias before, not within the shift: it would be missing from
    the measured mean.

    `chip.at(t)` programs statistics as `params` have them; `with_digital_of` takes over these.
    `save_programmed` keeps them.

    Args:
      chip: made by `bridge.analog`.
      weights: one chip of `chip.program`.
      images: for calibration, as the function takes them; some hundred. Noise of each operation is
        drawn as for samples of the indices 0, 1, ...
      batch_size: images at once; changes speed and memory.

    Raises:
      ValueError: no such pair, one that the function uses otherwise, more than once or together
        with parameters that are not beside it, fewer than two images, images of another shape,
        kind of numbers or scale than the chip was calibrated on, values that are not finite,
        weights of another chip, or a function that computes otherwise than when the chip was made.
    """
    batch_size = require_count("batch_size", batch_size)
    chip.require_one(weights)
    given = np.asarray(chip.as_images(images))
    require_enough(len(given))
    if chip.largest_pixel is not None:
        refuse_other_scale(given, list(range(len(given))), chip.largest_pixel, first=True)
    chip.require_same_function()
    found = _norms(chip)
    leaves, treedef = jax.tree.flatten(weights.params)
    run = _inputs_moments(chip, found, weights)
    with progress(len(found) * len(given), "recalibrate") as shown:
        for place, norm in enumerate(found):
            moments = ChannelMoments(norm.channels)
            for rows, batch, indices in _batches(given, batch_size):
                mean, squares = (
                    np.asarray(one)[:rows] for one in run(leaves, batch, indices)[place]
                )
                for part in zip(mean, squares, strict=True):
                    moments.add(norm.values, *part)
                shown.update(rows)
            require_measured(moments, norm.name)
            for leaf, value in ((norm.mean, moments.mean), (norm.variance, moments.variance)):
                leaves[leaf] = jnp.asarray(value, jnp.result_type(leaves[leaf]))
    return weights._replace(params=jax.tree.unflatten(treedef, leaves))


def with_digital_of(chip: Chip, later: Programmed, weights: Programmed) -> Programmed:
    """A programmed chip with the digital parameters of another, such as recalibrated statistics.

        later = chip.at(3600.0).program(params, key)
        aged = bridge.jax_chips.with_digital_of(chip, later, again)

    Args:
      chip: made by `bridge.analog`.
      later: whose weights on tiles, and all else that was programmed, stay.
      weights: whose parameters with no weight on a tile are taken.

    Raises:
      ValueError: weights of another chip.
    """
    chip.require_one(later)
    chip.require_one(weights)
    on_tiles = {layer.weight.leaf for layer in chip._plan.layers}
    programmed, treedef = jax.tree.flatten(later.params)
    digital = jax.tree.leaves(weights.params)
    leaves = [
        programmed[leaf] if leaf in on_tiles else digital[leaf] for leaf in range(len(digital))
    ]
    return later._replace(params=jax.tree.unflatten(treedef, leaves))


class _Norm(NamedTuple):
    """A BatchNorm of a function.

    Attributes:
      name: path of its mean.
      mean, variance: positions of both among the leaves.
      meeting: number of the meeting that shows what it is given.
      axes: of what it is given, those that are not the channels.
      channels, values: how many channels it has, and one sample has values of each.
    """

    name: str
    mean: int
    variance: int
    meeting: int
    axes: tuple[int, ...]
    channels: int
    values: int


def _norms(chip: Chip) -> list[_Norm]:
    """The function's BatchNorms in the order of its program; those that it does not use are left.

    Raises:
      ValueError: there is none, or it is used otherwise.
    """
    names = paths(chip.params)
    pairs = dict(_pairs(names))
    if not pairs:
        raise ValueError(
            "params have no BatchNorm to recalibrate: no two paths end in mean and var, or in "
            "running_mean and running_var. Statistics that the function closes over do not show: "
            "put them into params, as bridge.to_jax and Flax do"
        )
    meetings: list[jaxprs.Meeting] = []
    *leaves, image = (jaxprs.shape_of(one) for one in chip._program.jaxpr.invars)

    def walk(given: Any, x: Any) -> list[Any]:
        return jaxprs.run(chip._program, given, x, lambda *_: None, meetings.append)

    jax.eval_shape(walk, leaves, image)
    met_means = Counter(leaf for one in meetings for leaf in one.leaves & pairs.keys())
    found = {}
    for number, one in enumerate(meetings):
        for mean, variance in pairs.items():
            first = mean not in found and bool(one.leaves & {mean, variance})
            if first or mean in one.leaves:
                _require_beside(names, mean, one.leaves - {mean, variance})
            if not first:
                continue
            found[mean] = _norm(names[mean], mean, variance, number, one, leaves[mean].shape)
            if met_means[mean] != 1:
                raise ValueError(
                    f"{names[mean]} meets activations {met_means[mean]} times in a pass, where a "
                    "BatchNorm's mean does once: give each place a BatchNorm of its own"
                )
    if not found:
        raise ValueError(
            f"the function does not use {', '.join(names[mean] for mean in pairs)}, so that "
            "nothing is to recalibrate"
        )
    return list(found.values())


def count_batch_norms(params: Any) -> int:
    """How many BatchNorms have their statistics among parameters, by their paths."""
    return len(list(_pairs(paths(params))))


def _pairs(names: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Positions of a mean and its variance, by their paths."""
    for position, name in enumerate(names):
        within, _, last = name.rpartition(".")
        for mean, variance in _PAIRS:
            other = f"{within}.{variance}".lstrip(".")
            if last == mean and other in names:
                yield position, names.index(other)


def _require_beside(names: Sequence[str], mean: int, others: Iterable[int]) -> None:
    """A ValueError where others than its own scale and shift meet activations with a BatchNorm."""
    for other in sorted(others):
        places = [names[one].split(".")[:-1] for one in (mean, other)]
        if places[0] != places[1] and (min(map(len, places)) < 2 or places[0][1:] != places[1][1:]):
            raise ValueError(
                f"{names[other]} meets activations together with {names[mean]}, so that what is "
                "normalised does not show: add a layer's bias to its result before the BatchNorm, "
                f"and give the BatchNorm's own scale and shift paths beside {names[mean]}"
            )


def _norm(
    name: str,
    mean: int,
    variance: int,
    number: int,
    meeting: jaxprs.Meeting,
    shape: tuple[int, ...],
) -> _Norm:
    """The BatchNorm whose statistics first meet activations here.

    Where its scale or its mean alone does, activations still are what it is given.

    Raises:
      ValueError: that does not show.
    """
    value, taken = meeting.value, meeting.shape
    both = {mean, variance} <= meeting.leaves
    if both or value is None or len(shape) != 1 or len(taken) != len(value.shape):
        raise ValueError(
            f"what is normalised by {name} does not show in the function's program: let it compute "
            "(x - mean) * scale / sqrt(var + eps) + shift, mean and var vectors in params, as "
            "Flax's BatchNorm and bridge.to_jax do"
        )
    axes = tuple(axis for axis, size in enumerate(taken) if size == 1)
    channels = shape[0]
    values = int(np.prod([value.shape[axis] for axis in axes], dtype=int))
    if np.prod(taken) != channels or values * channels != np.prod(value.shape):
        raise ValueError(
            f"{name} meets activations of shape {tuple(value.shape)} as {taken}: give the mean and "
            f"the variance one axis of {channels} channels, the others of size 1"
        )
    return _Norm(name, mean, variance, number, axes, channels, values)


def _inputs_moments(
    chip: Chip, norms: Sequence[_Norm], weights: Programmed
) -> Callable[[list[Array], Array, Array], list[tuple[Array, Array]]]:
    """From leaves, images and their indices to mean and sum of squared deviations of what each
    BatchNorm is given, of each sample, `[batch, channels]`."""
    by_meeting = {one.meeting: one for one in norms}

    def reduce(number: int, meeting: jaxprs.Meeting) -> tuple[Array, Array] | None:
        if (norm := by_meeting.get(number)) is None:
            return None
        x = meeting.value.astype(jnp.float32)
        mean = x.mean(norm.axes, keepdims=True)
        squares = jnp.square(x - mean).sum(norm.axes)
        return mean.reshape(norm.channels), squares.reshape(norm.channels)

    @jax.jit
    def of_batch(leaves: list[Array], images: Array, indices: Array) -> Any:
        with jax.default_matmul_precision(PRECISION):
            return met(chip._network, leaves, weights.units, weights.key, images, indices, reduce)

    return of_batch


def _batches(images: np.ndarray, size: int) -> Iterator[tuple[int, Array, Array]]:
    """How many images, these, and their indices; the last ones filled up with the first, so that
    one program serves all."""
    size = min(size, len(images))
    for start in range(0, len(images), size):
        rows = np.arange(start, start + size)
        yield (
            min(size, len(images) - start),
            jnp.asarray(images[rows % len(images)]),
            jnp.asarray(rows.astype(np.uint32)),
        )
