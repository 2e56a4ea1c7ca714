"""First-order moments of the logit margin under noise of the weights.

With m = z_top1 - z_top2 a sample's logit margin and independent deviations of the weights, each of
mean E[dw] and variance var(w), to first order

    shift = sum_w (dm/dw) E[dw],    variance = sum_w (dm/dw)^2 var(w).

The classes are the model's own prediction and its runner-up, so that no label is needed, or a given
class and the best other one. Whose moments they are, a chip's or any other noise's, is the caller's
business, and so is the point around which to expand: where the mean deviation is large, add it to
the weights first, take the margin of the exact weights' prediction there, and leave the mean out.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
from flax import nnx
from jax.extend.core import ClosedJaxpr
from jaxtyping import Array, ArrayLike

from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.layouts import plain_array
from jaxcurv.data.reading import read_batches
from jaxcurv.data.sources import Source
from jaxcurv.engine.batch import PRECISION
from jaxcurv.engine.checks import check_batch, check_indices, check_labels
from jaxcurv.engine.derivatives import direction
from jaxcurv.engine.inspection import check_model
from jaxcurv.engine.losses import cross_entropy
from jaxcurv.engine.model import LogitsFn, Problem, functional, own_rules
from jaxcurv.engine.tracing import depends, differentiable, may_jump, stops_gradients
from jaxcurv.frames import frame_of
from jaxcurv.progress import progress
from jaxcurv.settings import is_whole, plain

_GRADIENT_BYTES = 256 * 2**20
"""Bytes of weight gradients held at once."""

_CHUNK, _CPU_CHUNK = 64, 8
"""Samples differentiated at once, at most. On CPUs XLA's weight gradients of more samples at once
are slower: a ResNet-18 of width 16 gave 286 images a second with 8 and 187 with 64."""

_BATCH = 64
"""Samples read at once."""

_SAME_WEIGHT = 1e-2
"""Difference of one weight in two types, of the largest weight: bfloat16 rounds by 2^-9."""

Of = Literal["prediction", "label"]
"""Whose margin: the model's own prediction's, or that of the source's label."""

OWN = -1
"""In place of a class: the model's own prediction."""


class Moments(NamedTuple):
    """Mean and variance of the weights' deviations from the digital ones.

    Both are trees like the model's weights (or NNX modules like it), zero where a weight is exact.

    Attributes:
      mean: mean deviation of each weight; None where all means are zero.
      variance: variance of each weight's deviation, in squared units of the weights, >= 0. Where a
        mean is estimated, from n chips say, its squared standard error belongs in here too: then
        the sample variance times 1 + 1 / n, of a further chip around the estimate.
      weights: the digital weights whose deviations these are, a tree like both; None where they are
        not known. Others are refused with them: noisy weights that differ by more than 1 % of the
        largest of their leaf.
    """

    mean: Any
    variance: Any
    weights: Any = None


@dataclass(frozen=True)
class MarginMoments:
    """The margins of a batch and their moments by noise, as NumPy arrays `[batch]`.

    Attributes:
      prediction: class of the largest logit, the first of several; or the given class.
      runner_up: class of the largest logit among the others.
      margin: m, in units of the logits; negative where a given class is not the prediction.
      shift: mean of the margin's change by noise, in units of the logits.
      variance: variance of the margin's change by noise, in squared units of the logits.
    """

    prediction: np.ndarray
    runner_up: np.ndarray
    margin: np.ndarray
    shift: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]


