"""Operators that change shapes, and those that make arrays of a shape."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Shape = Sequence[int]


def view(x: Array, shape: Shape) -> Array:
    return jnp.reshape(x, shape)


def permute(x: Array, dims: Sequence[int]) -> Array:
    return jnp.transpose(x, dims)


def expand(x: Array, shape: Shape, *, implicit: bool = False) -> Array:
    """Repeats axes of length 1; -1 keeps a length."""
    new = len(shape) - x.ndim
    lengths = [x.shape[i - new] if length == -1 else length for i, length in enumerate(shape)]
    return jnp.broadcast_to(x, lengths)


def unsqueeze(x: Array, dim: int) -> Array:
    return jnp.expand_dims(x, dim)


def squeeze(x: Array, dims: Sequence[int]) -> Array:
    """Removes axes of length 1; others stay."""
    if x.ndim == 0:
        return x
    return jnp.squeeze(x, tuple(i % x.ndim for i in dims if x.shape[i] == 1))


def repeat(x: Array, repeats: Sequence[int]) -> Array:
    return jnp.tile(x, repeats)


def cat(tensors: Sequence[Array], dim: int = 0) -> Array:
    # PyTorch lets an empty vector be joined to anything.
    kept = [x for x in tensors if x.ndim > 1 or x.size > 0] or tensors
    return jnp.concatenate(kept, dim)


def split_with_sizes(x: Array, sizes: Sequence[int], dim: int = 0) -> list[Array]:
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [
        jax.lax.slice_in_dim(x, end - size, end, axis=dim)
        for size, end in zip(sizes, ends, strict=True)
    ]


def flip(x: Array, dims: Sequence[int]) -> Array:
    return jnp.flip(x, dims)


def diagonal(x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Array:
    return jnp.diagonal(x, offset, dim1, dim2)


def diagonal_scatter(
    x: Array, source: Array, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> Array:
    """`x` with `source` in the place of a diagonal."""
    planes = jnp.moveaxis(x, (dim1, dim2), (-2, -1))
    places = jnp.arange(source.shape[-1])
    rows, columns = places + max(-offset, 0), places + max(offset, 0)
    return jnp.moveaxis(planes.at[..., rows, columns].set(source), (-2, -1), (dim1, dim2))


def windows(x: Array, dim: int, size: int, step: int) -> Array:
    """Overlapping windows along an axis, their positions in a new last one."""
    if x.ndim == 0:
        return x[None]
    axis = dim % x.ndim
    starts = np.arange(0, x.shape[axis] - size + 1, step)
    return jnp.moveaxis(jnp.take(x, starts[:, None] + np.arange(size), axis), axis + 1, -1)


def lower_triangle_places(rows: int, columns: int, offset: int = 0, **_: Any) -> Array:
    return jnp.stack(jnp.tril_indices(rows, offset, columns))


def upper_triangle_places(rows: int, columns: int, offset: int = 0, **_: Any) -> Array:
    return jnp.stack(jnp.triu_indices(rows, offset, columns))


def constant_pad(x: Array, pad: Sequence[int], value: float = 0.0) -> Array:
    """Pads, or crops where negative; the last axis comes first in `pad`."""
    widths = [(0, 0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        widths[x.ndim - 1 - i] = (pad[2 * i], pad[2 * i + 1], 0)
    return jax.lax.pad(x, jnp.asarray(value, x.dtype), widths)


def full(shape: Shape, value: Any, **_: Any) -> Array:
    return jnp.full(shape, value)


def full_like(x: Array, value: Any, **_: Any) -> Array:
    return jnp.full(x.shape, value)


def empty(shape: Shape, *_: Any, **__: Any) -> Array:
    """Zeros for what PyTorch leaves empty, which a network writes before it reads."""
    return jnp.zeros(shape)


def arange(start: float, end: float, step: float = 1, **_: Any) -> Array:
    return jnp.arange(start, end, step)


def scalar(value: Any, **_: Any) -> Array:
    return jnp.asarray(value)


def size(x: Array, dim: int) -> int:
    return x.shape[dim]


def number_of_elements(x: Array) -> int:
    return x.size


TABLE: dict[str, Callable[..., Any]] = {
    "aten.view.default": view,
    "aten.permute.default": permute,
    "aten.expand.default": expand,
    "aten.unsqueeze.default": unsqueeze,
    "aten.squeeze.dims": squeeze,
    "aten.repeat.default": repeat,
    "aten.cat.default": cat,
    "aten.split_with_sizes.default": split_with_sizes,
    "aten.flip.default": flip,
    "aten.diagonal.default": diagonal,
    "aten.diagonal_scatter.default": diagonal_scatter,
    "aten.unfold.default": windows,
    "aten.tril_indices.default": lower_triangle_places,
    "aten.triu_indices.default": upper_triangle_places,
    "aten.constant_pad_nd.default": constant_pad,
    "aten.full.default": full,
    "aten.full_like.default": full_like,
    "aten.empty.memory_format": empty,
    "aten.empty_permuted.default": empty,
    "aten.arange.start_step": arange,
    "aten.scalar_tensor.default": scalar,
    "aten.sym_size.int": size,
    "aten.sym_numel.default": number_of_elements,
}
