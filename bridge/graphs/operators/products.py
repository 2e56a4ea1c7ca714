"""Operators that multiply matrices: linear layers, products, attention."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bridge.graphs.operators.reductions import norm, safe_softmax


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    product = jnp.matmul(x, weight.T)
    return product if bias is None else product + bias


def addmm(start: Array, a: Array, b: Array, *, beta: float = 1, alpha: float = 1) -> Array:
    product = jnp.matmul(a, b)
    product = product if alpha == 1 else alpha * product
    return product + (start if beta == 1 else beta * start)


def trilinear(
    a: Array,
    b: Array,
    c: Array,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    summed: Sequence[int],
    unroll_dim: int = 1,
) -> Array:
    """Product of three arrays, each of which lacks the axes in its `expand`, summed over axes."""
    axes = range(a.ndim + len(expand_a))
    present = [
        [axis for axis in axes if axis not in lacking] for lacking in (expand_a, expand_b, expand_c)
    ]
    kept = [axis for axis in axes if axis not in summed]
    return jnp.einsum(a, present[0], b, present[1], c, present[2], kept)


def distances(a: Array, b: Array, order: float, compute_mode: int | None) -> Array:
    """Norm of the difference of each row of `a` to each row of `b`."""
    return norm(a[..., :, None, :] - b[..., None, :, :], order, [-1])


def attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Array:
    """softmax(Q K^T scale + mask) V along the last two axes; 0 for a query that sees no key."""
    if dropout_p:
        raise ValueError("attention drops at random: call eval() on its module")
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = jnp.repeat(key, groups, axis=-3), jnp.repeat(value, groups, axis=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.matmul(query * factor, jnp.swapaxes(key, -1, -2))
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is None:
        weights = jax.nn.softmax(scores, axis=-1)
    elif attn_mask.dtype == bool:
        weights = safe_softmax(jnp.where(attn_mask, scores, -jnp.inf), -1)
    else:
        weights = safe_softmax(scores + attn_mask, -1)
    return jnp.matmul(weights, value)


TABLE: dict[str, Callable[..., Any]] = {
    "aten.linear.default": linear,
    "aten.matmul.default": jnp.matmul,
    "aten.mm.default": jnp.matmul,
    "aten.bmm.default": jnp.matmul,
    "aten.addmm.default": addmm,
    "aten.addmv.default": addmm,
    "aten._trilinear.default": trilinear,
    "aten._cdist_forward.default": distances,
    "aten.scaled_dot_product_attention.default": attention,
}