def margin_moments(
    logits_fn: LogitsFn | nnx.Module,
    images: ArrayLike,
    *,
    params: Any = None,
    noises: Mapping[str, Moments],
    classes: ArrayLike | None = None,
    indices: ArrayLike | None = None,
) -> MarginMoments:
    """Margins of one batch and their first-order moments.

    The gradients of a few samples are held at once, 256 MiB or those of one sample, and contracted
    with all noises; the activations of as many samples lie beside them. A sample's numbers do not
    depend on its batch. Cost: `jaxcurv.costs.MARGIN_MOMENTS` forward passes. A model that rounds
    what it computes, so that noise moves its logits by jumps, is warned of.

    Args:
      logits_fn, params: as for `input_curvature`; weights must be there to differentiate, so a
        function of the images alone is refused.
      images: floating `[batch, ...]`, normalised as the model expects.
      noises: moments by name, at least one. Those of an NNX module cover its whole state,
        statistics of BatchNorm included.
      classes: integer `[batch]`, whose margins over the best other class to take; the model's own
        predictions if None.
      indices: stable sample indices `[batch]`, for messages; positions if None.

    Raises:
      ValueError: moments that do not fit the weights, negative variances, non-finite results, a
        model without weights, or images or a model that `input_curvature` refuses.
    """
    _require_noises(noises)
    images, own = plain_array(images), classes is None
    positions = np.arange(len(images)) if indices is None else np.asarray(indices)
    given = OWN * np.ones(len(images), np.int32) if own else plain_array(classes, "classes")
    check_batch(images, given, positions)
    moments = inspected_margins(logits_fn, params, noises, images)
    if classes is not None:
        check_labels(given, moments.classes)
    return moments(images, given, positions)


def margin_table(
    logits_fn: LogitsFn | nnx.Module,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    params: Any = None,
    noises: Mapping[str, Moments],
    of: Of = "prediction",
    batch_size: int | Literal["auto"] = "auto",
    description: str = "margins",
) -> pd.DataFrame:
    """Margins of every sample of a source and their first-order moments; see `margin_moments`.

    One shape is compiled. It runs on JAX's default device.

    Args:
      logits_fn, params, noises: as for `margin_moments`.
      source, keys: as for `score_dataset`.
      of: the class of each margin: the model's own prediction, or the source's label.
      batch_size: samples read at once, 64 for "auto"; memory for gradients does not depend on it.
      description: a few words for the progress bar.

    Returns:
      index int64, prediction and runner_up int32, margin, and for each noise NAME_shift and
      NAME_variance; in the source's order.

    Raises:
      ValueError: an empty source, equal indices, or what `margin_moments` refuses.
    """
    _require_noises(noises)
    return margins_of_all(
        logits_fn,
        as_source(source, keys=keys),
        params=params,
        noises=noises,
        of=of,
        batch_size=batch_size,
        description=description,
    )


def margins_of_all(
    logits_fn: LogitsFn | nnx.Module,
    source: Source,
    *,
    params: Any,
    noises: Mapping[str, Moments],
    of: Of,
    batch_size: int | Literal["auto"],
    description: str,
) -> pd.DataFrame:
    """`margin_table`, whose noises may be none: then at the cost of one forward pass."""
    size = plain(batch_size)
    size = _BATCH if size == "auto" else size
    if not is_whole(size) or len(source) == 0 or size < 1:
        raise ValueError(
            f"nothing to compute: {len(source)} samples in batches of {size}; both must be whole "
            "numbers from 1 on"
        )
    if hasattr(source, "indices"):
        check_indices([source.indices])
    moments: _Contraction | None = None
    seen: list[np.ndarray] = []
    parts: list[MarginMoments] = []
    with progress(len(source), description) as shown:
        for images, labels, indices in read_batches(source, size):
            check_batch(images, labels, indices)
            if moments is None:
                moments = inspected_margins(logits_fn, params, noises, images)
            if of == "label":
                check_labels(labels, moments.classes)
            else:
                labels = np.full(len(labels), OWN, np.int32)
            parts.append(moments(images, labels, indices))
            seen.append(indices.astype(np.int64))
            shown.update(len(indices))
    check_indices(seen)
    whole = _concatenated(parts)
    columns = {
        "index": np.concatenate(seen),
        "prediction": whole.prediction,
        "runner_up": whole.runner_up,
        "margin": whole.margin,
    }
    for name in noises:
        columns[f"{name}_shift"] = whole.shift[name]
        columns[f"{name}_variance"] = whole.variance[name]
    return frame_of(pa.table(columns))


