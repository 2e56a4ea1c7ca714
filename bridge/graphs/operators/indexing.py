"""Operators that read or write at positions: slices, gathers, scatters, embeddings."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def _at(x: Array, dim: int, position: int | slice) -> tuple[int | slice, ...]:
    axis = dim % x.ndim
    return (*(slice(None) for _ in range(axis)), position)


def _range(x: Array, dim: int, start: int | None, end: int | None, step: int) -> slice:
    length = x.shape[dim]
    first = 0 if start is None else start
    last = length if end is None or end > length else end
    return slice(first, last, step)


def select(x: Array, dim: int, index: int) -> Array:
    return x[_at(x, dim, index)]


def sliced(
    x: Array, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Array:
    return x[_at(x, dim, _range(x, dim, start, end, step))]


def slice_scatter(
    x: Array,
    source: Array,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Array:
    return x.at[_at(x, dim, _range(x, dim, start, end, step))].set(source)


def _positions(indices: Sequence[Array | None]) -> tuple[Array | slice, ...]:
    return tuple(slice(None) if index is None else index for index in indices)


def index(x: Array, indices: Sequence[Array | None]) -> Array:
    return x[_positions(indices)]


def index_put(
    x: Array, indices: Sequence[Array | None], values: Array, accumulate: bool = False
) -> Array:
    if len(indices) == 1 and indices[0] is not None and indices[0].dtype == bool:
        return _masked(x, indices[0], values, accumulate)
    at = x.at[_positions(indices)]
    return at.add(values) if accumulate else at.set(values)


def _masked(x: Array, mask: Array, values: Array, accumulate: bool) -> Array:
    """One value written, or added, wherever a mask of the first axes is true."""
    if jnp.size(values) != 1:
        raise ValueError("a mask is given an array of values: use torch.where")
    mask = mask.reshape(*mask.shape, *(1 for _ in range(x.ndim - mask.ndim)))
    value = jnp.reshape(values, ())
    return jnp.where(mask, x + value if accumulate else value, x)


def index_select(x: Array, dim: int, index: Array) -> Array:
    return jnp.take(x, index, axis=dim, mode="clip")


def gather(x: Array, dim: int, index: Array, *, sparse_grad: bool = False) -> Array:
    """Like `take_along_axis`, where the other axes of the index may be shorter."""
    if x.ndim == 0:
        return x
    axis = dim % x.ndim
    kept = tuple(
        slice(None) if i == axis else slice(0, length) for i, length in enumerate(index.shape)
    )
    return jnp.take_along_axis(x[kept], index, axis=axis)


def _scattered(x: Array, dim: int, index: Array) -> tuple[Array, ...]:
    grids = list(jnp.indices(index.shape, sparse=True))
    grids[dim % x.ndim] = index
    return tuple(grids)


def scatter(x: Array, dim: int, index: Array, source: Array | float) -> Array:
    if not isinstance(source, int | float) and jnp.ndim(source):
        source = source[tuple(slice(0, length) for length in index.shape)]
    return x.at[_scattered(x, dim, index)].set(source)


def scatter_add(x: Array, dim: int, index: Array, source: Array) -> Array:
    source = source[tuple(slice(0, length) for length in index.shape)]
    return x.at[_scattered(x, dim, index)].add(source)


def embedding(
    weight: Array,
    indices: Array,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Array:
    return jnp.take(weight, indices, axis=0, mode="clip")


def embedding_bag(
    weight: Array,
    indices: Array,
    offsets: Array,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Array | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Array, None, None, None]:
    """Sum, mean or largest (`mode` 0, 1, 2) of the rows in each bag, 0 for an empty one.

    Bag i is from `offsets[i]` to the next offset.
    """
    starts = offsets[:-1] if include_last_offset else offsets
    bags = jnp.searchsorted(offsets, jnp.arange(len(indices)), side="right") - 1
    counts = jnp.asarray(indices != padding_idx, weight.dtype)
    member = jax.nn.one_hot(bags, len(starts), dtype=weight.dtype, axis=0) * counts
    if mode == 2:
        rows = jnp.where(member[..., None] > 0, weight[indices], -jnp.inf)
        first = jnp.argmax(rows, 1, keepdims=True)
        largest = jnp.take_along_axis(rows, first, 1)[:, 0]
        return jnp.where(member.any(1)[:, None], largest, 0.0), None, None, None
    if per_sample_weights is not None:
        member = member * per_sample_weights
    value = jnp.matmul(member, weight[indices])
    if mode == 1:
        value = value / jnp.maximum(jnp.sum(member, 1, keepdims=True), 1)
    return value, None, None, None


def bucket(x: Array, boundaries: Array, *, out_int32: bool = False, right: bool = False) -> Array:
    """Number of the boundaries below each value, or, with `right`, not above it."""
    return jnp.searchsorted(boundaries, x, side="right" if right else "left")


TABLE: dict[str, Callable[..., Any]] = {
    "aten.select.int": select,
    "aten.slice.Tensor": sliced,
    "aten.slice_scatter.default": slice_scatter,
    "aten.index.Tensor": index,
    "aten.index_put.default": index_put,
    "aten.index_select.default": index_select,
    "aten.gather.default": gather,
    "aten.scatter.src": scatter,
    "aten.scatter.value": scatter,
    "aten.scatter_add.default": scatter_add,
    "aten.embedding.default": embedding,
    "aten._embedding_bag.default": embedding_bag,
    "aten.bucketize.Tensor": bucket,
}