def _concatenated(parts: Sequence[MarginMoments]) -> MarginMoments:
    names = parts[0].shift
    return MarginMoments(
        prediction=np.concatenate([part.prediction for part in parts]),
        runner_up=np.concatenate([part.runner_up for part in parts]),
        margin=np.concatenate([part.margin for part in parts]),
        shift={name: np.concatenate([part.shift[name] for part in parts]) for name in names},
        variance={name: np.concatenate([part.variance[name] for part in parts]) for name in names},
    )


def inspected_margins(
    logits_fn: LogitsFn | nnx.Module, params: Any, noises: Mapping[str, Moments], images: np.ndarray
) -> "_Contraction":
    """The computation for a model and noises that were found to fit, on some images."""
    model, weights = functional(logits_fn, params)
    weights = jax.device_put(weights)
    if not any(map(_differentiable, jax.tree.leaves(weights))):
        raise ValueError(
            "the model has no floating weights to differentiate: give an NNX module, or a function "
            "(params, images) -> logits and its params"
        )
    means, variances, noisy = _stacked(weights, noises)
    problem = Problem(model, cross_entropy)
    with jax.default_matmul_precision(PRECISION):
        model, program, logits, _ = check_model(problem, weights, images, of_input=False)
        _check_derivatives(model, weights, noisy, images, program)
        found = _Contraction(
            model, weights, tuple(noises), means, variances, noisy, logits.shape[1]
        )
        _warn_of_jumps(found, images, program)
    return found


def _check_derivatives(
    model: Callable[[Any, Array], Array],
    weights: Any,
    noisy: tuple[bool, ...],
    images: np.ndarray,
    program: ClosedJaxpr,
) -> None:
    """Refuses a model that rounds or stops any of its noisy weights, whose noise would count for
    nothing, or that uses none of them."""
    if not any(noisy):
        return
    leaves, structure = jax.tree.flatten(weights)

    def logits(varied: list[Array]) -> Array:
        merged = _merged(leaves, noisy, varied)
        return model(jax.tree.unflatten(structure, merged), jnp.asarray(images[:1]))

    with own_rules(model):
        told = differentiable(logits, [w for w, n in zip(leaves, noisy, strict=True) if n])
    numbers = np.flatnonzero(noisy)
    dead = [int(n) for n, one in zip(numbers, told, strict=True) if not one]
    paths = list(_by_path(weights))
    used = [paths[number] for number in dead if any(depends(program, [number]))]
    if len(dead) < len(numbers) and not used:
        return
    which = "its noisy weights"
    if len(dead) < len(numbers):
        which += f" {', '.join(used[:_NAMED])}" + f" and {len(used) - _NAMED} more" * (
            len(used) > _NAMED
        )
    raise ValueError(
        f"the model has no derivative with respect to {which}, which reach the logits through "
        "rounding, comparisons or stop_gradient alone, or not at all, so that their noise would "
        "count for nothing: give the weights that it computes with, and the model without "
        "stop_gradient; or moments of zeros for weights that are exact"
    )


_NAMED = 5
"""Weights that a message names."""


def _merged(leaves: list[Array], noisy: tuple[bool, ...], varied: list[Array]) -> list[Array]:
    """The leaves, the noisy ones replaced."""
    remaining = iter(varied)
    return [next(remaining) if n else w for n, w in zip(noisy, leaves, strict=True)]


@dataclass(frozen=True)
class _Contraction:
    """A model and the noises that its gradients are contracted with.

    Attributes:
      means, variances: mean and variance of each noisy leaf of the weights, `[noise, *leaf]`.
      noisy: whether a leaf of the weights has any noise; the others are not differentiated.
      classes: how many the model has.
    """

    model: Callable[[Any, Array], Array]
    weights: Any
    names: tuple[str, ...]
    means: list[Array]
    variances: list[Array]
    noisy: tuple[bool, ...]
    classes: int

    @property
    def chunk(self) -> int:
        """Samples differentiated at once; the same for batches of every size."""
        size = sum(mean.nbytes // len(mean) for mean in self.means)
        most = _CPU_CHUNK if jax.default_backend() == "cpu" else _CHUNK
        return max(1, min(most, _GRADIENT_BYTES // max(size, 1)))

    def __call__(
        self, images: np.ndarray, classes: np.ndarray, indices: np.ndarray
    ) -> MarginMoments:
        pending = []
        chunk = self.chunk
        with jax.default_matmul_precision(PRECISION), own_rules(self.model):
            for start in range(0, len(images), chunk):
                # The last sample fills up the last chunk, so that one shape compiles.
                rows = np.minimum(np.arange(start, start + chunk), len(images) - 1)
                pending.append(
                    _chunk_moments(
                        self.model,
                        self.noisy,
                        self.weights,
                        self.means,
                        self.variances,
                        jax.device_put(images[rows]),
                        jax.device_put(classes[rows].astype(np.int32)),
                        count=len(self.names),
                    )
                )
        found = [
            np.concatenate(arrays)[: len(images)]
            for arrays in zip(*jax.device_get(pending), strict=True)
        ]
        prediction, runner_up, margin, shift, variance = found
        wrong = ~(np.isfinite(margin) & np.isfinite(shift).all(1) & np.isfinite(variance).all(1))
        if wrong.any():
            raise ValueError(
                f"the margin or its gradient is not finite for {np.sum(wrong)} of {len(wrong)} "
                f"samples, the first at index {indices[wrong][0]}; check the weights and the noises"
            )
        return MarginMoments(
            prediction=prediction,
            runner_up=runner_up,
            margin=margin,
            shift={name: shift[:, n].copy() for n, name in enumerate(self.names)},
            variance={name: variance[:, n].copy() for n, name in enumerate(self.names)},
        )


_DRAWS, _LOOKED_AT, _PIECES = 4, 4, 8
"""Draws of the weights at least, images at most, and pieces of the way to each draw, that tell
whether the logits jump."""


def _warn_of_jumps(moments: _Contraction, images: np.ndarray, program: ClosedJaxpr) -> None:
    """Warns of logits that noise of the weights moves otherwise than their gradients say: of jumps,
    as of straight-through rounding, and of what goes through `stop_gradient`.

    Drawn weights, each of a normal deviation of the noise's mean and variance, must move the logits
    of the first images as the integral of the gradient along the way says, by the trapezoidal rule;
    a hundredth of these deviations where the model does not round, but stops gradients. Computed
    only where it does either. Not seen: steps small beside what noise moves, which make little
    difference to it.

    The two may differ by a quarter of the movement where the model rounds: errors of rounding that
    are independent of the noise then add 1/16 to a variance, 3 % to a spread. They may differ by a
    tenth where it stops gradients alone: a stopped part is missing from every spread in full.

    Args:
      images: the first ones, `[batch, ...]`.
      program: the model's.
    """
    jumps = may_jump(program)
    if not any(moments.noisy) or not (jumps or stops_gradients(program)):
        return
    rng, scale = np.random.default_rng(0), 1.0 if jumps else 0.01
    varied = [w for w, n in zip(jax.tree.leaves(moments.weights), moments.noisy, strict=True) if n]
    some = jnp.asarray(images[:_LOOKED_AT])
    moved, told, largest = [], [], 0.0
    for number in range(max(_DRAWS, len(moments.names))):
        which = number % len(moments.names)
        way = [
            scale * (m[which] + jnp.sqrt(v[which]) * rng.normal(size=m.shape[1:]).astype(m.dtype))
            for m, v in zip(moments.means, moments.variances, strict=True)
        ]
        found = []
        for part in np.linspace(0, 1, _PIECES + 1):
            at = [
                w + jnp.asarray(part, w.dtype) * step for w, step in zip(varied, way, strict=True)
            ]
            with own_rules(moments.model):
                one = _values_and_slopes(
                    moments.model, moments.noisy, moments.weights, at, way, some
                )
            found.append(jax.device_get(one))
        values, slopes = (np.stack(arrays) for arrays in zip(*found, strict=True))
        moved.append(values[-1] - values[0])
        told.append(np.trapezoid(slopes, dx=1 / _PIECES, axis=0))
        largest = max(largest, float(np.max(np.abs(values))))
    off = np.linalg.norm(np.subtract(moved, told))
    rounding = 64 * np.finfo(values.dtype).eps * largest
    if off <= max((0.25 if jumps else 0.1) * np.linalg.norm(moved), rounding):
        return
    what = (
        "it rounds, compares or makes whole numbers of what it computes, which no derivative knows "
        "of"
        if jumps
        else "a part of it is behind stop_gradient, which no derivative sees"
    )
    warnings.warn(
        "noise of the weights moves the model's logits otherwise than their gradients say, as "
        f"where {what}: margins, their variances and flip probabilities, which are of first order, "
        "are not those of such a model. Give the model without that, or draw chips of it",
        stacklevel=4,
    )


@partial(jax.jit, static_argnames=("model", "noisy"))
def _values_and_slopes(
    model: Callable[[Any, Array], Array],
    noisy: tuple[bool, ...],
    weights: Any,
    varied: list[Array],
    way: list[Array],
    images: Array,
) -> tuple[Array, Array]:
    """Each image's logits along `direction`, and their slope along a way of the noisy weights."""
    leaves, structure = jax.tree.flatten(weights)

    def values(varied: list[Array]) -> Array:
        logits = model(jax.tree.unflatten(structure, _merged(leaves, noisy, varied)), images)
        return logits @ direction(logits.shape[1]).astype(logits.dtype)

    found, pullback = jax.vjp(values, varied)

    def slope(one: Array) -> Array:
        (gradients,) = pullback(one)
        parts = [jnp.vdot(g, w) for g, w in zip(gradients, way, strict=True)]
        return jnp.sum(jnp.stack(parts))

    return found, jax.lax.map(slope, jnp.eye(len(images), dtype=found.dtype))  # one a time: memory


@partial(jax.jit, static_argnames=("model", "noisy", "count"))
def _chunk_moments(
    model: Callable[[Any, Array], Array],
    noisy: tuple[bool, ...],
    weights: Any,
    means: list[Array],
    variances: list[Array],
    images: Array,
    classes: Array,
    count: int,
) -> tuple[Array, ...]:
    """Prediction, runner-up, margin `[chunk]`, shift and variance `[chunk, noise]`.

    Args:
      classes: int `[chunk]`, the class of each margin; `OWN` for the predicted one.
      count: number of noises.
    """
    leaves, structure = jax.tree.flatten(weights)

    def margin(varied: list[Array], image: Array, of: Array) -> tuple[Array, tuple[Array, Array]]:
        merged = _merged(leaves, noisy, varied)
        logits = model(jax.tree.unflatten(structure, merged), image[None])[0]
        top = jnp.where(of == OWN, jnp.argmax(logits), of)
        second = jnp.argmax(jnp.where(jnp.arange(len(logits)) == top, -jnp.inf, logits))
        return logits[top] - logits[second], (top.astype(jnp.int32), second.astype(jnp.int32))

    varied = [leaf for leaf, is_noisy in zip(leaves, noisy, strict=True) if is_noisy]

    def moments(image: Array, of: Array) -> tuple[Array, ...]:
        value_and_gradient = jax.value_and_grad(margin, has_aux=True)
        (m, (top, second)), gradients = value_and_gradient(varied, image, of)
        # One matrix-vector product for all noises; by vmap, one matrix product for all samples.
        shift = [jnp.tensordot(a, g, g.ndim) for a, g in zip(means, gradients, strict=True)]
        variance = [
            jnp.tensordot(v, jnp.square(g), g.ndim)
            for v, g in zip(variances, gradients, strict=True)
        ]
        none = jnp.zeros(count, m.dtype)
        return top, second, m, sum(shift, none), sum(variance, none)

    return jax.vmap(moments)(images, classes)


def _stacked(
    weights: Any, noises: Mapping[str, Moments]
) -> tuple[list[Array], list[Array], tuple[bool, ...]]:
    """Means and variances `[noise, *leaf]` of the leaves that have any noise, and which these are.

    Raises:
      ValueError: moments that do not fit the weights.
    """
    leaves = _by_path(weights)
    for name, moments in noises.items():
        _require_same_weights(name, moments, leaves)
    means = [_moment(f"the mean of {n}", m.mean, leaves) for n, m in noises.items()]
    variances = [_moment(f"the variance of {n}", m.variance, leaves) for n, m in noises.items()]
    for name, one in zip(noises, variances, strict=True):
        if negative := [path for path, value in one.items() if np.any(value < 0)]:
            raise ValueError(f"the variance of {name} is negative in {', '.join(negative)}")
    noisy = tuple(any(np.any(one[path]) for one in [*means, *variances]) for path in leaves)

    def stacked(trees: Sequence[Mapping[str, np.ndarray]]) -> list[Array]:
        return [
            jnp.asarray(np.stack([one[path] for one in trees]), leaf.dtype)
            for (path, leaf), is_noisy in zip(leaves.items(), noisy, strict=True)
            if is_noisy
        ]

    return stacked(means), stacked(variances), noisy


def at_mean(weights: Any, moments: Moments, name: str) -> Any:
    """The weights with their mean deviations added, a tree like `weights`.

    Raises:
      ValueError: means that do not fit the weights, or moments of other ones; `name` is that of
        the noise, for the message.
    """
    leaves = _by_path(weights)
    _require_same_weights(name, moments, leaves)
    means = _moment(f"the mean of {name}", moments.mean, leaves)

    def shifted(path: Any, leaf: Array) -> Array:
        if not _differentiable(leaf):
            return leaf
        return leaf + means[jax.tree_util.keystr(path)].astype(leaf.dtype)

    return jax.tree.map_with_path(shifted, weights)


def _moment(what: str, tree: Any, leaves: Mapping[str, Array]) -> dict[str, np.ndarray]:
    """A moment by the path of its weight; zero for what cannot be differentiated."""
    if tree is None:
        return {path: np.zeros(leaf.shape) for path, leaf in leaves.items()}
    given = _by_path(tree)
    if odd := sorted(given.keys() ^ leaves.keys()):
        raise ValueError(
            f"{what} is no tree like the weights: they differ in {', '.join(odd)}; give zeros for "
            "weights that are exact"
        )
    found = {}
    for path, leaf in leaves.items():
        if np.shape(given[path]) != leaf.shape:
            raise ValueError(
                f"{what} has shape {np.shape(given[path])} at {path}, the weight {leaf.shape}"
            )
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            found[path] = np.zeros(leaf.shape)
            continue
        value = np.asarray(given[path])
        if not np.isfinite(value).all():
            raise ValueError(f"{what} is not finite at {path}; compute it again")
        if np.any(value) and not _differentiable(leaf):
            raise ValueError(f"{what} is not zero at {path}, a weight of {leaf.dtype}: give zeros")
        found[path] = value
    return found


def _require_same_weights(name: str, moments: Moments, leaves: Mapping[str, Array]) -> None:
    """Refuses moments of weights that are others than those at hand, where any are noisy.

    Raises:
      ValueError: one differs by more than `_SAME_WEIGHT` of the largest of its leaf, which rounding
        to a coarser type does not explain.
    """
    if moments.weights is None:
        return
    noisy = [_moment(name, tree, leaves) for tree in (moments.mean, moments.variance)]
    known = _moment(f"the weights of {name}", moments.weights, leaves)
    for path, leaf in leaves.items():
        if not any(np.any(one[path]) for one in noisy):
            continue
        now = np.asarray(leaf, np.float64)
        off = np.abs(known[path] - now).max()
        if off > _SAME_WEIGHT * np.abs(now).max():
            raise ValueError(
                f"the moments {name} are of other weights: {path} differs by up to {off:.3g}; "
                "compute the moments again, of the weights as they are now"
            )


def _by_path(tree: Any) -> dict[str, Any]:
    tree = nnx.state(tree) if isinstance(tree, nnx.Module) else tree
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _require_noises(noises: Mapping[str, Moments]) -> None:
    if not noises:
        raise ValueError("no noises to propagate: give at least one")


def _differentiable(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
